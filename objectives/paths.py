"""Interpolants between data x and noise eps:  x_t = alpha(t) x + sigma(t) noise_std eps.

==========  ==========  =======  =========  ===========================================
path        alpha       sigma    t in       source
==========  ==========  =======  =========  ===========================================
``Linear``  1 - t       t        [0, 1]     rectified flow / flow matching (their t: 1 - t)
``Trig``    cos t       sin t    [0, pi/2]  TrigFlow, Lu & Song 2024, sec. 3.1 (same t)
==========  ==========  =======  =========  ===========================================

TrigFlow's noise has the standard deviation of the data, ``sigma_d``, so that x_t has it at every t.
The paths are scalings of one another (``bridge``): where the share of noise is the same, so are x
and eps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.errors import UserError, check_range


def expand(t: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), to broadcast against ``like``."""
    return t.reshape(-1, *[1] * (like.dim() - 1))


class Path(ABC):
    """An interpolant; times are (B,) tensors, data and noise (B, ...)."""

    t_max: ClassVar[float]

    @property
    def noise_std(self) -> float:
        """Standard deviation of the path's noise."""
        return 1.0

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """d alpha / dt."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """d sigma / dt."""

    def mix(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t from data and *standard normal* noise."""
        t = expand(t, x)
        return self.alpha(t) * x + self.sigma(t) * self.noise_std * eps

    def velocity(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """dx_t/dt, pointing toward noise."""
        t = expand(t, x)
        return self.d_alpha(t) * x + self.d_sigma(t) * self.noise_std * eps

    def start(self, noise: Tensor) -> Tensor:
        """x_t at ``t_max``, noise alone, from standard normal noise."""
        return self.noise_std * noise

    def data_and_noise(self, x_t: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The x and eps (B, ...) with this mixture and velocity: ``mix``, ``velocity`` solved.

        For v = E[dx_t/dt | x_t] they are E[x | x_t] and E[eps | x_t].
        """
        t = expand(t, x_t)
        a, da = self.alpha(t), self.d_alpha(t)
        b, db = self.sigma(t) * self.noise_std, self.d_sigma(t) * self.noise_std
        determinant = a * db - b * da
        return (db * x_t - b * v) / determinant, (a * v - da * x_t) / determinant

    @abstractmethod
    def time_of(self, signal: Tensor, noise: Tensor) -> Tensor:
        """(B,) the t with alpha : sigma noise_std = ``signal`` : ``noise``, neither negative."""

    def noise_share(self, t: Tensor) -> Tensor:
        """sigma noise_std / (alpha + sigma noise_std): t itself on the linear path, 0 to 1."""
        noise = self.sigma(t) * self.noise_std
        return (noise / (self.alpha(t) + noise)).clamp(0, 1)  # cos(pi/2) < 0 in float32

    def log_snr(self, t: Tensor) -> Tensor:
        """log of the signal-to-noise ratio (alpha / (sigma noise_std))^2.

        The one axis shared by all paths: equal log_snr means equally hard to denoise.
        """
        return 2 * (self.alpha(t) / (self.sigma(t) * self.noise_std)).log()

    def times(self, steps: int | Sequence[float]) -> list[float]:
        """The decreasing times of a sampler: uniform for a number of steps, else checked as given.

        Raises:
            UserError: fewer than 1 step, or times not falling strictly from t_max to 0.
        """
        if isinstance(steps, int):
            check_range("sampling steps", steps, 1)
            return [self.t_max * (1 - i / steps) for i in range(steps)] + [0.0]
        times = [float(t) for t in steps]
        falls = all(a > b for a, b in pairwise(times))
        if (
            len(times) < 2
            or not falls
            or times[-1] != 0
            or not math.isclose(times[0], self.t_max, rel_tol=1e-3)
        ):
            raise UserError(
                f"times must fall strictly from t_max = {self.t_max:.6g} to 0, got {times}"
            )
        return [self.t_max, *times[1:]]


@dataclass(frozen=True)
class Linear(Path):
    """x_t = (1 - t) x + t eps; with ``sigma_min``, that much noise is left at t = 0.

    x_t = (1 - t) x + (t + (1 - t) sigma_min) eps, as in Lipman et al. 2023, eq. 22.
    """

    sigma_min: float = 0.0
    t_max: ClassVar[float] = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t + self.sigma_min * (1 - t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return (1 - self.sigma_min) * torch.ones_like(t)

    def time_of(self, signal: Tensor, noise: Tensor) -> Tensor:
        noise = (noise - self.sigma_min * signal).clamp(min=0)
        return noise / (signal + noise)


@dataclass(frozen=True)
class Trig(Path):
    """x_t = cos(t) x + sin(t) z,  z = sigma_d eps."""

    sigma_d: float
    t_max: ClassVar[float] = math.pi / 2

    @property
    def noise_std(self) -> float:
        return self.sigma_d

    def alpha(self, t: Tensor) -> Tensor:
        return t.cos()

    def sigma(self, t: Tensor) -> Tensor:
        return t.sin()

    def d_alpha(self, t: Tensor) -> Tensor:
        return -t.sin()

    def d_sigma(self, t: Tensor) -> Tensor:
        return t.cos()

    def time_of(self, signal: Tensor, noise: Tensor) -> Tensor:
        return torch.atan2(noise, self.sigma_d * signal)


def bridge(x_t: Tensor, t: Tensor, source: Path, target: Path) -> tuple[Tensor, Tensor]:
    """The mixture of the same x and eps on another path, at the same signal-to-noise ratio.

    Returns it, (B, ...), and its time there, (B,).
    """
    signal, noise = source.alpha(t), source.sigma(t) * source.noise_std
    u = target.time_of(signal, noise)
    there = target.alpha(u) + target.sigma(u) * target.noise_std
    return x_t * expand(there / (signal + noise), x_t), u
