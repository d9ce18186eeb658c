"""The Frechet distance, and its limit for infinitely many samples."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewstep.errors import UserError, check_range
from fewstep.experiments.extractors.base import SPATIAL
from fewstep.experiments.metrics.base import METRICS, Against, Array, Better, Value
from fewstep.experiments.metrics.frechet_distance import frechet_distance
from fewstep.experiments.metrics.reference import Reference
from fewstep.experiments.rng import derive

SAMPLES_PER_DIMENSION = 2.5  # 5,120 in Inception's 2,048 dimensions, where Chong & Forsyth begin


@METRICS.register("fd")
@dataclass(frozen=True)
class FD:
    """Frechet distance of Gaussian fits (Heusel et al. 2017); FID in Inception's features."""

    name: ClassVar[str] = "FD"
    better: ClassVar[Better] = "lower"
    against: ClassVar[Against] = "moments"

    def measure(self, x: Array, reference: Reference) -> Value:
        return Value(frechet_distance(reference.stats(x), reference.moments))


@METRICS.register("sfid")
@dataclass(frozen=True)
class SFD(FD):
    """The Frechet distance in spatial features: sFID (Nash et al. 2021, arXiv:2103.03841).

    Where things are counts there, which FD's features, averages over the image, hardly show.
    """

    name: ClassVar[str] = "sFD"
    layer: ClassVar[str] = SPATIAL


@METRICS.register("fd_inf")
@dataclass(frozen=True)
class FDInf:
    """FD at infinite N: the intercept of FD over 1/N (Chong & Forsyth 2020, arXiv:1911.07023).

    The bias of the samples' statistics is gone to first order, that of the references' is not.

    Attributes:
        points: subsets, of equally spaced sizes up to all samples, each within the next one.
        seed: of the order in which they grow.
    """

    points: int = 15
    seed: int = 0

    name: ClassVar[str] = "FDinf"
    better: ClassVar[Better] = "lower"
    against: ClassVar[Against] = "moments"

    def __post_init__(self) -> None:
        check_range("fd_inf.points", self.points, 3)

    def measure(self, x: Array, reference: Reference) -> Value:
        limit, _ = at_infinity(*bias_curve(x, reference, self.points, self.seed))
        return Value(limit)


def bias_curve(
    x: Array, reference: Reference, points: int = 15, seed: int = 0
) -> tuple[Array, Array]:
    """FD of nested random subsets of ``x`` (N, D): sizes (points,) and distances (points,).

    Sizes are equally spaced from N / 10 or 2.5 D, the larger, to N: below, FD is not linear in 1/N.
    Raises ``UserError`` for fewer than 5 D samples.
    """
    n, d = x.shape
    smallest = max(n / 10, SAMPLES_PER_DIMENSION * d)
    if n < 2 * smallest:
        needed = f"at least {2 * SAMPLES_PER_DIMENSION * d:.0f} samples in {d} dimensions"
        raise UserError(f"FD against 1/N needs {needed}, got {n}")
    order = np.random.default_rng(derive(seed, "bias")).permutation(n)
    sizes = np.unique(np.linspace(smallest, n, points).round().astype(int))
    values = [
        frechet_distance(reference.stats(x[order[:size]]), reference.moments) for size in sizes
    ]
    return sizes.astype(np.float64), np.array(values)


def at_infinity(sizes: Array, values: Array) -> tuple[float, float]:
    """Intercept and slope of the least-squares line through ``values`` over 1 / ``sizes``."""
    slope, intercept = np.polyfit(1 / sizes, values, 1)
    return float(intercept), float(slope)
