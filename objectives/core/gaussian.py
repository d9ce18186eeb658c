"""The closed form that every objective is held against: data ~ N(0, std^2 I).

With x_t = a x + b eps (b holds the noise's standard deviation), var(t) = a^2 std^2 + b^2, and the
flow only stretches: it takes x_t from t to u as x_t sqrt(var(u) / var(t)).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.objectives.core.batch_math import expand
from fewstep.objectives.core.paths import ProbabilityPath


@dataclass(frozen=True)
class GaussianFlow:
    """The flow along ``path`` of data with standard deviation ``std``. Times are (B,)."""

    path: ProbabilityPath
    std: float

    def variance(self, t: Tensor) -> Tensor:
        """(B,) the variance of x_t."""
        noise = self.path.noise_std * self.path.sigma(t)
        return (self.path.alpha(t) * self.std) ** 2 + noise**2

    def velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[dx_t/dt | x_t], (B, ...)."""
        path = self.path
        growth = path.alpha(t) * path.d_alpha(t) * self.std**2
        growth = growth + path.noise_std**2 * path.sigma(t) * path.d_sigma(t)
        return x_t * expand(growth / self.variance(t), x_t)

    def map(self, x_t: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """Where the flow takes x_t from ``t`` to ``u``."""
        return x_t * expand((self.variance(u) / self.variance(t)).sqrt(), x_t)

    def average_velocity(self, x_t: Tensor, t: Tensor, d: Tensor) -> Tensor:
        """(x_t - x_{t-d}) / d along the flow; the velocity where d = 0."""
        safe = torch.where(d > 0, d, torch.ones_like(d))
        average = (x_t - self.map(x_t, t, t - safe)) / expand(safe, x_t)
        return torch.where(expand(d > 0, x_t), average, self.velocity(x_t, t))
