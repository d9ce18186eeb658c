"""FD against the number of samples, for one cell of a finished run and for real images.

FD falls about linearly in 1/N (Chong & Forsyth 2020); the line's end at 1/N = 0 is what infinitely
many samples would have.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewstep.experiments.config import RunConfig
from fewstep.experiments.data import Dataset
from fewstep.experiments.drawing import Cell, draw
from fewstep.experiments.measure import Measure, measures
from fewstep.experiments.metrics import at_infinity, bias_curve
from fewstep.experiments.network import choose_device, load_network
from fewstep.experiments.rundir import Json, RunDirectory


@dataclass(frozen=True)
class Curve:
    """``sizes`` and ``values`` (points,) of nested subsets, and the line through them over 1/N."""

    what: str
    sizes: NDArray[np.float64]
    values: NDArray[np.float64]
    limit: float
    slope: float

    @classmethod
    def of(cls, what: str, features: NDArray[np.float64], measure: Measure, points: int) -> Curve:
        sizes, values = bias_curve(features, measure.reference, points)
        return cls(what, sizes, values, *at_infinity(sizes, values))

    def record(self) -> Json:
        """Itself as JSON."""
        return {
            "what": self.what,
            "sizes": self.sizes.astype(int).tolist(),
            "values": self.values.tolist(),
            "limit": self.limit,
            "slope": self.slope,
        }


def bias_curves(
    config: RunConfig,
    directory: RunDirectory,
    dataset: Dataset,
    cache: Path,
    cell: Cell,
    points: int,
) -> list[tuple[Json, list[Curve]]]:
    """For each extractor, the metric's identity, and the curves of samples and of held-out reals.

    Raises:
        UserError: too few samples for the features' dimension, or no checkpoint.
    """
    settings = config.evaluation
    wanted = [m for m in measures(settings, dataset, cache) if m.metric.name == "FD"]
    net = load_network(config, dataset, directory.checkpoints, cell.weights)
    net.to(choose_device(config.training.device))
    samples = settings.samples or len(dataset.test)
    x = draw(config, dataset, net, cell, samples, settings.batch_size).x
    found = []
    for measure in wanted:
        features = measure.reference.features.extract(x)
        curves = [Curve.of("samples", features, measure, points)]
        real = measure.reference.held_out(samples)
        if real is not None:
            curves.append(Curve.of("held-out real", real, measure, points))
        found.append((measure.identity, curves))
    return found
