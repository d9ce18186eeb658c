"""Precision and recall, density and coverage: balls around points stand for a distribution.

The ball around a point reaches to its k-th nearest neighbour in its own set. With N samples y and
M references x (as many references as samples are taken, where there are so many):

    precision  share of the y in any ball around an x      (Kynkaanniemi et al. 2019, eq. 2)
    recall     share of the x in any ball around a y       (the same)
    density    1 / kN sum over y of how many balls around x it is in     (Naeem et al. 2020, eq. 4)
    coverage   share of the x in whose ball there is any y               (Naeem et al. 2020, eq. 5)

arXiv:1904.06991 and arXiv:2002.09797. All depend on N, M and k, so these are in the identity.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import check_range
from fewstep.experiments.metrics.base import METRICS, Against, Array, Better, Value, check_samples
from fewstep.experiments.metrics.neighbours import blocks, radii
from fewstep.experiments.metrics.reference import Reference

Counts = NDArray[np.int64]


def inside(points: Array, centres: Array, squared_radii: Array) -> tuple[Counts, Counts]:
    """How many balls each of ``points`` is in, and how many points each ball holds."""
    of_points = np.empty(len(points), np.int64)
    of_balls = np.zeros(len(centres), np.int64)
    for rows, distances in blocks(points, centres):
        within = distances <= squared_radii
        of_points[rows] = within.sum(axis=1)
        of_balls += within.sum(axis=0)
    return of_points, of_balls


@dataclass(frozen=True)
class _Neighbourhood:
    """What the four share; ``k``: which nearest neighbour a ball reaches to."""

    k: int

    name: ClassVar[str]
    better: ClassVar[Better] = "higher"
    against: ClassVar[Against] = "rows"

    def __post_init__(self) -> None:
        check_range(f"{self.name}.k", self.k, 1)

    def measure(self, x: Array, reference: Reference) -> Value:
        return Value(self.of(x, reference.rows(len(x))))

    def of(self, samples: Array, real: Array) -> float:
        """Of two feature sets (N, D) and (M, D)."""
        check_samples(self.name, self.k + 1, len(samples), len(real))
        centres, points = (samples, real) if self.name == "recall" else (real, samples)
        return self._share(*inside(points, centres, radii(centres, self.k)))

    def _share(self, of_points: Counts, of_balls: Counts) -> float:
        return float(np.mean(of_points > 0))


@METRICS.register("precision")
@dataclass(frozen=True)
class Precision(_Neighbourhood):
    """Share of samples on the references' manifold (Kynkaanniemi et al. 2019)."""

    k: int = 3
    name: ClassVar[str] = "precision"


@METRICS.register("recall")
@dataclass(frozen=True)
class Recall(_Neighbourhood):
    """Share of references on the samples' manifold (Kynkaanniemi et al. 2019)."""

    k: int = 3
    name: ClassVar[str] = "recall"


@METRICS.register("density")
@dataclass(frozen=True)
class Density(_Neighbourhood):
    """Mean number of references' balls a sample is in, over k; may exceed 1 (Naeem et al. 2020)."""

    k: int = 5
    name: ClassVar[str] = "density"

    def _share(self, of_points: Counts, of_balls: Counts) -> float:
        return float(of_points.mean() / self.k)


@METRICS.register("coverage")
@dataclass(frozen=True)
class Coverage(_Neighbourhood):
    """Share of references with a sample in their ball (Naeem et al. 2020)."""

    k: int = 5
    name: ClassVar[str] = "coverage"

    def _share(self, of_points: Counts, of_balls: Counts) -> float:
        return float(np.mean(of_balls > 0))
