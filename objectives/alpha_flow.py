"""alphaFlow (Zhang et al. 2025, definition 1): from flow matching over shortcut to MeanFlow.

    s = t - alpha d,   x_s = x_t - alpha d v~                       a first part of the jump
    target = alpha v~ + (1 - alpha) F^-(x_s, s, (1 - alpha) d)      and the rest of it
    L = alpha |F(x_t, t, d) - sg(target)|^2 / sg(|...|^2 + c),      v~ = v = eps - x

alpha = 1: F learns v whatever d is (trajectory flow matching). alpha = 1/2 with
v~ = F^-(x_t, t, alpha d): a shortcut's two halves. alpha -> 0: MeanFlow, which is what is used at
alpha = 0, derivative and all. alpha falls along the training,
    alpha = 1 - sigmoid(gamma (progress - 1/2)),  set to 1 above 1 - eta and to 0 below eta,
with progress from 0 at ``start`` to 1 at ``end``. F^- is the online network. Their (r, t) is our
(t - d, t). Rows with d = 0 learn v at every alpha, with weight 1 for alpha: for them s = t.

The authors' code (github.com/snap-research/alphaflow) differs from the text, followed here: its
|...|^2 is a mean over coordinates, so its c = 1e-3 is D times as much here; it may clip targets;
rows with d = 0 draw t once instead of the larger of two; and rows whose label was dropped keep the
guided mixture.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_choice, check_fields, check_range
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Net, Nets, Progress
from fewstep.objectives.core.batch_math import expand, randn
from fewstep.objectives.mean_flow import MeanFlow


@OBJECTIVES.register("alpha_flow")
@dataclass(frozen=True)
class AlphaFlow(MeanFlow):
    """A curriculum from flow matching to MeanFlow; further settings are MeanFlow's, p being 1.

    Attributes:
        alpha: a fixed alpha in [0, 1], or None for the schedule.
        start, end: shares of the training at which the schedule begins and ends.
        gamma: its steepness. eta: where it is clamped to 1 and to 0.
        shift: sample | network, what v~ is: eps - x, or F^- at the first part's length.
    """

    jump_share: float = 0.5
    c: float = 1e-3
    alpha: float | None = None
    start: float = 0.0
    end: float = 1.0
    gamma: float = 25.0
    eta: float = 5e-3
    shift: str = "sample"

    title: ClassVar[str] = "alphaFlow"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields("objective", self, "alpha start end", 0, 1)
        if self.start >= self.end:
            raise UserError(f"objective.start {self.start} must be below objective.end {self.end}")
        check_range("objective.gamma", self.gamma, 0, open_low=True)
        check_range("objective.eta", self.eta, 0, 0.5)
        check_choice("objective.shift", self.shift, ("sample", "network"))
        if self.p != 1:
            raise UserError(f"objective.p must be 1 here, got {self.p}")

    def alpha_at(self, progress: Progress) -> float:
        """alpha at this point of the training."""
        if self.alpha is not None:
            return self.alpha
        done = (progress.step / max(1, progress.total) - self.start) / (self.end - self.start)
        if not 0 <= done <= 1:
            return 1.0 if done < 0 else 0.0
        alpha = 1 / (1 + math.exp(self.gamma * (done - 0.5)))
        return 1.0 if alpha > 1 - self.eta else 0.0 if alpha < self.eta else alpha

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        alpha = self.alpha_at(progress)
        now = torch.tensor(alpha, device=batch.x.device)
        if alpha == 0:
            loss = super().loss(nets, batch, progress, g)
            return Loss(loss.per_sample, loss.t, {**loss.logs, "alpha": now}, loss.d)
        x, y = batch.x, batch.y
        n = math.ceil(self.jump_share * len(x))  # the first n rows have d > 0
        t, d = self.times(x, n, g)
        eps = randn(x, g)
        x_t, v = self.path.mix(x, eps, t), self.path.velocity(x, eps, t)
        target = self.guided(nets.online, x_t, t, v, batch).clone()
        if alpha < 1 and n:
            kept = None if y is None else y[:n]
            target[:n] = self.two_parts(nets.online, x_t[:n], t[:n], d[:n], target[:n], alpha, kept)
        squared = (nets.online(x_t, t, d, y) - target).square().flatten(1).sum(1)
        weight = torch.where(d > 0, alpha, 1.0) / (squared.detach() + self.c)
        logs = {"squared_error": squared.detach().mean(), "alpha": now}
        return Loss(weight.to(squared) * squared, t, logs, d)

    def step_cost(self) -> float | None:
        # of two parts or of an exact tangent; by differences the latter costs more than the former
        return super().step_cost() if self.tangent_step is None else None

    @torch.no_grad()
    def two_parts(
        self, F: Net, x_t: Tensor, t: Tensor, d: Tensor, v: Tensor, alpha: float, y: Tensor | None
    ) -> Tensor:
        """alpha v~ + (1 - alpha) F(x_s, s, (1 - alpha) d)."""
        first = alpha * d
        if self.shift == "network":
            v = F(x_t, t, first, y)
        rest = F(x_t - expand(first, x_t) * v, t - first, d - first, y)
        return alpha * v + (1 - alpha) * rest
