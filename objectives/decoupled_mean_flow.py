"""Decoupled MeanFlow, DMF (Lee, Yu & Shin 2025, arXiv:2510.24474).

    L = (l(|F(x_q, q, 0) - v_g|^2 / D, w(q, 0)) + l(|F - sg(v_g - d du/dt)|^2 / D, w(t, d))) / 2
    l(e, w) = log(e exp(-w) + c) + w                     w is learned
    du/dt = JVP(F; (v_g, 1, 1) in (x_t, t, d))           MeanFlow's, at (x_t, t, d)

As in the authors' code (github.com/kyungmnlee/dmf, loss.py and its script for ImageNet-256): every
row has both terms, each with its own noise; logit q ~ N(0, 1); t and s = t - d are the larger and
the smaller of two draws, logit N(0.4, 1) and N(-1.2, 1). Their guidance is MeanFlow's with w = 1:
v_g = v + k (F(x_t, t, 0, y) - F(x_t, t, 0, none)), with k = 0.6 for t up to 0.7.

What the method is named for is the network: only its last blocks are told where a jump ends
(``backbone.jump_blocks``), so that it can start from a flow. w of theirs takes both times.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from fewstep.errors import UserError, check_fields
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Nets, Progress
from fewstep.objectives.core.batch_math import mean_square, randn
from fewstep.objectives.core.learned_weight import LogWeight
from fewstep.objectives.core.times import logit_normal
from fewstep.objectives.mean_flow import MeanFlow


@OBJECTIVES.register("decoupled_mean_flow")
@dataclass(frozen=True)
class DecoupledMeanFlow(MeanFlow):
    """MeanFlow and flow matching in every row, for networks of which only a part knows the jump.

    Attributes:
        t_mean, t_std: mean and standard deviation of the logit of one end of a jump.
        end_mean, end_std: of the other.
        flow_mean, flow_std: of the times of flow matching.
        c: offset of the logarithm.
        guidance, mixing: w and k of the guidance trained in; 1 and 0 for none.
        guidance_interval: [from, to], the times t at which it acts.
        tangent_step: h of du/dt by central differences over +-h, in place of the exact tangent.
        jump_share: 1. p: 1, the logarithm's.
    """

    jump_share: float = 1.0
    t_mean: float = 0.4
    end_mean: float = -1.2
    end_std: float = 1.0
    flow_mean: float = 0.0
    flow_std: float = 1.0

    title: ClassVar[str] = "DMF"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields("objective", self, "end_std flow_std", 0, open_low=True)
        for name in ("jump_share", "p"):
            if getattr(self, name) != 1:
                raise UserError(
                    f"objective.{name} is MeanFlow's and must be 1, got {getattr(self, name):g}"
                )

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y, net = batch.x, batch.y, nets.online
        q, eps = logit_normal(x, g, self.flow_mean, self.flow_std), randn(x, g)
        x_q, v = self.path.mix(x, eps, q), self.path.velocity(x, eps, q)
        zero = torch.zeros_like(q)
        flow = mean_square(net(x_q, q, zero, y) - self.guided(net, x_q, q, v, batch))

        t, d = self.times(x, len(x), g)
        eps = randn(x, g)
        x_t, v = self.path.mix(x, eps, t), self.path.velocity(x, eps, t)
        F, target = self.identity(net, x_t, t, d, self.guided(net, x_t, t, v, batch), y, len(x))
        jump = mean_square(F - target)

        terms = self.log(flow, nets.auxiliary(q, zero)) + self.log(jump, nets.auxiliary(t, d))
        logs = {"loss_flow": flow.detach().mean(), "loss_jump": jump.detach().mean()}
        return Loss(terms / 2, t, logs, d)

    def log(self, error: Tensor, w: Tensor) -> Tensor:
        """log(e exp(-w) + c) + w, (B,)."""
        return (error * (-w).exp() + self.c).log() + w

    def times(self, x: Tensor, n: int, g: Generator) -> tuple[Tensor, Tensor]:
        a = logit_normal(x, g, self.t_mean, self.t_std)
        b = logit_normal(x, g, self.end_mean, self.end_std)
        return torch.maximum(a, b), (a - b).abs()

    def auxiliary_module(self) -> nn.Module:
        return LogWeight(inputs=2)

    def step_cost(self) -> float:
        guidance = 0 if self.guidance == 1 and self.mixing == 0 else 1 + (self.mixing > 0)
        tangent = 4 if self.tangent_step is None else 5
        return (3 + tangent + 2 * guidance) / 3
