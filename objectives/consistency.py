"""Consistency training (Song et al. 2023), as the shortcut paper's baseline writes it.

    f(x_t, t) = x_t - t F(x_t, t)                 the jump to data; f(x, 0) = x by construction
    L = E |F(x_t, t) - (x_t - f^-(x_s, s)) / t|^2,    s = t - 1/n
    x_t, x_s from the same x and the same eps;  f^- by the EMA network

t is uniform on the grid {1/n, 2/n, ..., 1}; n doubles from 1 to 2^(stages - 1) in equal shares of
the training. Source: Frans et al. 2024, appendix, and their code; their t is our 1 - t.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_range
from fewstep.objectives.core.base import (
    OBJECTIVES,
    Batch,
    Loss,
    Net,
    Nets,
    Objective,
    Progress,
    check_target,
)
from fewstep.objectives.core.batch_math import expand, mean_square, randint, randn
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.core.paths import LinearPath
from fewstep.registry import added


class ConsistencyFunction(Objective):
    """What consistency training and distillation share: f on the linear path, and its loss."""

    target: str

    jump_range: ClassVar = "to_data"
    path: ClassVar[LinearPath] = LinearPath()

    def grid_times(self, x: Tensor, n: int, g: Generator) -> tuple[Tensor, Tensor]:
        """t, uniform on the grid {1/n, ..., 1}, and s = t - 1/n, both (B,)."""
        i = randint(1, torch.full((len(x),), n + 1, device=x.device), g)
        return (i / n).to(x.dtype), ((i - 1) / n).to(x.dtype)

    def regress(
        self, nets: Nets, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor, y: Tensor | None
    ) -> Loss:
        """|F(x_t, t) - (x_t - f^-(x_s, s)) / t|^2."""
        with torch.no_grad():
            f_s = self.denoise(nets.target_net(self.target), x_s, s, y)
            target = (x_t - f_s) / expand(t, x_t)
        return Loss(mean_square(nets.online(x_t, t, y=y) - target), t)

    def denoise(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """f(x_t, t), the jump to data."""
        return x_t - expand(t, x_t) * net(x_t, t, y=y)

    def gaussian_optimum(self, flow: GaussianFlow, progress: Progress) -> Net:
        return lambda x, t, d=None, y=None: flow.average_velocity(x, t, t)


@OBJECTIVES.register("consistency")
@dataclass(frozen=True)
class Consistency(ConsistencyFunction):
    """Discrete-time consistency training on the linear path.

    Attributes:
        stages: the grid has 1, 2, 4, ..., 2^(stages - 1) intervals, one size a stage.
        target: ema | online, the network behind f^-. target_decay: of that average, whatever is
            evaluated; None for the same.
        adaptive_decay: whether the decay grows with the grid from target_decay, mu, at the coarsest
            one: mu^(2 / (n + 1)) (Song et al. 2023, appendix C, whose N is n + 1).
    """

    stages: int = 7
    target: str = "ema"
    target_decay: float | None = added(None)
    adaptive_decay: bool = added(False)

    title: ClassVar[str] = "Consistency"
    shares_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_range("objective.stages", self.stages, 1, 20)
        check_target(self)
        if self.adaptive_decay and self.target_decay is None:
            raise UserError("objective.adaptive_decay needs objective.target_decay, got null")

    def target_decay_at(self, progress: Progress) -> float | None:
        if self.target_decay is None or not self.adaptive_decay:
            return self.target_decay
        return float(self.target_decay ** (2 / (self.intervals(progress) + 1)))

    def intervals(self, progress: Progress) -> int:
        """n, the number of intervals of the grid at this point of the training."""
        stage = self.stages * progress.step // max(1, progress.total)
        return int(2 ** min(stage, self.stages - 1))

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        n = self.intervals(progress)
        t, s = self.grid_times(x, n, g)
        eps = randn(x, g)
        return self.regress(nets, self.path.mix(x, eps, t), t, self.path.mix(x, eps, s), s, y)

    def step_cost(self) -> float:
        return 4 / 3
