"""Shortcut models with continuous times and lengths: any step, any schedule.

    d = 0:  F(x_t, t, 0) -> eps - x,   t ~ U(0, 1)
    d > 0:  F(x_t, t, d) -> (s1 + s2) / 2,   t ~ U(d_min, 1),  d ~ U(d_min, t)
            s1 = F(x_t, t, d/2),  x' = x_t - d/2 s1,  s2 = F(x', t - d/2, d/2)
    L = mean over the rows with d = 0 + mean over those with d > 0

Follows an unofficial PyTorch version of shortcut models rather than a paper: a quarter of the rows
for self-consistency, d_min = 1/128, targets from the online network without gradient. Its time
runs the other way: its t is our 1 - t. Because d is drawn up to t, the jump of length 1 is trained
too, which re-implementations with d <= 1/2 forget. A linear embedding of d suits it
(``backbone.jump_embedding=linear``): log2(1/d) is steep where d is small.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import check_range
from fewstep.objectives.core.average_velocity import AverageVelocity
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Progress, check_target
from fewstep.objectives.core.batch_math import expand, mean_square, rand, randn
from fewstep.objectives.core.paths import LinearPath
from fewstep.objectives.core.samplers import sampling_field
from fewstep.registry import added


@OBJECTIVES.register("shortcut_continuous")
@dataclass(frozen=True)
class ShortcutContinuous(AverageVelocity):
    """Self-consistency of jumps of every length.

    Attributes:
        bootstrap_share: share of the batch's rows that train self-consistency, below 1.
        smallest: d_min, the shortest jump that is trained.
        target: ema | online, the network that makes the two half jumps. target_decay: of that
            average, whatever is evaluated; None for the same.
        as_flow: sample with d = 0 at every step, as plain flow matching.
    """

    bootstrap_share: float = 0.25
    smallest: float = 1 / 128
    target: str = "online"
    as_flow: bool = sampling_field(False)
    target_decay: float | None = added(None)

    title: ClassVar[str] = "Shortcut, continuous"
    path: ClassVar[LinearPath] = LinearPath()

    def __post_init__(self) -> None:
        check_range("objective.bootstrap_share", self.bootstrap_share, 0, 0.99)
        check_range("objective.smallest", self.smallest, 0, 0.5, open_low=True)
        check_target(self)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        t, eps = rand(x, g), randn(x, g)
        # the first rows train jumps, and at least one flow matching
        n = min(math.ceil(self.bootstrap_share * len(x)), len(x) - 1)
        d = torch.zeros_like(t)
        t[:n] = 1 - (1 - self.smallest) * t[:n]
        d[:n] = self.smallest + (t[:n] - self.smallest) * rand(x[:n], g)

        x_t = self.path.mix(x, eps, t)
        target = self.path.velocity(x, eps, t)
        if n:
            kept = None if batch.undropped_y is None else batch.undropped_y[:n]
            target[:n] = self.two_halves(nets.target_net(self.target), x_t[:n], t[:n], d[:n], kept)
            y = None if y is None or kept is None else torch.cat([kept, y[n:]])
        error = mean_square(nets.online(x_t, t, d, y) - target)
        logs = {"loss_flow": error[n:].detach().mean()}
        if n:
            logs["loss_bootstrap"] = error[:n].detach().mean()
        rows = len(x)  # weighted so that the mean over all rows is the sum of the two means
        flowing = torch.arange(rows, device=x.device) >= n
        weight = torch.where(flowing, rows / (rows - n), rows / max(n, 1))
        return Loss(weight.to(error) * error, t, logs, d)

    def jump(self, net: Net, x_t: Tensor, t: Tensor, u: Tensor, y: Tensor | None) -> Tensor:
        if self.as_flow:
            return x_t - expand(t - u, x_t) * self.velocity(net, x_t, t, y)
        return super().jump(net, x_t, t, u, y)

    def step_cost(self) -> float:
        return (3 + 2 * self.bootstrap_share) / 3
