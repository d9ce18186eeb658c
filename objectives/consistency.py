"""Consistency training (Song et al. 2023), as the shortcut paper's baseline writes it.

    f(x_t, t) = x_t - t F(x_t, t)                 the jump to data; f(x, 0) = x by construction
    L = E |F(x_t, t) - (x_t - f^-(x_s, s)) / t|^2,    s = t - 1/n
    x_t, x_s from the same x and the same eps;  f^- by the EMA network

t is uniform on the grid {1/n, 2/n, ..., 1}; n doubles from 1 to 2^(stages - 1) in equal shares of
the training. Source: Frans et al. 2024, appendix, and their code; their t is our 1 - t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import check_choice, check_range
from fewstep.objectives.base import (
    OBJECTIVES,
    Batch,
    Loss,
    Net,
    Nets,
    Objective,
    Progress,
    mean_square,
    randint,
    randn,
)
from fewstep.objectives.gaussian import GaussianFlow
from fewstep.objectives.paths import Linear, expand


@OBJECTIVES.register("consistency")
@dataclass(frozen=True)
class Consistency(Objective):
    """Discrete-time consistency training on the linear path.

    Attributes:
        stages: the grid has 1, 2, 4, ..., 2^(stages - 1) intervals, one size a stage.
        target: ema | online, the network behind f^-.
    """

    stages: int = 7
    target: str = "ema"

    title: ClassVar[str] = "Consistency"
    shares_noise: ClassVar[bool] = True
    reach: ClassVar = "data"
    path: ClassVar[Linear] = Linear()

    def __post_init__(self) -> None:
        check_range("objective.stages", self.stages, 1, 20)
        check_choice("objective.target", self.target, ("ema", "online"))

    def intervals(self, progress: Progress) -> int:
        """n, the number of intervals of the grid at this point of the training."""
        stage = self.stages * progress.step // max(1, progress.total)
        return int(2 ** min(stage, self.stages - 1))

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        n = self.intervals(progress)
        i = randint(1, torch.full((len(x),), n + 1, device=x.device), g)
        t, s = (i / n).to(x.dtype), ((i - 1) / n).to(x.dtype)
        eps = randn(x, g)
        x_t, x_s = self.path.mix(x, eps, t), self.path.mix(x, eps, s)
        with torch.no_grad():
            f_s = self.denoise(nets.behind(self.target), x_s, s, y)
            target = (x_t - f_s) / expand(t, x)
        return Loss(mean_square(nets.online(x_t, t, y=y) - target), t)

    def denoise(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """f(x_t, t), the jump to data."""
        return x_t - expand(t, x_t) * net(x_t, t, y=y)

    def ideal(self, flow: GaussianFlow, progress: Progress) -> Net:
        return lambda x, t, d=None, y=None: flow.average_velocity(x, t, t)

    def step_cost(self) -> float:
        return 4 / 3
