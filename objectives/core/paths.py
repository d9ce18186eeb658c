"""Interpolants between data x and noise eps:  x_t = alpha(t) x + sigma(t) noise_std eps.

==============  ==========  =======  =========  =======================================
path            alpha       sigma    t in       source
==============  ==========  =======  =========  =======================================
``LinearPath``  1 - t       t        [0, 1]     rectified flow, flow matching (theirs: 1 - t)
``TrigPath``    cos t       sin t    [0, pi/2]  TrigFlow, Lu & Song 2024, sec. 3.1 (same t)
==============  ==========  =======  =========  =======================================

TrigFlow's noise has the standard deviation of the data, ``sigma_d``, so that x_t has it at every t.
The paths are scalings of one another (``convert_path``): where the share of noise is the same, so
are x and eps.
"""

import contextlib
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fewstep.deprecation import OldName, renamed
from fewstep.errors import UserError, check_range
from fewstep.objectives.core.batch_math import expand


class ProbabilityPath(ABC):
    """An interpolant; times are (B,) tensors, data and noise (B, ...)."""

    t_max: ClassVar[float]

    @property
    def noise_std(self) -> float:
        """Standard deviation of the path's noise."""
        return 1.0

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The share of data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The share of noise, before ``noise_std``."""

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

    def step(self, x_t: Tensor, v: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """x_u from x_t and its velocity, x and eps being those of ``data_and_noise`` (B, ...).

        Of first order, and exact where they do not change on the way (DDIM). On the linear path it
        is Euler's step.
        """
        return self.mix(*self.data_and_noise(x_t, v, t), u)

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

    def noise_fraction(self, t: Tensor) -> Tensor:
        """sigma noise_std / (alpha + sigma noise_std): t itself on the linear path, 0 to 1."""
        noise = self.sigma(t) * self.noise_std
        return (noise / (self.alpha(t) + noise)).clamp(0, 1)  # cos(pi/2) < 0 in float32

    noise_share = OldName("noise_fraction")

    def log_snr(self, t: Tensor) -> Tensor:
        """log of the signal-to-noise ratio (alpha / (sigma noise_std))^2.

        The one axis shared by all paths: equal log_snr means equally hard to denoise.
        """
        return 2 * (self.alpha(t) / (self.sigma(t) * self.noise_std)).log()

    def times(self, steps: int | Sequence[float]) -> list[float]:
        """The decreasing times of a sampler: uniform for a number of steps, else checked as given.

        Raises ``UserError``: neither; fewer than 1 step; times not falling strictly from t_max to
        0.
        """
        if not isinstance(steps, bool):
            with contextlib.suppress(TypeError):  # numpy's and torch's integers are taken, too
                count = operator.index(steps)  # type: ignore[arg-type]
                check_range("sampling steps", count, 1)
                return [self.t_max * (1 - i / count) for i in range(count)] + [0.0]
        try:
            times = [float(t) for t in steps]  # type: ignore[union-attr]
        except (TypeError, ValueError):
            raise UserError(
                f"times must be a number of steps or a sequence of times, got {steps!r}"
            ) from None
        falls = len(times) > 1 and all(a > b for a, b in pairwise(times))
        if not (falls and times[-1] == 0 and math.isclose(times[0], self.t_max, rel_tol=1e-3)):
            raise UserError(
                f"times must fall strictly from t_max = {self.t_max:.6g} to 0, got {times}"
            )
        return [self.t_max, *times[1:]]


@dataclass(frozen=True)
class LinearPath(ProbabilityPath):
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

    def step(self, x_t: Tensor, v: Tensor, t: Tensor, u: Tensor) -> Tensor:
        return x_t + expand(u - t, x_t) * v

    def time_of(self, signal: Tensor, noise: Tensor) -> Tensor:
        noise = (noise - self.sigma_min * signal).clamp(min=0)
        return noise / (signal + noise)


@dataclass(frozen=True)
class TrigPath(ProbabilityPath):
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

    def step(self, x_t: Tensor, v: Tensor, t: Tensor, u: Tensor) -> Tensor:
        angle = expand(u - t, x_t)
        return angle.cos() * x_t + angle.sin() * v

    def time_of(self, signal: Tensor, noise: Tensor) -> Tensor:
        return torch.atan2(noise, self.sigma_d * signal)


def convert_path(
    x_t: Tensor, t: Tensor, source: ProbabilityPath, target: ProbabilityPath
) -> tuple[Tensor, Tensor]:
    """The mixture of the same x and eps on another path, at the same signal-to-noise ratio.

    Returns it, (B, ...), and its time there, (B,).
    """
    signal, noise = source.alpha(t), source.sigma(t) * source.noise_std
    u = target.time_of(signal, noise)
    scale = target.alpha(u) + target.sigma(u) * target.noise_std
    return x_t * expand(scale / (signal + noise), x_t), u


if not TYPE_CHECKING:
    _OLD = {"Path": "ProbabilityPath", "Linear": "LinearPath", "Trig": "TrigPath"}
    __getattr__ = renamed(__name__, {**_OLD, "bridge": "convert_path"})
