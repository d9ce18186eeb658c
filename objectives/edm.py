"""EDM's noise levels (Karras et al. 2022) on the TrigFlow path, for iCT and ECT.

They add noise of level sigma, x_sigma = x + sigma eps, and precondition the network,
    f(x_sigma, sigma) = c_skip x_sigma + c_out F(c_in x_sigma, c_noise),
    c_skip = sigma_d^2 / (sigma^2 + sigma_d^2),  c_in = 1 / sqrt(sigma^2 + sigma_d^2),
    c_out  = sigma sigma_d c_in.
With sigma = sigma_d tan(t) that is TrigFlow to the letter: x_t = cos(t) x_sigma, the network sees
c_in x_sigma = x_t / sigma_d, and
    f = cos(t) x_t - sin(t) sigma_d F(x_t / sigma_d, t)
but for the sign of F and the time's embedding (c_noise = log(sigma)/4 there, t here). So their
objectives are written on ``Trig``, in sigma; noise alone is sigma = infinity.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fewstep.objectives.base import Net, Objective, Progress
from fewstep.objectives.gaussian import GaussianFlow
from fewstep.objectives.paths import Trig, expand
from fewstep.objectives.scm import trig_ideal


class EDM(Objective):
    """What iCT and ECT share: the preconditioned denoiser f on TrigFlow."""

    sigma_d: float

    reach: ClassVar = "data"
    shares_noise: ClassVar[bool] = True

    @property
    def path(self) -> Trig:
        return Trig(self.sigma_d)

    def time(self, sigma: Tensor) -> Tensor:
        """t = atan(sigma / sigma_d)."""
        return (sigma / self.sigma_d).atan()

    def denoise(self, net: Net, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """f(x_t, t), the jump to data."""
        cos, sin = expand(t.cos(), x_t), expand(t.sin(), x_t)
        return cos * x_t - sin * self.sigma_d * net(x_t / self.sigma_d, t, y=y)

    def ideal(self, flow: GaussianFlow, progress: Progress) -> Net:
        return trig_ideal(flow, self.sigma_d)

    def step_cost(self) -> float:
        return 4 / 3
