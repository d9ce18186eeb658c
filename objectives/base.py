"""What an objective is, and the few words all of them share.

Notation, once and for all: ``x`` is data, ``eps`` is noise, ``x_t`` their mixture. ``t = 0`` is
data and t grows with noise up to ``path.t_max``. ``d`` is the length of a jump toward data,
``0 <= t - d``. A velocity points toward noise, so sampling steps against it.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Generator, Tensor, nn

from fewstep.errors import UserError
from fewstep.objectives.paths import Path
from fewstep.registry import Registry

if TYPE_CHECKING:
    from fewstep.objectives.gaussian import GaussianFlow


class Net(Protocol):
    """A network F(x, t, d, y): (B, ...) noisy input, (B,) time, (B,) jump length, (B,) class.

    ``d`` is None for objectives without jumps, ``y`` is None for "no label" in every row.
    """

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor: ...


@dataclass(frozen=True)
class Nets:
    """The networks a loss may ask: only ``online`` receives gradients.

    ``teacher`` is the velocity of the teacher's run, on this objective's path, whatever path the
    teacher was trained on. ``former`` is the online network as it was when ``Objective.freezes``
    last said so. ``learned`` is the module ``Objective.learned_parts`` handed to the trainer.
    """

    online: Net
    ema: Net
    teacher: Net | None = None
    learned: nn.Module | None = None
    former: Net | None = None

    def behind(self, which: str) -> Net:
        """The network that makes targets: ``ema`` or ``online``, to be asked without gradients.

        The online one keeps its dropout; the papers' codes that have any turn it off there.
        """
        return self.ema if which == "ema" else self.online


@dataclass(frozen=True)
class Batch:
    """``x``: (B, ...) data scaled for the network; ``y``: (B,) int64 classes or None.

    Label dropout has replaced some of ``y`` by "no label"; ``y_true`` are the classes before that.
    ``eps``: (B, ...) the noise each x belongs to, for objectives that train on stored pairs.
    """

    x: Tensor
    y: Tensor | None = None
    y_true: Tensor | None = None
    eps: Tensor | None = None

    @property
    def classes(self) -> Tensor | None:
        """(B,) the classes with none dropped."""
        return self.y if self.y_true is None else self.y_true


@dataclass(frozen=True)
class Progress:
    """Where training stands: ``step`` updates of ``total`` are done."""

    step: int
    total: int


@dataclass(frozen=True)
class Loss:
    """The unreduced loss. ``per_sample``: (B,); ``t``: (B,) the times it was taken at.

    ``d``: (B,) the jump lengths it trained, where there are any. ``logs`` holds detached scalars
    worth a curve.
    """

    per_sample: Tensor
    t: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    d: Tensor | None = None


class Objective(ABC):
    """What to regress on and how to sample: a frozen dataclass; its fields are hyperparameters.

    The defaults are the paper's; where text and code disagree, the docstring says which.
    Three members must be written: ``path``, ``loss``, and ``jump`` or ``denoise``.

    ``title`` is the name in tables; ``uses_jump`` says whether the network is asked with ``d``,
    and ``jump_is_flag`` whether that is 0 or 1 and tells two flows apart, not how far to jump;
    ``needs_teacher`` and ``needs_pairs`` whether a finished run is to be named as teacher, and
    whether (x, eps) pairs drawn from it, ``pairs`` in number, replace the data; ``shares_noise``
    whether a loss must take all its noisy inputs from the same eps.

    ``reach`` is how far one step of the trained network goes: ``step``, as far as the flow is
    straight; ``data``, to t = 0 only, so that more steps noise the result again; ``once``, from
    t_max to 0 only; ``any``.
    """

    title: ClassVar[str]
    uses_jump: ClassVar[bool] = False
    jump_is_flag: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False
    pairs: int = 0
    shares_noise: ClassVar[bool] = False
    reach: ClassVar[Literal["step", "data", "once", "any"]] = "step"

    @property
    @abstractmethod
    def path(self) -> Path:
        """The interpolant the objective is written in."""

    # ---- training ------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        """The loss of one batch; all randomness comes from ``g``."""

    def learned_parts(self) -> nn.Module | None:
        """A module to be optimised along with the network, or None."""
        return None

    def freezes(self, progress: Progress) -> bool:
        """Whether the online network, before this step, becomes ``Nets.former``."""
        return False

    def couple(self, teacher: Net, eps: Tensor, y: Tensor | None) -> Tensor:
        """The data (B, ...) that belongs to ``eps``, for objectives with ``needs_pairs``."""
        raise NotImplementedError

    @property
    def guides(self) -> bool:
        """Whether training asks the network for "no label": then some labels have to be dropped."""
        return False

    # ---- what was learned ----------------------------------------------------------------------

    def jump(self, net: Net, x_t: Tensor, t: Tensor, u: Tensor, y: Tensor | None) -> Tensor:
        """Where one step takes ``x_t`` from time ``t`` to ``u`` <= t, both (B,)."""
        raise NotImplementedError

    def denoise(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """Where one step takes ``x_t`` when it goes all the way to the data."""
        return self.jump(net, x_t, t, torch.zeros_like(t), y)

    def velocity(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """dx_t/dt of the learned flow, on ``path``; only objectives that learn one can teach.

        Raises:
            UserError: this objective learns no velocity.
        """
        raise UserError(f"{self.title} learns no velocity, so it cannot be a teacher")

    @property
    def teaches(self) -> bool:
        """Whether ``velocity`` is there."""
        return type(self).velocity is not Objective.velocity

    def sample(
        self, net: Net, noise: Tensor, y: Tensor | None, times: Sequence[float], g: Generator
    ) -> Tensor:
        """Samples from ``noise``, standard normal (B, ...), along the decreasing ``times``.

        ``times`` runs from ``path.t_max`` to 0; ``len(times) - 1`` is the number of steps. Jumps
        from time to time; with reach ``data``, jumps to the data and is noised again with fresh
        noise for the next jump (Song et al. 2023, algorithm 1).
        """
        x = self.path.start(noise)
        for t, u in pairwise(times):
            if self.reach == "data":
                x = self.denoise(net, x, full(t, x), y)
                x = self.path.mix(x, randn(x, g), full(u, x)) if u > 0 else x
            else:
                x = self.jump(net, x, full(t, x), full(u, x), y)
        return x

    def sampler_settings(self) -> dict[str, Any]:
        """The settings that tell one way of sampling from another, by name."""
        return sampling_fields(self)

    # ---- what is known about it ----------------------------------------------------------------

    def ideal(self, flow: GaussianFlow, progress: Progress) -> Net | None:
        """The network that the loss is smallest at when the data are Gaussian; None if unknown.

        ``fewstep check`` holds the loss and the sampler against it.
        """
        return None

    def step_cost(self) -> float | None:
        """FLOPs of a training step over those of flow matching, by counting passes.

        A pass forward costs 1 and one back 2, so flow matching costs 3; a pass forward with a
        tangent costs 2 (``tangent.py``). None if unknown. ``fewstep bench`` counts the FLOPs and
        compares.
        """
        return None


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


@contextlib.contextmanager
def same_dropout(like: Tensor) -> Iterator[None]:
    """Dropout inside draws the masks that the next network call after it draws again.

    A target and its prediction are to differ in the time, not in the mask (iCT, sec. 3.1).
    """
    devices = [like.device] if like.is_cuda else []
    with torch.random.fork_rng(devices):
        yield
