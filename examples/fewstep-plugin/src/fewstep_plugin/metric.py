"""A metric: the distance between the means of the samples' and the reference's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewstep.experiments.metrics.base import Against, Array, Better, Value, check_samples
from fewstep.experiments.metrics.reference import Reference


@dataclass(frozen=True)
class MeanShift:
    """|mean(samples) - mean(reference)| in feature space; ``relative``: over the latter's norm."""

    name: ClassVar[str] = "mean shift"
    better: ClassVar[Better] = "lower"
    against: ClassVar[Against] = "moments"

    relative: bool = False

    def measure(self, x: Array, reference: Reference) -> Value:
        """Of samples with features ``x`` (N, D)."""
        check_samples(self.name, 1, len(x))
        mu = reference.moments.mu
        shift = float(np.linalg.norm(x.mean(axis=0) - mu))
        return Value(shift / float(np.linalg.norm(mu)) if self.relative else shift)
