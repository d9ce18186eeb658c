"""Flow matching (Lipman et al. 2023; Liu et al. 2023), the naive baseline of few-step methods.

    x_t = (1 - t) x + t eps,    v = dx_t/dt = eps - x
    L   = E |F(x_t, t) - v|^2,  t ~ U(0, 1)
    sampling: dx/dt = F(x, t) from t = 1 to t = 0

Those papers and SiT let their time run the other way or call noise x_0: their t is our 1 - t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from fewstep.errors import check_choice
from fewstep.objectives.base import (
    OBJECTIVES,
    Batch,
    Loss,
    Net,
    Nets,
    Progress,
    mean_square,
    rand,
    randn,
    sampling_field,
)
from fewstep.objectives.paths import Linear
from fewstep.objectives.samplers import SOLVERS, integrate


@OBJECTIVES.register("flow_matching")
@dataclass(frozen=True)
class FlowMatching:
    """Regress the velocity of the linear path.

    Attributes:
        solver: euler | heun | midpoint; the last two cost two network calls a step.
    """

    solver: str = sampling_field("euler")

    title: ClassVar[str] = "Flow matching"
    uses_jump: ClassVar[bool] = False
    path: ClassVar[Linear] = Linear()

    def __post_init__(self) -> None:
        check_choice("objective.solver", self.solver, SOLVERS)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        t, eps = rand(x, g), randn(x, g)
        F = nets.online(self.path.mix(x, eps, t), t, y=y)
        return Loss(mean_square(F - self.path.velocity(x, eps, t)), t)

    def sample(
        self, net: Net, noise: Tensor, y: Tensor | None, times: Sequence[float], g: Generator
    ) -> Tensor:
        return integrate(lambda x, t: net(x, t, y=y), noise, times, self.solver)

    def learned_parts(self) -> None:
        return None
