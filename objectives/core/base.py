"""The interface of an objective, and the types and functions that all of them share.

Notation: ``x`` is data, ``eps`` is noise, ``x_t`` their mixture. ``t = 0`` is
data and t grows with noise up to ``path.t_max``. ``d`` is the length of a jump toward data,
``0 <= t - d``. A velocity points toward noise, so sampling steps against it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Generator, Tensor, nn

from fewstep.deprecation import OldMember, OldName, is_own, renamed, renamed_arguments, warn
from fewstep.errors import UserError, check_choice
from fewstep.objectives.core.batch_math import full, randn
from fewstep.objectives.core.paths import ProbabilityPath
from fewstep.objectives.core.samplers import sampling_fields
from fewstep.registry import Registry

if TYPE_CHECKING:
    from fewstep.objectives.core.gaussian import GaussianFlow


T = TypeVar("T")


class Net(Protocol):
    """A network F(x, t, d, y): (B, ...) noisy input, (B,) time, (B,) jump length, condition.

    ``d`` is None for objectives without jumps. ``y`` is (B,) int64 classes or (B, k) float vectors;
    None stands for "no condition" in every row, and so does, in its row, the class after the last
    one or a vector of NaN (``nn.Module``s of one's own see these only after label dropout).
    """

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor: ...


class Nets:
    """The networks that a loss may call; gradients reach only ``online`` and ``auxiliary``.

    ``online`` is the network in training and ``ema`` the average of its weights (``online``
    itself if none is passed). The others are needed by some objectives only: at the first use of
    one that was not passed, ``UserError`` says what to pass. Gradients of ``companion_loss`` reach
    only ``companion``.
    """

    @renamed_arguments(learned="auxiliary", former="snapshot")
    def __init__(
        self,
        online: Net,
        ema: Net | None = None,
        teacher: Net | None = None,
        auxiliary: nn.Module | None = None,
        snapshot: Net | None = None,
        weak_teacher: Net | None = None,
        companion: Net | None = None,
    ) -> None:
        self.online, self.ema = online, online if ema is None else ema
        self._teacher, self._auxiliary, self._snapshot = teacher, auxiliary, snapshot
        self._weak_teacher, self._companion = weak_teacher, companion

    @property
    def teacher(self) -> Net:
        """The velocity of a trained network, on this objective's path (see ``Teacher``)."""
        return _passed(self._teacher, "teacher=Teacher(its_objective, its_net, objective.path)")

    def teacher_on(self, path: ProbabilityPath, role: str = "teacher") -> Net:
        """``teacher``, or ``weak_teacher``; ``UserError`` where it is on another path."""
        teacher: Net = getattr(self, role)
        if (its := getattr(teacher, "path", path)) != path:
            raise UserError(f"Nets.{role} gives velocities on {its}, this objective needs {path}")
        return teacher

    @property
    def weak_teacher(self) -> Net:
        """As ``teacher``, of a worse one: what both get wrong, guidance takes away."""
        argument = "weak_teacher=Teacher(its_objective, its_net, objective.path)"
        return _passed(self._weak_teacher, argument)

    @property
    def auxiliary(self) -> nn.Module:
        """``Objective.auxiliary_module()``, made once and optimised along with ``online``."""
        what = ", made once and optimised"
        return _passed(self._auxiliary, "auxiliary=objective.auxiliary_module()", what)

    @property
    def snapshot(self) -> Net:
        """``online`` as it was when ``Objective.takes_snapshot`` last said so."""
        what = ", of the network when takes_snapshot() last held"
        return _passed(self._snapshot, "snapshot=copy", what)

    @property
    def companion(self) -> Net:
        """A second network, trained by ``Objective.companion_loss``; constant to ``loss``."""
        what = ", trained by objective.companion_loss"
        return _passed(self._companion, "companion=copy", what)

    def target_net(self, which: str) -> Net:
        """The network that makes targets, ``ema`` or ``online``; call it without gradients.

        The online one keeps its dropout; the papers' codes that have any turn it off there.
        """
        return self.ema if which == "ema" else self.online

    learned = OldName("_auxiliary")  # None where it was not passed, as in version 0.1
    former = OldName("_snapshot")
    behind = OldName("target_net")


def _passed(network: T | None, argument: str, what: str = "") -> T:
    if network is None:
        name = argument.partition("=")[0]
        raise UserError(f"this objective needs Nets.{name}: pass Nets(net, {argument}){what}")
    return network


@dataclass(frozen=True)
class Batch:
    """``x``: (B, ...) data scaled for the network; ``y``: conditions, see ``Net``, or None.

    Label dropout has replaced some of ``y`` by "no condition"; ``y_true`` is ``y`` before that.
    ``eps``: (B, ...) the noise each x belongs to, for objectives that train on stored pairs.
    """

    x: Tensor
    y: Tensor | None = None
    y_true: Tensor | None = None
    eps: Tensor | None = None

    @property
    def undropped_y(self) -> Tensor | None:
        """The conditions with none dropped."""
        return self.y if self.y_true is None else self.y_true

    classes = OldName("undropped_y")


@dataclass(frozen=True)
class Progress:
    """Where training stands: ``step`` updates of ``total`` are done.

    ``turn``: for what goes round from step to step, and is no schedule; by default the step. A
    validation loss takes the same turns at every step.
    """

    step: int
    total: int
    turn: int | None = None


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


def check_target(objective: "Objective") -> None:
    """Of an objective with the settings ``target``, ema or online, and ``target_decay``."""
    target, decay = objective.target, objective.target_decay  # type: ignore[attr-defined]
    check_choice("objective.target", target, ("ema", "online"))
    if decay is not None and not 0 <= decay < 1:
        raise UserError(f"objective.target_decay must be at least 0 and less than 1, got {decay!r}")
    if decay is not None and target != "ema":
        raise UserError(
            f"objective.target_decay is the decay of an average, got {decay:g} with "
            f"objective.target={target}: set it to null"
        )


class Objective(ABC):
    """What to regress on and how to sample: a frozen dataclass; its fields are hyperparameters.

    The defaults are the paper's; where text and code disagree, the docstring says which.
    Three members must be written: ``path``, ``loss``, and ``jump`` or ``denoise``.

    ``title`` is the name in tables; ``uses_jump`` says whether the network is called with ``d``,
    and ``jump_is_flag`` whether ``d`` is 0 or 1 and selects one of two flows;
    ``needs_teacher`` and ``needs_pairs`` whether a finished run is to be named as teacher, and
    whether (x, eps) pairs drawn from it, ``pairs`` in number, replace the data; ``continues``
    whether the run must start from the weights of a finished run that jumps as far;
    ``shares_noise`` whether a loss must take all its noisy inputs from the same eps;
    ``group_size`` how many consecutive rows of a batch belong together, a divisor of the batch size
    (``in_groups``). A loss sees the whole batch, whatever processes and micro-batches compute it.

    ``target_decay`` is the decay of ``Nets.ema``, the average of the network's weights that makes
    targets; None takes the average that is evaluated, whose decay the training decides.

    ``jump_range`` is how far one step of the trained network goes: ``ode``, as far as the flow is
    straight; ``to_data``, to t = 0 only, so that more steps noise the result again; ``one_step``,
    from t_max to 0 only; ``any``.

    ``companion_updates`` is how often, before each update of the network, ``Nets.companion`` is
    updated by ``companion_loss``; 0 for objectives without a companion. It begins as a copy of the
    network, and has an optimiser of its own.
    """

    title: ClassVar[str]
    uses_jump: ClassVar[bool] = False
    jump_is_flag: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False
    continues: ClassVar[bool] = False
    pairs: int = 0
    group_size: int = 1
    target_decay: float | None = None
    companion_updates: int = 0
    shares_noise: ClassVar[bool] = False
    jump_range: ClassVar[Literal["ode", "to_data", "one_step", "any"]] = "ode"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Add the new names of members that the class or a mixin of it calls as version 0.1 did."""
        super().__init_subclass__(**kwargs)
        for old, new in RENAMED.items():
            owner = next(c for c in cls.__mro__ if new in vars(c) or is_own(c, old))
            if is_own(owner, old) and new not in vars(owner):
                warn(f"{owner.__name__}.{old}", new, stacklevel=4)
                value = vars(owner)[old]
                setattr(cls, new, _translated(value, JUMP_RANGES) if old == "reach" else value)
            elif owner is cls:
                setattr(cls, old, _old_member(old, vars(cls)[new]))

    @property
    @abstractmethod
    def path(self) -> ProbabilityPath:
        """The interpolant the objective is written in."""

    # ---- training ------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        """The loss of one batch; all randomness comes from ``g``.

        It may go back through ``nets.companion`` and ``nets.teacher`` to their inputs: the trainer
        keeps their weights out of it.
        """

    def companion_loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        """The loss of ``nets.companion``, taken where ``nets.online`` is constant."""
        raise NotImplementedError

    def auxiliary_module(self) -> nn.Module | None:
        """A module to be optimised along with the network, or None."""
        return None

    def takes_snapshot(self, progress: Progress) -> bool:
        """Whether the online network, before this step, becomes ``Nets.snapshot``."""
        return False

    @property
    def has_snapshots(self) -> bool:
        """Whether ``takes_snapshot`` is there."""
        return type(self).takes_snapshot is not Objective.takes_snapshot

    def target_decay_at(self, progress: Progress) -> float | None:
        """``target_decay`` of this step."""
        return self.target_decay

    def make_pairs(self, teacher: Net, eps: Tensor, y: Tensor | None) -> Tensor:
        """The data (B, ...) that belongs to ``eps``, for objectives with ``needs_pairs``."""
        raise NotImplementedError

    @property
    def needs_weak_teacher(self) -> bool:
        """Whether the loss asks ``Nets.weak_teacher``."""
        return False

    @property
    def uses_guidance(self) -> bool:
        """Whether training calls the network without condition: it then needs label dropout."""
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

        Raises ``UserError``: this objective learns no velocity.
        """
        raise UserError(f"{self.title} learns no velocity, so it cannot be a teacher")

    @property
    def can_teach(self) -> bool:
        """Whether ``velocity`` is there."""
        return type(self).velocity is not Objective.velocity

    @torch.no_grad()
    def sample(
        self,
        net: Net,
        noise: Tensor,
        y: Tensor | None = None,
        times: int | Sequence[float] = 1,
        g: Generator | None = None,
    ) -> Tensor:
        """Samples from ``noise``, standard normal (B, ...), along the decreasing ``times``.

        ``times`` is a number of steps, uniform in the path's time, or the times themselves, which
        fall from ``path.t_max`` to 0. Jumps from time to time; with jump_range ``to_data``, jumps
        to the data and is noised again with fresh noise for the next jump (Song et al. 2023,
        algorithm 1). ``g`` draws that noise; None takes torch's own generator.
        """
        x = self.path.start(noise)
        for t, u in pairwise(self.path.times(times)):
            if self.jump_range == "to_data":
                x = self.denoise(net, x, full(t, x), y)
                x = self.path.mix(x, randn(x, g), full(u, x)) if u > 0 else x
            else:
                x = self.jump(net, x, full(t, x), full(u, x), y)
        return x

    def sampler_settings(self) -> dict[str, Any]:
        """The settings that change the sampling, by name."""
        return sampling_fields(self)

    # ---- what is known about it ----------------------------------------------------------------

    def gaussian_optimum(self, flow: "GaussianFlow", progress: Progress) -> Net | None:
        """The network that the loss is smallest at when the data are Gaussian; None if unknown.

        ``fewstep check`` holds the loss and the sampler against it.
        """
        return None

    def gaussian_companion(self, flow: "GaussianFlow") -> Net | None:
        """The companion that ``companion_loss`` is smallest at when the samples are Gaussian.

        None if unknown. ``fewstep check`` holds both losses against it.
        """
        return None

    def step_cost(self) -> float | None:
        """FLOPs of a training step over those of flow matching, by counting passes.

        A pass forward costs 1 and one back 2, so flow matching costs 3; a pass forward with a
        tangent costs 2 (``tangent.py``), and one back to the input alone, of a network with
        constant weights, 1. Updates of a companion count. None if unknown. ``fewstep bench`` counts
        the FLOPs and compares.
        """
        return None

    def forward_passes(self) -> float | None:
        """Passes forward of ``loss``, as a validation loss takes them; None if unknown."""
        cost = self.step_cost()
        return None if cost is None else 3 * cost - 2  # all of a step, less the one back


# members of Objective by their names in version 0.1
RENAMED = {
    "reach": "jump_range", "ideal": "gaussian_optimum", "learned_parts": "auxiliary_module",
    "freezes": "takes_snapshot", "couple": "make_pairs", "guides": "uses_guidance",
    "teaches": "can_teach",
}  # fmt: skip
JUMP_RANGES = {"step": "ode", "data": "to_data", "once": "one_step", "any": "any"}


def _old_member(old: str, value: Any) -> OldMember:
    ranges = {new: old for old, new in JUMP_RANGES.items()}
    return OldMember(old, RENAMED[old], _translated(value, ranges) if old == "reach" else value)


def _translated(value: Any, words: Mapping[str, str]) -> Any:
    """A jump range in other ``words``: a string, or a property that gives one."""
    if isinstance(value, str):
        return words.get(value, value)
    return property(lambda self: _translated(value.__get__(self, type(self)), words))


for _old, _new in RENAMED.items():
    setattr(Objective, _old, _old_member(_old, vars(Objective)[_new]))

OBJECTIVES: Registry[Objective] = Registry("objective", "fewstep.objectives")


if not TYPE_CHECKING:
    _MOVED = dict.fromkeys(("mean_square", "rand", "randint", "same_dropout"), "batch_math")
    _MOVED["sampling_field"] = "samplers"
    _HOMES = {name: f"fewstep.objectives.core.{home}:{name}" for name, home in _MOVED.items()}
    __getattr__ = renamed(__name__, _HOMES)
