"""What the checks stand on: data with closed forms, every network of a loss, a record of calls."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Generator, Tensor, nn

from fewstep.objectives.core.base import Batch, Loss, Net, Nets, Objective, Progress
from fewstep.objectives.core.batch_math import expand
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.core.paths import ProbabilityPath

STD = 0.7  # of the data; neither 1 nor sigma_d, so that a factor left out shows
GENERATED = 1.3  # of samples, that are not the data's
TOTAL = 10**6
END = Progress(TOTAL - 1, TOTAL)  # warm-ups are over, the last stage is reached

Result = tuple[bool | None, str]
"""Whether a check held (None: not taken), and why, with the measured number and its limit."""


class CheckFailed(Exception):
    """A check does not hold; the message says why."""


def require(held: bool, detail: str) -> None:
    """Raise ``CheckFailed`` unless ``held``."""
    if not held:
        raise CheckFailed(detail)


def verdict(*measured: tuple[str, float, float]) -> Result:
    """Held if each (what, number, limit) stays within its limit.

    Tells all that do not, or else the one nearest its limit.
    """
    bad = [m for m in measured if not m[1] <= m[2]]  # NaN is bad
    shown = bad or [max(measured, key=lambda m: m[1] / m[2] if m[2] else 0.0)]
    lines = [f"{what}: {n:.2g} (limit {limit:.2g})" for what, n, limit in shown]
    return not bad, "; ".join(lines)


def rel_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected number (if above 1)."""
    if actual.shape != expected.shape:
        return float("inf")
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1.0))


@dataclass(frozen=True)
class Call:
    """One question to a network; ``grad``, whether its answer can be back-propagated."""

    x: Tensor
    t: Tensor
    d: Tensor | None
    y: Tensor | None
    grad: bool


@dataclass(frozen=True)
class CallRecorder:
    """A network that records its calls."""

    net: Net
    calls: list[Call] = field(default_factory=list)

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        self.calls.append(Call(x.detach(), t.detach(), d, y, torch.is_grad_enabled()))
        return self.net(x, t, d, y)


def linear_test_net(
    x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
) -> Tensor:
    """A network that is no optimum, parallel to its input."""
    return x * expand(0.3 + 0.2 * t + (0 if d is None else 0.1 * d), x)


def nonlinear_test_net(
    x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
) -> Tensor:
    """A network that is no optimum and curved in every input."""
    phase = t if d is None else t + 0.7 * d * d
    return torch.sin(1.3 * x + expand(phase, x)) * expand(1 + 0.5 * t * t, x)


@dataclass(frozen=True)
class Case:
    """An objective on data N(0, STD^2 I), near the end of its training."""

    objective: Objective

    @property
    def path(self) -> ProbabilityPath:
        return self.objective.path

    @cached_property
    def flow(self) -> GaussianFlow:
        return GaussianFlow(self.path, STD)

    @cached_property
    def optimum(self) -> Net | None:
        """The network the loss is smallest at, if the objective gives it."""
        return self.objective.gaussian_optimum(self.flow, END)

    @property
    def test_net(self) -> Net:
        """The ideal network, or one parallel to its input all the same."""
        return linear_test_net if self.optimum is None else self.optimum

    @cached_property
    def snapshot(self) -> Net:
        """The optimum just before the last step with ``takes_snapshot``."""
        total = 1000
        frozen = [k for k in range(total) if self.objective.takes_snapshot(Progress(k, total))]
        before = Progress(max(frozen[-1] - 1, 0), total) if frozen else END
        return self.objective.gaussian_optimum(self.flow, before) or linear_test_net

    def teacher(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """The data's own velocity."""
        assert d is None, "a teacher gives velocities: call it with d=None"
        return self.flow.velocity(x, t)

    @cached_property
    def auxiliary(self) -> nn.Module | None:
        return self.objective.auxiliary_module()

    @property
    def companion_is_known(self) -> bool:
        """Whether there is no companion, or one that is best for Gaussian samples."""
        best = self.objective.gaussian_companion(GaussianFlow(self.path, STD))
        return not self.objective.companion_updates or best is not None

    @property
    def trains_auxiliary(self) -> bool:
        """Whether the loss trains the auxiliary module."""
        return True

    def companion_of(self, net: Net) -> Net | None:
        """The best companion of a network whose samples are a multiple of the noise."""
        noise = self.noise(1, 0, (64,))
        return self.companion_at(float(self.sample(net, noise, 1).norm() / noise.norm()))

    def companion_at(self, std: float) -> Net | None:
        """The best companion where samples have that standard deviation; None for no companion."""
        if not self.objective.companion_updates:
            return None
        return self.objective.gaussian_companion(GaussianFlow(self.path, std)) or linear_test_net

    @property
    def makes_pairs(self) -> bool:
        """Whether it trains on pairs of noise and data, given to it or made by itself."""
        return type(self.objective).make_pairs is not Objective.make_pairs

    def paired_data(self, eps: Tensor, y: Tensor | None = None) -> Tensor:
        """The data that the objective pairs with ``eps``."""
        teacher = self.teacher if self.objective.needs_pairs else self.test_net
        return self.objective.make_pairs(teacher, eps, y)

    def nets(
        self,
        online: Net | None = None,
        ema: Net | None = None,
        snapshot: Net | None = None,
        teacher: Net | None = None,
        companion: Net | None = None,
    ) -> Nets:
        """Every network a loss may call, the optimum where not given."""
        return Nets(
            online=online or self.test_net,
            ema=ema or self.test_net,
            teacher=teacher or self.teacher,
            auxiliary=self.auxiliary,
            snapshot=snapshot or self.snapshot,
            weak_teacher=self.teacher,
            companion=companion or self.companion_at(GENERATED),
        )

    def batch(
        self, rows: int, seed: int, shape: Sequence[int] = (2,), y: Tensor | None = None
    ) -> Batch:
        """``rows`` data shaped ``shape`` in float64; pairs where the objective trains on them."""
        eps = self.noise(rows, seed, shape)
        if self.objective.needs_pairs:
            return Batch(self.paired_data(eps, y), y, eps=eps)
        return Batch(STD * eps, y)

    def noise(self, rows: int, seed: int, shape: Sequence[int] = (2,)) -> Tensor:
        """Standard normal noise in float64."""
        return torch.randn(rows, *shape, generator=g(seed), dtype=torch.float64)

    def loss(self, nets: Nets, batch: Batch, seed: int, progress: Progress = END) -> Loss:
        return self.objective.loss(nets, batch, progress, g(seed))

    def sample(
        self,
        net: Net,
        noise: Tensor,
        steps: int | Sequence[float],
        seed: int = 0,
        y: Tensor | None = None,
    ) -> Tensor:
        with torch.no_grad():
            return self.objective.sample(net, noise, y, self.path.times(steps), g(seed))


def g(seed: int) -> Generator:
    """A generator of its own."""
    return Generator().manual_seed(seed)
