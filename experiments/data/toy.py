"""Gaussians and mixtures of them: data sets whose optimal velocity is known in closed form.

With x ~ sum_k w_k N(m_k, s^2 I), eps ~ N(0, I) and a path x_t = a x + b eps, mode k of x_t is
N(a m_k, v I) with v = a^2 s^2 + b^2, so every posterior mean is a mixture of linear functions.
A path whose noise has another scale (TrigFlow: sigma_d) carries the scale in b.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.errors import check_fields, check_range
from fewstep.experiments.data.base import DATA, Dataset, Split, without_labels
from fewstep.objectives.core.paths import ProbabilityPath
from fewstep.registry import added

TRAIN_SEED, TEST_SEED = 0, 1  # part of the data set, not of a run's seed
Coefficient = float | Tensor
Coefficients = Callable[[Tensor], tuple[Coefficient, Coefficient, Coefficient, Coefficient]]
"""Times (B,) -> (a, b, da/dt, db/dt) of x_t = a x + b eps; each a float or (B,)."""


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """sum_k ``weights``_k N(``means``_k, ``std``^2 I), with ``means`` (K, D) and ``weights`` (K,).

    Everything below takes x_t (B, D) and the path's a and b there, as floats or (B,) tensors,
    computes in the dtype of x_t and is differentiable.
    """

    means: Tensor
    std: float
    weights: Tensor

    def sample(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """``n`` draws x (n, D) in float32 and their modes (n,) in int64."""
        g = torch.Generator().manual_seed(seed)
        y = torch.multinomial(self.weights, n, replacement=True, generator=g)
        noise = torch.randn(n, self.means.shape[1], generator=g, dtype=torch.float64)
        return (self.means[y] + self.std * noise).float(), y

    def posterior(self, x_t: Tensor, a: Coefficient, b: Coefficient) -> tuple[Tensor, Tensor]:
        """E[x | x_t] and E[eps | x_t], each (B, D), for eps of unit variance."""
        log_joint, residuals, v = self._modes(x_t, a, b)
        r = log_joint.softmax(1)
        mean, residual = r @ self.means.to(x_t), (r.unsqueeze(2) * residuals).sum(1)
        data = mean + _column(a, x_t) * self.std**2 / v * residual
        return data, _column(b, x_t) / v * residual

    def velocity(
        self, x_t: Tensor, a: Coefficient, b: Coefficient, da: Coefficient, db: Coefficient
    ) -> Tensor:
        """E[dx_t/dt | x_t] = da E[x | x_t] + db E[eps | x_t], (B, D): what flow matching learns."""
        data, noise = self.posterior(x_t, a, b)
        return _column(da, x_t) * data + _column(db, x_t) * noise

    def flow_map(self, x_t: Tensor, t: Coefficient, u: Coefficient, at: Coefficients) -> Tensor:
        """Where the flow dx/dt = velocity takes x_t (B, D) from time ``t`` to ``u``; float64.

        Solved by DOP853 at a tolerance of 1e-10; ``t`` and ``u`` are floats or (B,), ``at`` is
        ``coefficients(path)`` or any such function.
        """
        start = x_t.detach().double().cpu()
        begin = torch.as_tensor(t, dtype=torch.float64).expand(len(start))
        length = torch.as_tensor(u, dtype=torch.float64).expand(len(start)) - begin

        # slow to import, and every command imports this module
        from scipy.integrate import solve_ivp

        def derivative(tau: float, flat: NDArray[np.float64]) -> NDArray[np.float64]:
            x = torch.from_numpy(flat.copy()).view_as(start)
            velocity = self.velocity(x, *at(begin + tau * length))
            return (length.unsqueeze(1) * velocity).flatten().numpy()

        solution = solve_ivp(
            derivative, (0, 1), start.flatten().numpy(), "DOP853", (1,), rtol=1e-10, atol=1e-10
        )
        assert solution.success, solution.message
        return torch.from_numpy(solution.y[:, -1].copy()).view_as(start)

    def mode_flow_map(
        self, x_t: Tensor, y: Tensor, t: Tensor, u: Tensor, at: Coefficients
    ) -> Tensor:
        """As ``flow_map``, of the flow of mode ``y`` (B,) alone, for (B,) times; closed form.

        Mode k of x_t is N(a m_k, v): x_u = a_u m_k + (x_t - a_t m_k) sqrt(v_u / v_t).
        """
        x_t, t, u = (tensor.detach().double().cpu() for tensor in (x_t, t, u))
        means = self.means[y.cpu()].double()
        (a_t, b_t, *_), (a_u, b_u, *_) = at(t), at(u)
        v_t = _column(a_t, x_t) ** 2 * self.std**2 + _column(b_t, x_t) ** 2
        v_u = _column(a_u, x_t) ** 2 * self.std**2 + _column(b_u, x_t) ** 2
        return _column(a_u, x_t) * means + (x_t - _column(a_t, x_t) * means) * (v_u / v_t).sqrt()

    def _modes(self, x_t: Tensor, a: Coefficient, b: Coefficient) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k - |x_t - a m_k|^2 / 2v (B, K), x_t - a m_k (B, K, D), v (B or 1, 1)."""
        a, b = _column(a, x_t), _column(b, x_t)
        v = a**2 * self.std**2 + b**2
        residuals = x_t.unsqueeze(1) - a.unsqueeze(1) * self.means.to(x_t)
        log_weights = (self.weights / self.weights.sum()).log().to(x_t)
        return log_weights - residuals.square().sum(2) / (2 * v), residuals, v


