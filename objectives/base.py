"""What an objective is, and the few words all of them share.

Notation, once and for all: ``x`` is data, ``eps`` is noise, ``x_t`` their mixture. ``t = 0`` is
data and t grows with noise up to ``path.t_max``. ``d`` is the length of a jump toward data,
``0 <= t - d``. A velocity points toward noise, so sampling steps against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.objectives.paths import Path
from fewstep.registry import Registry


class Net(Protocol):
    """A network F(x, t, d, y): (B, ...) noisy input, (B,) time, (B,) jump length, (B,) class."""

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor: ...


@dataclass(frozen=True)
class Nets:
    """The networks a loss may ask: only ``online`` receives gradients.

    ``learned`` is the module that ``Objective.learned_parts`` handed to the trainer, if any.
    """

    online: Net
    ema: Net
    teacher: Net | None = None
    learned: nn.Module | None = None


@dataclass(frozen=True)
class Batch:
    """``x``: (B, ...) data scaled for the network; ``y``: (B,) int64 classes or None."""

    x: Tensor
    y: Tensor | None = None


@dataclass(frozen=True)
class Progress:
    """Where training stands: ``step`` updates of ``total`` are done."""

    step: int
    total: int


@dataclass(frozen=True)
class Loss:
    """The unreduced loss. ``per_sample``: (B,); ``t``: (B,) the times it was taken at.

    ``logs`` holds detached scalars worth a curve.
    """

    per_sample: Tensor
    t: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A frozen dataclass; its fields are its hyperparameters.

    The defaults are the paper's; where text and code disagree, the docstring says which.

    ``title`` is the name in tables; ``uses_jump`` says whether the network is asked with ``d``.
    """

    title: ClassVar[str]
    uses_jump: ClassVar[bool]

    @property
    def path(self) -> Path:
        """The interpolant the objective is written in."""
        ...

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        """The loss of one batch; all randomness comes from ``g``."""
        ...

    def sample(
        self, net: Net, noise: Tensor, y: Tensor | None, times: Sequence[float], g: Generator
    ) -> Tensor:
        """Samples from ``noise``, standard normal (B, ...), along the decreasing ``times``.

        ``times`` runs from ``path.t_max`` to 0; ``len(times) - 1`` is the number of steps.
        """
        ...

    def learned_parts(self) -> nn.Module | None:
        """A module to be optimised along with the network, or None."""
        ...


OBJECTIVES: Registry[Objective] = Registry("objective", "fewstep.objectives")


def sampling_field(default: Any) -> Any:
    """A field that only the sampler reads: it may change without retraining."""
    return field(default=default, metadata={"sampling": True})


def sampling_fields(objective: Objective) -> dict[str, Any]:
    """The objective's sampler settings, by name."""
    return {
        f.name: getattr(objective, f.name)
        for f in fields(objective)  # type: ignore[arg-type]
        if f.metadata.get("sampling")
    }


def mean_square(error: Tensor) -> Tensor:
    """(B, ...) -> (B,): mean of squares over everything but the batch."""
    return error.square().flatten(1).mean(1)


def rand(like: Tensor, g: Generator) -> Tensor:
    """(B,) uniform numbers in [0, 1)."""
    return torch.rand(len(like), generator=g, device=like.device, dtype=like.dtype)


def randn(like: Tensor, g: Generator) -> Tensor:
    """Standard normal numbers shaped as ``like``."""
    return torch.randn(like.shape, generator=g, device=like.device, dtype=like.dtype)


def randint(low: int, high: Tensor, g: Generator) -> Tensor:
    """(B,) integers, uniform in low, ..., high - 1, with a bound of its own for each row."""
    uniform = torch.rand(len(high), generator=g, device=high.device, dtype=torch.float64)
    return low + (uniform * (high - low)).floor().long()


def full(t: float, like: Tensor) -> Tensor:
    """(B,) the same time for every row."""
    return like.new_full((len(like),), t)


def jvp(
    f: Callable[..., Tensor],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """``f(*primals)`` and its derivative along ``tangents``, in one dual-number pass.

    The value may be back-propagated: one pass serves both the loss and its tangent. Fused
    attention kernels have no forward-mode derivative in torch 2.13, hence the MATH backend.

    ``compiled`` says that the network in ``f`` is (``is_compiled``). Then the whole pass has to be:
    within an eager one, torch quietly runs a compiled network uncompiled (pytorch issue 128711).
    """
    derivative = torch.compile(_jvp) if compiled else _jvp
    with sdpa_kernel(SDPBackend.MATH):
        return derivative(f, primals, tangents)


def _jvp(
    f: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    value, tangent = torch.func.jvp(f, primals, tangents)  # type: ignore[misc]
    return value, tangent.detach()


def is_compiled(net: Net) -> bool:
    """Whether ``net`` is what torch.compile makes of a module."""
    return hasattr(net, "_orig_mod")
