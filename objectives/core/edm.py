"""Consistency functions on TrigFlow, and EDM's noise levels (Karras et al. 2022) there.

iCT and ECT add noise of level sigma, x_sigma = x + sigma eps, and precondition the network,
    f(x_sigma, sigma) = c_skip x_sigma + c_out F(c_in x_sigma, c_noise),
    c_skip = sigma_d^2 / (sigma^2 + sigma_d^2),  c_in = 1 / sqrt(sigma^2 + sigma_d^2),
    c_out  = sigma sigma_d c_in.
With sigma = sigma_d tan(t) that is TrigFlow to the letter: x_t = cos(t) x_sigma, the network sees
c_in x_sigma = x_t / sigma_d, and
    f = cos(t) x_t - sin(t) sigma_d F(x_t / sigma_d, t)
but for the sign of F and the time's embedding (c_noise = log(sigma)/4 there, t here). So their
objectives are written on ``TrigPath``, in sigma; noise alone is sigma = infinity.
"""

from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.objectives.core.base import Batch, Net, Nets, Objective, Progress
from fewstep.objectives.core.batch_math import expand, randn, same_dropout
from fewstep.objectives.core.gaussian import GaussianFlow
from fewstep.objectives.core.paths import TrigPath


def karras_levels(low: float, high: float, count: int, rho: float, like: Tensor) -> Tensor:
    """(count,) noise levels, rising, in float64: their rho-th roots are evenly spaced (eq. 5)."""
    steps = torch.linspace(0, 1, count, dtype=torch.float64, device=like.device)
    first, last = low ** (1 / rho), high ** (1 / rho)
    return (first + steps * (last - first)) ** rho


class TrigConsistency(Objective):
    """A consistency function f on TrigFlow: what sCM, iCT and ECT share."""

    sigma_d: float

    jump_range: ClassVar = "to_data"

    @property
    def path(self) -> TrigPath:
        return TrigPath(self.sigma_d)

    def denoise(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """f(x_t, t), the jump to data."""
        cos, sin = expand(t.cos(), x_t), expand(t.sin(), x_t)
        return cos * x_t - sin * self.sigma_d * net(x_t / self.sigma_d, t, y=y)

    def gaussian_optimum(self, flow: GaussianFlow, progress: Progress) -> Net:
        def F(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
            x_t, safe = self.sigma_d * x, t.clamp(min=1e-12)  # F at t = 0 is multiplied by sin(0)
            data = flow.map(x_t, safe, torch.zeros_like(t))
            cos, sin = expand(safe.cos(), x_t), expand(safe.sin(), x_t)
            return (cos * x_t - data) / (sin * self.sigma_d)

        return F

    def step_cost(self) -> float:
        return 4 / 3


class EDM(TrigConsistency):
    """What iCT and ECT share: two noise levels, and f^- by the network itself at the lower one."""

    shares_noise: ClassVar[bool] = True

    def time(self, sigma: Tensor) -> Tensor:
        """t = atan(sigma / sigma_d)."""
        return (sigma / self.sigma_d).atan()

    def difference(
        self, nets: Nets, batch: Batch, sigma: Tensor, lower: Tensor, g: Generator
    ) -> tuple[Tensor, Tensor]:
        """f(x + sigma eps) - f^-(x + lower eps), (B, ...), and the time of sigma, (B,).

        With the same noise and the same dropout mask.
        """
        x, y = batch.x, batch.y
        t, s = (self.time(level).to(x.dtype) for level in (sigma, lower))
        eps = randn(x, g)
        x_t, x_s = self.path.mix(x, eps, t), self.path.mix(x, eps, s)
        with torch.no_grad(), same_dropout(x):
            target = self.denoise(nets.online, x_s, s, y)
        return self.denoise(nets.online, x_t, t, y) - target, t
