"""KID: the maximum mean discrepancy with a polynomial kernel (Binkowski et al. 2018, sec. 4).

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),   k(x, y) = (gamma x.y + coef)^degree

estimated without bias by means over all pairs, x with x' != x (Gretton et al. 2012, eq. 3). The
mean over subsets of 1,000, which the paper takes, has the same expectation and a larger spread.

The standard error is that of a U-statistic, to first order (Hoeffding 1948; Serfling 1980, sec.
5.3): with a_i = mean_j k(x_i, x_j) - mean_j k(x_i, y_j) and b_i likewise, var = 4 var(a) / n +
4 var(b) / m. It is too large where both distributions are the same.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewstep.errors import check_fields, check_range
from fewstep.experiments.metrics.base import METRICS, Against, Array, Better, Value, check_samples
from fewstep.experiments.metrics.neighbours import ENTRIES
from fewstep.experiments.metrics.reference import Reference


@METRICS.register("kid")
@dataclass(frozen=True)
class KID:
    """Unbiased squared MMD with a polynomial kernel, over all pairs; with its standard error.

    Attributes:
        degree, gamma, coef: of the kernel (gamma x.y + coef)^degree; gamma 0 stands for 1 / D.
    """

    degree: int = 3
    gamma: float = 0.0
    coef: float = 1.0

    name: ClassVar[str] = "KID"
    better: ClassVar[Better] = "lower"
    against: ClassVar[Against] = "rows"

    def __post_init__(self) -> None:
        check_range("kid.degree", self.degree, 1)
        check_fields("kid", self, "gamma coef", 0)

    def measure(self, x: Array, reference: Reference) -> Value:
        return self.of(x, reference.rows(len(x)))

    def of(self, x: Array, y: Array) -> Value:
        """Of two feature sets (n, D) and (m, D)."""
        n, m = len(x), len(y)
        check_samples(self.name, 2, n, m)
        within_x = self._sums(x, x)[0] - self._own(x)
        within_y = self._sums(y, y)[0] - self._own(y)
        from_x, from_y = self._sums(x, y)
        a = within_x / (n - 1) - from_x / m
        b = within_y / (m - 1) - from_y / n
        variance = 4 * a.var(ddof=1) / n + 4 * b.var(ddof=1) / m
        # the means of a and b hold the cross term once each: together, MMD^2
        return Value(float(a.mean() + b.mean()), float(np.sqrt(variance)))

    def _sums(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Sums of the kernel matrix of ``x`` and ``y`` over its columns (n,) and its rows (m,)."""
        over_y, over_x = np.empty(len(x)), np.zeros(len(y))
        size = max(1, ENTRIES // len(y))
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            k = self._kernel(x[rows] @ y.T, x.shape[1])
            over_y[rows] = k.sum(axis=1)
            over_x += k.sum(axis=0)
        return over_y, over_x

    def _own(self, x: Array) -> Array:
        """(n,) k(x, x)."""
        return self._kernel((x**2).sum(axis=1), x.shape[1])

    def _kernel(self, product: Array, d: int) -> Array:
        product *= self.gamma or 1 / d
        product += self.coef
        powers = product.copy()
        for _ in range(self.degree - 1):  # a third of the time of **
            powers *= product
        return powers