@runtime_checkable
class HasMixture(Protocol):
    """A data source that knows its distribution in closed form; labels are the modes."""

    def mixture(self) -> GaussianMixture: ...


def coefficients(path: ProbabilityPath) -> Coefficients:
    """The coefficients of a ``path`` with unit-variance eps: its noise_std goes into b."""

    def at(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale = path.noise_std
        return path.alpha(t), path.sigma(t) * scale, path.d_alpha(t), path.d_sigma(t) * scale

    return at


def _column(c: Coefficient, like: Tensor) -> Tensor:
    """A coefficient as (B, 1), or (1, 1) for a float, in the dtype of ``like``."""
    return torch.as_tensor(c, dtype=like.dtype, device=like.device).reshape(-1, 1)


def _dataset(name: str, mixture: GaussianMixture, train: int, test: int, classes: int) -> Dataset:
    def draw(n: int, seed: int) -> Split:
        x, y = mixture.sample(n, seed)
        return Split(x, y if classes else None)

    return Dataset(name, draw(train, TRAIN_SEED), draw(test, TEST_SEED), classes)


@DATA.register("gaussians")
@dataclass(frozen=True)
class Gaussians:
    """``modes`` equal Gaussians of width ``std`` on a ring in the plane.

    With ``labels`` each example is labelled by its mode, which leaves a network one Gaussian at a
    time; without, the flow of the whole mixture is to be learned.
    """

    suggested_backbone: ClassVar[str] = "mlp"

    modes: int = 8
    radius: float = 1.0
    std: float = 0.1
    samples: int = 8192
    test_samples: int = 2048
    labels: bool = True

    def __post_init__(self) -> None:
        check_range("gaussians.radius", self.radius, 0)
        check_range("gaussians.std", self.std, 0, open_low=True)
        check_fields("gaussians", self, "modes samples test_samples", 1)

    def mixture(self) -> GaussianMixture:
        angle = 2 * math.pi / self.modes * torch.arange(self.modes, dtype=torch.float64)
        means = self.radius * torch.stack((angle.cos(), angle.sin()), 1)
        weights = torch.full((self.modes,), 1 / self.modes, dtype=torch.float64)
        return GaussianMixture(means, self.std, weights)

    def load(self) -> Dataset:
        classes = self.modes if self.labels else 0
        return _dataset("gaussians", self.mixture(), self.samples, self.test_samples, classes)


@DATA.register("gaussian")
@dataclass(frozen=True)
class Gaussian:
    """One Gaussian N(0, std^2 I): even the flow map is closed (``mode_flow_map``)."""

    suggested_backbone: ClassVar[str] = "mlp"

    std: float = 0.5
    dimensions: int = 2
    samples: int = 8192
    test_samples: int = 2048

    def __post_init__(self) -> None:
        check_range("gaussian.std", self.std, 0, open_low=True)
        check_fields("gaussian", self, "dimensions samples test_samples", 1)

    def mixture(self) -> GaussianMixture:
        zero = torch.zeros(1, self.dimensions, dtype=torch.float64)
        return GaussianMixture(zero, self.std, torch.ones(1, dtype=torch.float64))

    def load(self) -> Dataset:
        return _dataset("gaussian", self.mixture(), self.samples, self.test_samples, 0)


@DATA.register("conditional_gaussians")
@dataclass(frozen=True)
class ConditionalGaussians:
    """x | y ~ N(radius y, std^2 I), where the condition y is a point of the unit circle.

    The smallest data set with condition vectors. Each example is a Gaussian around its condition,
    all together are a ring. Without ``labels`` the ring is to be learned.
    """

    suggested_backbone: ClassVar[str] = "mlp"

    radius: float = 1.0
    std: float = 0.1
    samples: int = 8192
    test_samples: int = 2048
    labels: bool = added(True)

    def __post_init__(self) -> None:
        check_range("conditional_gaussians.radius", self.radius, 0)
        check_range("conditional_gaussians.std", self.std, 0, open_low=True)
        check_fields("conditional_gaussians", self, "samples test_samples", 1)

    def conditional(self, y: Tensor) -> GaussianMixture:
        """One Gaussian for each row of conditions ``y`` (B, 2)."""
        weights = torch.full((len(y),), 1 / len(y), dtype=torch.float64)
        return GaussianMixture(self.radius * y.double(), self.std, weights)

    def load(self) -> Dataset:
        def draw(n: int, seed: int) -> Split:
            g = torch.Generator().manual_seed(seed)
            angle = 2 * math.pi * torch.rand(n, generator=g, dtype=torch.float64)
            y = torch.stack((angle.cos(), angle.sin()), 1)
            noise = torch.randn(n, 2, generator=g, dtype=torch.float64)
            return Split((self.radius * y + self.std * noise).float(), y.float())

        train, test = draw(self.samples, TRAIN_SEED), draw(self.test_samples, TEST_SEED)
        whole = Dataset("conditional_gaussians", train, test, 0)
        return whole if self.labels else without_labels(whole)
