"""Easy consistency tuning, ECT (Geng, Pokle, Luo, Lin & Kolter 2025, eq. 12-15 and algorithm 1).

    ln sigma ~ N(P_mean, P_std^2)
    r = sigma (1 - q^-(k + 1) n(sigma)), at least 0,   n(sigma) = 1 + 8 sigmoid(-sigma)
    L = E 1 / (sigma - r) |f(x + sigma eps) - f^-(x + r eps)|_2

The stages k = 0, 1, ... bring r ever closer to sigma: from far, with r = 0 (a denoiser) where the
noise is small, to the tangent's limit. f^- is the online network, with the same noise and the same
dropout mask. Written on TrigFlow (edm.py says why that is the same). The paper tunes a pretrained
denoiser; here it trains from the start, or from any run: ``teacher=RUN training.init=teacher``. The
weight is that of the first release of their code; a later one has
(sigma^2 + sigma_d^2) / (sigma sigma_d)^2.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_fields, check_range
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Nets, Progress
from fewstep.objectives.core.edm import EDM
from fewstep.objectives.core.times import normal

CLOSEST = 65_536  # q^stages: a difference of two outputs then keeps two digits in float32


@OBJECTIVES.register("ect")
@dataclass(frozen=True)
class ECT(EDM):
    """Consistency training whose second noise level closes in on the first.

    Attributes:
        sigma_d: standard deviation of the data.
        p_mean, p_std: mean and standard deviation of log sigma.
        q: how fast r closes in. stages: how often, in equal shares of the training. The last stage
            has sigma - r = n sigma / q^stages: 8 stages of q = 2 come as close as 4 of q = 4 or
            1 of q = 256. At most q^stages = 65,536, where float32 still tells the two apart.
        k, b: n(sigma) = 1 + k sigmoid(-b sigma).
    """

    sigma_d: float = 0.5
    p_mean: float = -1.1
    p_std: float = 2.0
    q: float = 2.0
    stages: int = 8
    k: float = 8.0
    b: float = 1.0

    title: ClassVar[str] = "ECT"

    def __post_init__(self) -> None:
        check_fields("objective", self, "sigma_d p_std b", 0, open_low=True)
        check_range("objective.q", self.q, 1, CLOSEST, open_low=True)
        check_range("objective.stages", self.stages, 1)
        most = math.floor(math.log(CLOSEST, self.q) + 1e-9)
        if self.stages > most:  # float32 would not tell r from sigma
            raise UserError(
                f"objective.stages may be {most} at most with objective.q={self.q:g}, "
                f"for q^stages <= {CLOSEST:,}; got {self.stages}"
            )
        check_range("objective.k", self.k, 0)

    def closer(self, sigma: Tensor, progress: Progress) -> Tensor:
        """r(sigma), (B,), at this point of the training."""
        stage = min(self.stages * progress.step // max(1, progress.total), self.stages - 1)
        n = 1 + self.k * torch.sigmoid(-self.b * sigma)
        return (sigma * (1 - n / self.q ** (stage + 1))).clamp(min=0)

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        sigma = normal(batch.x, g, self.p_mean, self.p_std).exp()
        lower = self.closer(sigma, progress)
        error, t = self.difference(nets, batch, sigma, lower, g)
        return Loss(error.flatten(1).norm(dim=1) / (sigma - lower), t)
