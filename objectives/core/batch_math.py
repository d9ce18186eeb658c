"""Small functions on batches: broadcasting, means, random numbers. B is the number of rows."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError


def expand(t: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), to broadcast against ``like``."""
    return t.reshape(-1, *[1] * (like.dim() - 1))


def mean_square(error: Tensor) -> Tensor:
    """(B, ...) -> (B,): mean of squares over everything but the batch."""
    return error.square().flatten(1).mean(1)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """(B, C, ...) -> (B,): 1 - the cosine over channels, its mean over the rest."""
    return 1 - torch.cosine_similarity(a, b, dim=1).reshape(len(a), -1).mean(1)


def in_groups(x: Tensor, size: int) -> Tensor:
    """(B, ...) -> (B / size, size, ...): ``Objective.group_size`` rows that belong together.

    Raises ``UserError``: B is no multiple of ``size``.
    """
    if len(x) % size:
        raise UserError(f"a batch of {len(x)} rows cannot be split into groups of {size}")
    return x.unflatten(0, (-1, size))


def rand(like: Tensor, g: Generator) -> Tensor:
    """(B,) uniform numbers in [0, 1)."""
    return torch.rand(len(like), generator=g, device=like.device, dtype=like.dtype)


def randn(like: Tensor, g: Generator | None) -> Tensor:
    """Standard normal numbers shaped as ``like``."""
    return torch.randn(like.shape, generator=g, device=like.device, dtype=like.dtype)


def randint(low: int, high: Tensor, g: Generator) -> Tensor:
    """(B,) integers, uniform in low, ..., high - 1, with a bound of its own for each row."""
    uniform = torch.rand(len(high), generator=g, device=high.device, dtype=torch.float64)
    return low + (uniform * (high - low)).floor().long()


def full(t: float, like: Tensor) -> Tensor:
    """(B,) the same time for every row."""
    return like.new_full((len(like),), t)


@contextlib.contextmanager
def same_dropout(like: Tensor) -> Iterator[None]:
    """Dropout inside draws the masks that the next network call after it draws again.

    A target and its prediction are to differ in the time, not in the mask (iCT, sec. 3.1).
    """
    devices = [like.device] if like.is_cuda else []
    with torch.random.fork_rng(devices):
        yield
