"""Lagrangian self-distillation, LSD (Boffi, Albergo & Vanden-Eijnden 2025).

    dX(t -> s)/ds = v(X(t -> s), s)                  where a jump ends, it moves with the flow
    r = F + d dF/dd - sg F(sg X, s, 0)               at (x_t, t, d),  d = t - s,  X = x_t - d F

The derivative in d is back-propagated; no derivative in space is taken.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.objectives.core.base import OBJECTIVES, Nets
from fewstep.objectives.core.batch_math import expand
from fewstep.objectives.core.self_distillation import SelfDistillation
from fewstep.objectives.core.tangent import jvp


@OBJECTIVES.register("lsd")
@dataclass(frozen=True)
class LSD(SelfDistillation):
    """Jumps whose ends move with the learned flow; see ``SelfDistillation`` for the settings."""

    title: ClassVar[str] = "LSD"

    def residual(
        self, nets: Nets, x_t: Tensor, t: Tensor, d: Tensor, y: Tensor | None, g: Generator
    ) -> Tensor:
        net, length = nets.online, expand(d, x_t)
        F, dF = jvp(
            net, lambda d: net(x_t, t, d, y), (d,), (torch.ones_like(d),), keep_gradient=True
        )
        with torch.no_grad():
            end = x_t - length * F
            v = nets.target_net(self.target)(end, t - d, torch.zeros_like(d), y)
        return F + length * dF - v

    def step_cost(self) -> float:
        return (3 + 4 * (1 - self.flow_share)) / 3
