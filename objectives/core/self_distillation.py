"""What the self-distillations of flow maps share (Boffi, Albergo & Vanden-Eijnden 2025).

    X(t -> s) = x_t - d F(x_t, t, d),   d = t - s         the flow map; F(x_t, t, 0) is the velocity
    L = exp(-w(t, d)) |r|^2 / D + w(t, d)                 w is learned
    d = 0, in ``flow_share`` of the rows:  r = F(x_t, t, 0) - (eps - x),  t ~ U(0, 1)
    d > 0:  r is what X leaves of an identity of exact flow maps,  t > s two draws of U(0, 1)

Three identities, three objectives: ``lsd`` (in s), ``esd`` (in t), ``psd`` (two jumps make one).
Times, weight and targets (the network's own) are those of the authors' code, read in a fork of
github.com/nmboffi/flow-maps; three quarters of flow matching are those of forks' configurations.
Their |r|^2 is the sum, which only shifts w by log D. Their time is our 1 - t: their s, where a jump
begins, is our t.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from fewstep.errors import check_choice, check_range
from fewstep.objectives.core.average_velocity import AverageVelocity
from fewstep.objectives.core.base import Batch, Loss, Nets, Progress, check_target
from fewstep.objectives.core.batch_math import mean_square, rand, randn
from fewstep.objectives.core.learned_weight import LogWeight
from fewstep.objectives.core.paths import LinearPath


@dataclass(frozen=True)
class SelfDistillation(AverageVelocity):
    """Flow matching, and an identity of its flow map.

    Attributes:
        flow_share: share of the batch's rows that train flow matching, above 0.
        weight: learned | none, w of the loss.
        target: ema | online, the network behind what is not back-propagated. target_decay: of that
            average, whatever is evaluated; None for the same.
    """

    flow_share: float = 0.75
    weight: str = "learned"
    target: str = "online"
    target_decay: float | None = None

    path: ClassVar[LinearPath] = LinearPath()

    def __post_init__(self) -> None:
        check_range("objective.flow_share", self.flow_share, 0, 1, open_low=True)
        check_choice("objective.weight", self.weight, ("learned", "none"))
        check_target(self)

    @abstractmethod
    def residual(
        self, nets: Nets, x_t: Tensor, t: Tensor, d: Tensor, y: Tensor | None, g: Generator
    ) -> Tensor:
        """r of jumps from ``x_t``, (B, ...)."""

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        # the first rows train jumps, and at least one flow matching
        n = min(round((1 - self.flow_share) * len(x)), len(x) - 1)
        a, b, eps = rand(x, g), rand(x, g), randn(x, g)
        jumps = torch.arange(len(x), device=x.device) < n
        t = torch.where(jumps, torch.maximum(a, b), a)
        d = torch.where(jumps, (a - b).abs(), torch.zeros_like(a))
        x_t, v = self.path.mix(x, eps, t), self.path.velocity(x, eps, t)

        y_jump, y_flow = (None, None) if y is None else (y[:n], y[n:])
        parts = [nets.online(x_t[n:], t[n:], d[n:], y_flow) - v[n:]]
        if n:
            parts.insert(0, self.residual(nets, x_t[:n], t[:n], d[:n], y_jump, g))
        error = mean_square(torch.cat(parts))
        logs = {"loss_flow": error[n:].detach().mean()}
        if n:
            logs["loss_jump"] = error[:n].detach().mean()
        if self.weight == "learned":
            w = nets.auxiliary(t, d)
            error = (-w).exp() * error + w
        return Loss(error, t, logs, d)

    def auxiliary_module(self) -> nn.Module | None:
        return LogWeight(inputs=2) if self.weight == "learned" else None
