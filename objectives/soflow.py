"""SoFlow, solution flow models (Luo, Yuan & Liu 2025, arXiv:2512.15657).

    X(t -> s) = x_t - d F(x_t, t, d),   d = t - s          the flow's solution; F(x_t, t, 0) = v
    X(t -> s) = sg X(l -> s) from x_l = x_t - (t - l) v,   l = t - h d:  a step of the sample's own
                                                           velocity v = eps - x, and the rest
    that is F(x_t, t, d) -> F* = h v + (1 - h) sg F(x_l, l, (1 - h) d)
    L = w |F - F*|^2 / (2 h D),   w = 1 / sg(|F - F*|^2 / (h^2 D) + c)^p        where d > 0
    L = w |F - v|^2 / D,          w = 1 / sg(|F - v|^2 / D + c)^p               where d = 0

No derivative: as h -> 0 the gradient becomes MeanFlow's, half of it. h falls exponentially along
the training. Three quarters of the rows have d = 0 and a logit-normal t; of the others t and s are
two draws of their own. From the authors' code (github.com/zlab-princeton/SoFlow: models.py,
train.py), linear path and Euler's parametrisation; their loss of jumps is a product with the
gradient (F - F*) w / (h D). Guidance is trained in as MeanFlow's: theirs of scale W and mixing m is
``guidance`` m W and ``mixing`` 1 - m; it fades out in time, here it ends (``guidance_interval``).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_fields
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Progress
from fewstep.objectives.core.batch_math import expand, mean_square, randn, same_dropout
from fewstep.objectives.core.times import logit_normal
from fewstep.objectives.mean_flow import MeanFlow


@OBJECTIVES.register("soflow")
@dataclass(frozen=True)
class SoFlow(MeanFlow):
    """MeanFlow with a finite step in place of the derivative.

    The settings of MeanFlow, less ``tangent_step``: t_mean and t_std are of the rows with d = 0,
    c stands beside a mean over coordinates. And:

    Attributes:
        begin_mean, begin_std: mean and standard deviation of the logit of t where d > 0.
        end_mean, end_std: of the logit of s there, which is at most t.
        first, last: h, the share of a jump that is one step of v, at the training's begin and end.
    """

    t_mean: float = -0.2
    begin_mean: float = 0.2
    begin_std: float = 0.8
    end_mean: float = -1.0
    end_std: float = 0.8
    first: float = 0.1
    last: float = 0.002

    title: ClassVar[str] = "SoFlow"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields("objective", self, "first last", 0, 1, open_low=True)
        check_fields("objective", self, "begin_std end_std", 0, open_low=True)
        if self.last > self.first:
            raise UserError(
                f"objective.last must be at most objective.first={self.first}, got {self.last}"
            )
        if self.tangent_step is not None:
            raise UserError("objective.tangent_step: SoFlow takes no derivative, set it to null")

    def share(self, progress: Progress) -> float:
        """h at this point of the training."""
        done = progress.step / max(1, progress.total)
        return self.first * (self.last / self.first) ** done

    def times(self, x: Tensor, n: int, g: Generator) -> tuple[Tensor, Tensor]:
        """(t, d), each (B,); d = 0 but for the first n rows."""
        flow = logit_normal(x, g, self.t_mean, self.t_std)
        t = logit_normal(x, g, self.begin_mean, self.begin_std).clamp(min=SHORTEST)
        s = logit_normal(x, g, self.end_mean, self.end_std)
        jumps = torch.arange(len(x), device=x.device) < n
        d = (t - s).clamp(min=SHORTEST)
        return torch.where(jumps, t, flow), torch.where(jumps, d, torch.zeros_like(d))

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y = batch.x, batch.y
        n = math.ceil(self.jump_share * len(x))
        t, d = self.times(x, n, g)
        eps = randn(x, g)
        x_t, v = self.path.mix(x, eps, t), self.path.velocity(x, eps, t)
        target = self.guided(nets.online, x_t, t, v, batch).clone()
        h = torch.ones_like(d)
        h[:n] = (SHORTEST / d[:n]).clamp(min=self.share(progress))
        outputs = []
        if n:
            kept = None if y is None else y[:n]
            rest = self.rest(nets.online, x_t[:n], t[:n], d[:n], h[:n], target[:n], kept)
            part = expand(h[:n], rest)
            target[:n] = part * target[:n] + (1 - part) * rest
            outputs.append(nets.online(x_t[:n], t[:n], d[:n], kept))  # with the dropout of rest
        if n < len(x):
            outputs.append(nets.online(x_t[n:], t[n:], d[n:], None if y is None else y[n:]))
        error = mean_square(torch.cat(outputs) - target)
        quotient = (error / h**2).detach()
        weight = (quotient + self.c) ** -self.p * torch.where(d > 0, 0.5 / h, 1.0)
        return Loss(weight * error, t, {"squared_error": quotient.mean()}, d)

    @torch.no_grad()
    def rest(
        self, F: Net, x_t: Tensor, t: Tensor, d: Tensor, h: Tensor, v: Tensor, y: Tensor | None
    ) -> Tensor:
        """F(x_l, l, (1 - h) d)."""
        step = h * d
        with same_dropout(x_t):
            return F(x_t - expand(step, x_t) * v, t - step, d - step, y)


SHORTEST = 1e-4  # jump, and step of v
