"""Improved consistency training, iCT (Song & Dhariwal 2024, section 3 and table 1).

    sigma_i, i = 1, ..., N: Karras' grid, (sigma_min^(1/rho) + (i-1)/(N-1) (...))^rho
    P(i) ~ erf((ln sigma_{i+1} - P_mean) / (sqrt(2) P_std)) - erf((ln sigma_i - P_mean) / ...)
    L = E 1 / (sigma_{i+1} - sigma_i) d(f(x + sigma_{i+1} eps), f^-(x + sigma_i eps))
    d(a, b) = sqrt(|a - b|^2 + c^2) - c,   c = 0.00054 sqrt(D)              pseudo-Huber
    N = min(s0 2^floor(k / K'), s1) + 1,   K' = floor(K / (log2(s1 / s0) + 1))

f^- is the online network, with the same dropout mask. Written on TrigFlow (edm.py says why that is
the same). Theirs is the identity at sigma_min = 0.002, ours at 0: a difference of that size.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import UserError, check_fields, check_range
from fewstep.objectives.core.base import OBJECTIVES, Batch, Loss, Nets, Progress
from fewstep.objectives.core.edm import EDM, karras_levels


@OBJECTIVES.register("ict")
@dataclass(frozen=True)
class ICT(EDM):
    """Consistency training with a growing grid, a log-normal proposal and a robust distance.

    Attributes:
        sigma_d: standard deviation of the data.
        p_mean, p_std: mean and standard deviation of log sigma in the proposal.
        s0, s1: intervals of the grid at first and at last; doubled in equal shares in between.
        sigma_min, sigma_max, rho: Karras' grid.
        huber: c over sqrt(D).
    """

    sigma_d: float = 0.5
    p_mean: float = -1.1
    p_std: float = 2.0
    s0: int = 10
    s1: int = 1280
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    huber: float = 0.00054

    title: ClassVar[str] = "iCT"

    def __post_init__(self) -> None:
        check_fields("objective", self, "sigma_d p_std sigma_min rho huber", 0, open_low=True)
        check_range("objective.s0", self.s0, 1)
        if self.s1 < self.s0:
            raise UserError(f"objective.s1 must be at least s0 = {self.s0}, got {self.s1}")
        if self.sigma_max <= self.sigma_min:
            raise UserError(
                f"objective.sigma_max must be above sigma_min = {self.sigma_min}, "
                f"got {self.sigma_max}"
            )

    def levels(self, progress: Progress) -> int:
        """N, the number of noise levels at this point of the training."""
        each = int(progress.total / (math.log2(self.s1 / self.s0) + 1))
        return int(min(self.s0 * 2 ** (progress.step // max(1, each)), self.s1)) + 1

    def grid(self, levels: int, like: Tensor) -> Tensor:
        """(N,) Karras' noise levels, rising, in float64."""
        return karras_levels(self.sigma_min, self.sigma_max, levels, self.rho, like)

    def proposal(self, grid: Tensor) -> Tensor:
        """(N - 1,) P(i), the log-normal's mass between neighbouring levels."""
        cdf = torch.erf((grid.log() - self.p_mean) / (math.sqrt(2) * self.p_std))
        mass = cdf.diff()
        return mass / mass.sum()

    def loss(self, nets: Nets, batch: Batch, progress: Progress, g: Generator) -> Loss:
        x = batch.x
        grid = self.grid(self.levels(progress), x)
        i = torch.multinomial(self.proposal(grid), len(x), replacement=True, generator=g)
        error, t = self.difference(nets, batch, grid[i + 1], grid[i], g)
        c = self.huber * math.sqrt(x[0].numel())
        distance = (error.square().flatten(1).sum(1) + c**2).sqrt() - c
        weight = 1 / (grid[i + 1] - grid[i])
        return Loss(weight.to(x.dtype) * distance, t)
