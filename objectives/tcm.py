"""Truncated consistency models, TCM (Lee et al. 2024, arXiv:2410.14895): a second stage.

    f(x + sigma eps) for sigma >= t' alone;  below t' the network f_1 of the first stage, frozen
    r = sigma (1 - (1 - ratio) n(sigma)),  n(sigma) = 1 + 8 sigmoid(-sigma)          ECT's, fixed
    e(sigma) = |f(x + sigma eps) - f^-(x + r eps)|_2 / (sigma - r),   f^- = f_1 where r < t'
    L = E e(sigma) + w E e(t'):   sigma = t' on a share of the rows, which meet the first stage
    log sigma ~ Student's t, cut off below t' and above sigma_max

So the network spends nothing on noise levels that one-step samples do not need; consistency is
learned from t' on, where f_1 bounds it. The run starts from a finished consistency run, ECT say:
``teacher=RUN training.init=teacher``; its weights, as they are before the first step, are f_1. As
in the authors' options (their train script, after ECT's) and FastGen's (methods/consistency_model;
TCM for CIFAR-10): t' = 1, ratio 0.999, Student's t of scale 0.2 with 0.01 degrees of freedom, and
the share 1/4 and w = 0.1 of their README's commands (the options' defaults are 0.05 and 1).
Student's t is taken with the exponent 1/2 for (1 + degrees) / 2, so that it can be inverted.

Below t' the network is not trained and forgets: steps of a sampler should not start there. FastGen
starts the second step at t' (``evaluation.times=[[1.5708,1.1072,0]]`` for sigma_d = 0.5).

In bfloat16 the loss is mostly rounding: sigma and r differ by a thousandth.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_fields
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Nets, Progress
from fewstep.objectives.core.batch_math import expand, rand, randn, same_dropout
from fewstep.objectives.ect import ECT


@OBJECTIVES.register("tcm")
@dataclass(frozen=True)
class TCM(ECT):
    """Consistency from t' on, bounded there by the network it starts from.

    The settings of ECT, with q = 1 / (1 - ratio) and one stage; p_mean, p_std are of Student's t.
    And:

    Attributes:
        start: t', the least noise level that is trained. sigma_max: the largest.
        degrees: of freedom of Student's t.
        boundary: share of rows with sigma = t'. boundary_weight: w.
    """

    p_mean: float = 0.0
    p_std: float = 0.2
    q: float = 1000.0
    stages: int = 1
    start: float = 1.0
    sigma_max: float = 80.0
    degrees: float = 0.01
    boundary: float = 0.25
    boundary_weight: float = 0.1

    title: ClassVar[str] = "TCM"
    continues: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields("objective", self, "start degrees", 0, open_low=True)
        check_fields("objective", self, "boundary", 0, 0.99, open_low=True)
        check_fields("objective", self, "boundary_weight", 0)
        if self.start >= self.sigma_max:
            raise UserError(
                f"objective.start must be less than objective.sigma_max={self.sigma_max:g}, "
                f"got {self.start:g}"
            )

    def takes_snapshot(self, progress: Progress) -> bool:
        return progress.step == 0

    def levels(self, x: Tensor, g: Generator) -> Tensor:
        """(B,) noise levels from t' to sigma_max."""
        scale = self.p_std * math.sqrt(self.degrees)
        low, high = (
            math.asinh((math.log(level) - self.p_mean) / scale)
            for level in (self.start, self.sigma_max)
        )
        z = (low + (high - low) * rand(x, g)).sinh()
        return (self.p_mean + scale * z).exp().clamp(self.start, self.sigma_max)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x, y, B = batch.x, batch.y, len(batch.x)
        n = math.ceil(self.boundary * B)
        sigma = self.levels(x, g)
        sigma[:n] = self.start
        lower = self.closer(sigma, progress)
        t, s = self.time(sigma), self.time(lower)
        eps = randn(x, g)
        x_t, x_s = self.path.mix(x, eps, t), self.path.mix(x, eps, s)
        with torch.no_grad():
            first = self.denoise(nets.snapshot, x_s, s, y)
            with same_dropout(x):
                own = self.denoise(nets.online, x_s, s, y)
            target = torch.where(expand(lower < self.start, x), first, own)
        error = (self.denoise(nets.online, x_t, t, y) - target).flatten(1).norm(dim=1)
        error = error / (sigma - lower)
        weight = torch.full_like(t, B / max(1, B - n))
        weight[:n] = self.boundary_weight * B / n
        logs = {"loss_boundary": error[:n].detach().mean()}
        return Loss(weight * error, t, logs)

    def step_cost(self) -> float:
        return 5 / 3
