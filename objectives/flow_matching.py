"""Flow matching (Lipman et al. 2023; Liu et al. 2023), the naive baseline of few-step methods.

    x_t = (1 - t) x + t eps,    v = dx_t/dt = eps - x
    L   = E |F(x_t, t) - v|^2,  t ~ U(0, 1), or logit(t) ~ N(mean, std^2) (Esser et al. 2024)
    sampling: dx/dt = F(x, t) from t = 1 to t = 0

Those papers and the code of SiT let time run the other way: their t is our 1 - t.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import check_choice, check_fields
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Objective, Progress
from fewstep.objectives.core.batch_math import expand, mean_square, randn
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.core.paths import LinearPath
from fewstep.objectives.core.samplers import SOLVERS, integrate, sampling_field
from fewstep.objectives.core.times import LINEAR_TIMES, linear_times


@OBJECTIVES.register("flow_matching")
@dataclass(frozen=True)
class FlowMatching(Objective):
    """Regress the velocity of the linear path.

    Attributes:
        times: uniform | logit_normal, the distribution of t in training.
        t_mean, t_std: mean and standard deviation of logit(t), for logit_normal.
        solver: euler | heun | midpoint | adaptive. Heun and midpoint cost two network calls a
            step; adaptive (SciPy's RK45) as many as it needs, whatever the number of steps.
        tolerance: adaptive's absolute and relative tolerance.
    """

    times: str = "uniform"
    t_mean: float = 0.0
    t_std: float = 1.0
    solver: str = sampling_field("euler")
    tolerance: float = sampling_field(1e-4)

    title: ClassVar[str] = "Flow matching"
    path: ClassVar[LinearPath] = LinearPath()

    def __post_init__(self) -> None:
        check_choice("objective.times", self.times, LINEAR_TIMES)
        check_fields("objective", self, "t_std tolerance", 0, open_low=True)
        check_choice("objective.solver", self.solver, SOLVERS)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        t, eps = linear_times(x, g, self.times, self.t_mean, self.t_std), randn(x, g)
        F = nets.online(self.path.mix(x, eps, t), t, y=y)
        return Loss(mean_square(F - self.path.velocity(x, eps, t)), t)

    def velocity(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return net(x_t, t, y=y)

    def jump(self, net: Net, x_t: Tensor, t: Tensor, u: Tensor, y: Tensor | None) -> Tensor:
        return x_t + expand(u - t, x_t) * net(x_t, t, y=y)

    @torch.no_grad()
    def sample(
        self,
        net: Net,
        noise: Tensor,
        y: Tensor | None = None,
        times: int | Sequence[float] = 1,
        g: Generator | None = None,
    ) -> Tensor:
        def field(x: Tensor, t: Tensor) -> Tensor:
            return net(x, t, y=y)

        return integrate(field, noise, self.path.times(times), self.solver, self.tolerance)

    def sampler_settings(self) -> dict[str, object]:
        settings = super().sampler_settings()
        if self.solver != "adaptive":
            del settings["tolerance"]  # which no other solver has
        return settings

    def gaussian_optimum(self, flow: GaussianFlow, progress: Progress) -> Net:
        return lambda x, t, d=None, y=None: flow.velocity(x, t)

    def step_cost(self) -> float:
        return 1.0
