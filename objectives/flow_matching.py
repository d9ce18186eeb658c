"""Flow matching (Lipman et al. 2023; Liu et al. 2023), the naive baseline of few-step methods.

    x_t = (1 - t) x + t eps,    v = dx_t/dt = eps - x
    L   = E |F(x_t, t) - v|^2,  t ~ U(0, 1), or logit(t) ~ N(mean, std^2) (Esser et al. 2024)
    sampling: dx/dt = F(x, t) from t = 1 to t = 0

Those papers and the code of SiT let time run the other way: their t is our 1 - t. On TrigFlow (Lu &
Song 2024, eq. 3-5) it is a diffusion model with v-prediction, what sCM is initialised from:

    x_t = cos(t) x + sin(t) z,  v = cos(t) z - sin(t) x,  z ~ N(0, sigma_d^2)
    L   = E |F(x_t / sigma_d, t) - v / sigma_d|^2,        log(sigma_d tan(t)) ~ N(mean, std^2)

On either path the log of the noise level, noise to signal, is normal: on the linear one it is
logit(t).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import check_choice, check_fields
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Objective, Progress
from fewstep.objectives.core.batch_math import mean_square, randn
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.core.paths import LinearPath, TrigPath
from fewstep.objectives.core.samplers import check_solver, integrate, sampling_field
from fewstep.objectives.core.times import PATH_TIMES, path_times
from fewstep.registry import added


@OBJECTIVES.register("flow_matching")
@dataclass(frozen=True)
class FlowMatching(Objective):
    """Regress the velocity of a path.

    Attributes:
        times: uniform | logit_normal, the distribution of t in training.
        t_mean, t_std: mean and standard deviation, for logit_normal, of the log of the noise level.
        solver: euler | heun | midpoint | dpmpp | adaptive. Heun and midpoint cost two network
            calls a step; adaptive (SciPy's RK45) as many as it needs, whatever the number of steps;
            dpmpp is DPM-Solver++(2M). On TrigFlow, euler takes DDIM's steps
            (``ProbabilityPath.step``).
        tolerance: adaptive's absolute and relative tolerance.
        interpolant: linear | trig, the path. sigma_d: on TrigFlow, the data's standard deviation.
    """

    times: str = "uniform"
    t_mean: float = 0.0
    t_std: float = 1.0
    solver: str = sampling_field("euler")
    tolerance: float = sampling_field(1e-4)
    interpolant: str = added("linear")
    sigma_d: float = added(0.5)

    title: ClassVar[str] = "Flow matching"

    def __post_init__(self) -> None:
        check_choice("objective.times", self.times, PATH_TIMES)
        check_fields("objective", self, "t_std tolerance sigma_d", 0, open_low=True)
        check_solver("objective.solver", self.solver)
        check_choice("objective.interpolant", self.interpolant, ("linear", "trig"))

    @property
    def path(self) -> LinearPath | TrigPath:
        return TrigPath(self.sigma_d) if self.interpolant == "trig" else LinearPath()

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        path, scale = self.path, self.path.noise_std
        t, eps = path_times(x, g, path, self.times, self.t_mean, self.t_std), randn(x, g)
        F = nets.online(path.mix(x, eps, t) / scale, t, y=y)
        return Loss(mean_square(F - path.velocity(x, eps, t) / scale), t)

    def velocity(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        scale = self.path.noise_std
        return scale * net(x_t / scale, t, y=y)

    def jump(self, net: Net, x_t: Tensor, t: Tensor, u: Tensor, y: Tensor | None) -> Tensor:
        return self.path.step(x_t, self.velocity(net, x_t, t, y), t, u)

    @torch.no_grad()
    def sample(
        self,
        net: Net,
        noise: Tensor,
        y: Tensor | None = None,
        times: int | Sequence[float] = 1,
        g: Generator | None = None,
    ) -> Tensor:
        if self.interpolant == "trig" and self.solver == "euler":
            return super().sample(net, noise, y, times, g)

        def field(x: Tensor, t: Tensor) -> Tensor:
            return self.velocity(net, x, t, y)

        path = self.path
        start, times = path.start(noise), path.times(times)
        return integrate(field, start, times, self.solver, self.tolerance, path)

    def sampler_settings(self) -> dict[str, object]:
        settings = super().sampler_settings()
        if self.solver != "adaptive":
            del settings["tolerance"]  # which no other solver has
        return settings

    def gaussian_optimum(self, flow: GaussianFlow, progress: Progress) -> Net:
        scale = self.path.noise_std
        return lambda x, t, d=None, y=None: flow.velocity(scale * x, t) / scale

    def step_cost(self) -> float:
        return 1.0
