"""What a data set is: two splits of images, vectors or latents, and the way to the model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from numpy.typing import NDArray

from fewstep.errors import UserError
from fewstep.registry import Registry

KINDS = "uint8 images (N, C, H, W), float32 vectors (N, D), float16 or float32 latents (N, C, H, W)"


class Rows(NamedTuple):
    """Some examples as they are kept, on the CPU: those of a batch.

    ``std`` is there for latents that are drawn anew each time, ``eps`` for pairs of a teacher.
    """

    x: torch.Tensor
    y: torch.Tensor | None = None
    std: torch.Tensor | None = None
    eps: torch.Tensor | None = None


def take(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Copies of the rows at ``index``, both on the CPU.

    By numpy, which copies in the thread that asks: torch would keep other threads for each.
    """
    return torch.from_numpy(tensor.numpy()[index.numpy()])


@dataclass(frozen=True, eq=False)
class Split:
    """One split. ``x`` may be memory-mapped, and then larger than the memory.

    Attributes:
        x: uint8 images (N, C, H, W), float32 vectors (N, D), float16 or float32 latents
            (N, C, H, W). y: int64 (N,), or None.
        std: of latents that are normally distributed about ``x``, shaped like it: in training each
            is drawn anew. Everything else takes ``x``.
        stored_sha256: the hash as it is known from where the split is kept: reading what is
            memory-mapped again, just for that, would take as long as an epoch.

    Raises:
        UserError: another shape or dtype, or a label for each example is not there.
    """

    x: torch.Tensor
    y: torch.Tensor | None = None
    std: torch.Tensor | None = None
    stored_sha256: str | None = None

    def __post_init__(self) -> None:
        kind = (self.x.dtype, self.x.ndim)
        latent = kind in ((torch.float16, 4), (torch.float32, 4))
        if not latent and kind not in ((torch.uint8, 4), (torch.float32, 2)):
            raise UserError(
                f"a split has {self.x.dtype} of shape {tuple(self.x.shape)} (choices: {KINDS})"
            )
        if self.y is not None and (self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1]):
            raise UserError(
                f"labels must be int64 of shape ({len(self.x)},), "
                f"got {self.y.dtype} of shape {tuple(self.y.shape)}"
            )
        if self.std is not None and (
            not latent or self.std.shape != self.x.shape or self.std.dtype != self.x.dtype
        ):
            raise UserError(
                f"only latents have a standard deviation each, shaped like themselves; "
                f"got {self.std.dtype} {tuple(self.std.shape)} for {kind[0]} {tuple(self.x.shape)}"
            )

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: torch.Tensor) -> Rows:
        """Copies of the examples at ``index``, (B,) int64."""
        y = None if self.y is None else take(self.y, index)
        std = None if self.std is None else take(self.std, index)
        return Rows(take(self.x, index), y, std)

    @cached_property
    def sha256(self) -> str:
        """Hash of the shape, dtype and bytes of all there is: the identity of a reference."""
        if self.stored_sha256 is not None:
            return self.stored_sha256
        digest = hashlib.sha256()
        for tensor in (self.x, self.y):
            if tensor is None:
                digest.update(b"none")
                continue
            hash_array(digest, tensor.detach().cpu().contiguous().numpy())
        if self.std is not None:
            own = hashlib.sha256()
            hash_array(own, self.std.detach().cpu().contiguous().numpy())
            digest.update(own.digest())
        return digest.hexdigest()


def hash_array(digest: hashlib._Hash, array: NDArray[Any]) -> None:
    """Add an array's dtype, shape and bytes to ``digest``."""
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(array.data)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Two splits of one ``name``; labels are 0..num_classes - 1 (``num_classes = 0``: none)."""

    name: str
    train: Split
    test: Split
    num_classes: int

    def __post_init__(self) -> None:
        if (
            self.train.x.shape[1:] != self.test.x.shape[1:]
            or self.train.x.dtype != self.test.x.dtype
        ):
            raise UserError(
                f"{self.name}: train examples are {self.train.x.dtype} {self.shape}, "
                f"test examples {self.test.x.dtype} {tuple(self.test.x.shape[1:])}"
            )
        for part, split in (("train", self.train), ("test", self.test)):
            if self.num_classes and split.y is None:
                raise UserError(f"{self.name}: {self.num_classes} classes, but no {part} labels")
            if split.y is None or len(split) == 0:
                continue
            low, high = int(split.y.min()), int(split.y.max())
            if low < 0 or high >= self.num_classes:
                raise UserError(
                    f"{self.name}: {part} labels span {low}..{high}, "
                    f"expected 0..{self.num_classes - 1}"
                )

    @property
    def is_image(self) -> bool:
        return self.train.x.dtype == torch.uint8

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example: (C, H, W) or (D,)."""
        return tuple(self.train.x.shape[1:])


@runtime_checkable
class DataSource(Protocol):
    """A frozen dataclass whose fields are the settings of a data set (int, float, str, bool).

    ``root``, the folder that data lies in, and fields made by ``settings.bookkeeping`` are no part
    of a run's key: they must not change the bytes that ``load`` gives.

    ``suggested_backbone`` is the name of the backbone a run takes when it is told none.
    """

    suggested_backbone: ClassVar[str]

    def load(self) -> Dataset:
        """Both splits, on the CPU, in memory or memory-mapped; the same bytes at every call.

        Raises:
            UserError: files that are missing or damaged.
        """
        ...


DATA: Registry[DataSource] = Registry("data set", "fewstep.data")


def to_model(x: torch.Tensor) -> torch.Tensor:
    """uint8 images -> float32 in [-1, 1]; vectors and latents -> float32, nothing else."""
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float()


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Images (..., C, H, W) in [-1, 1] -> uint8: clip, then round to the nearest level.

    The exact inverse of ``to_model``. Vectors (N, D) and uint8 images pass through.

    Raises:
        FloatingPointError: pixels that are not finite; as uint8 they would pass for images.
    """
    if x.ndim < 3 or x.dtype == torch.uint8:
        return x
    if not bool(torch.isfinite(x).all()):
        raise FloatingPointError("images hold NaN or infinite pixels")
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
