"""SoFlow, solution flow models (Luo, Yuan & Liu 2025, arXiv:2512.15657).

    X(t -> s) = x_t - d F(x_t, t, d),   d = t - s          the flow's solution; F(x_t, t, 0) = v
    X(t -> s) = sg X(l -> s) from x_l = x_t - (t - l) v,   l = t - h d:  a step of the sample's own
                                                           velocity v = eps - x, and the rest
    that is F(x_t, t, d) -> h v + (1 - h) sg F(x_l, l, (1 - h) d);   v itself where d = 0
    L = |F - sg(...)|^2 / h / sg(|F - sg(...)|^2 / h^2 + c)^p

No derivative: as h -> 0 the gradient becomes MeanFlow's, which is why it is divided by h (and the
squared error in the weight by h^2). h falls exponentially along the training. Their parametrisation
is the one called Euler's. The paper's equations are from summaries of it; the schedule's ends,
shares of rows, times and weight are not the paper's but MeanFlow's and ours.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_fields
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Progress
from fewstep.objectives.core.batch_math import expand, randn
from fewstep.objectives.mean_flow import MeanFlow


@OBJECTIVES.register("soflow")
@dataclass(frozen=True)
class SoFlow(MeanFlow):
    """MeanFlow with a finite step in place of the derivative.

    The settings of MeanFlow, less ``tangent_step``, and:

    Attributes:
        first, last: h, the share of a jump that is one step of v, at the training's begin and end.
    """

    first: float = 0.1
    last: float = 0.01

    title: ClassVar[str] = "SoFlow"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields("objective", self, "first last", 0, 1, open_low=True)
        if self.tangent_step is not None:
            raise UserError("objective.tangent_step: SoFlow takes no derivative, set it to null")

    def share(self, progress: Progress) -> float:
        """h at this point of the training."""
        done = progress.step / max(1, progress.total - 1)
        return math.exp((1 - done) * math.log(self.first) + done * math.log(self.last))

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        n, h = math.ceil(self.jump_share * len(x)), self.share(progress)
        t, d = self.times(x, n, g)
        eps = randn(x, g)
        x_t, v = self.path.mix(x, eps, t), self.path.velocity(x, eps, t)
        target = self.guided(nets.online, x_t, t, v, batch).clone()
        if n:
            kept = None if y is None else y[:n]
            target[:n] = self.step_and_rest(nets.online, x_t[:n], t[:n], d[:n], target[:n], h, kept)
        step = torch.where(d > 0, h, 1.0)
        squared = (nets.online(x_t, t, d, y) - target).square().flatten(1).sum(1) / step
        weight = (squared.detach() / step + self.c) ** -self.p
        logs = {"squared_error": (squared.detach() / step).mean()}
        return Loss(squared * weight, t, logs, d)

    @torch.no_grad()
    def step_and_rest(
        self, F: Net, x_t: Tensor, t: Tensor, d: Tensor, v: Tensor, h: float, y: Tensor | None
    ) -> Tensor:
        """h v + (1 - h) F(x_l, l, (1 - h) d)."""
        first = h * d
        rest = F(x_t - expand(first, x_t) * v, t - first, d - first, y)
        return h * v + (1 - h) * rest
