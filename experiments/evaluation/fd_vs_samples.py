"""FD against the number of samples, for one cell of a finished run and for real images.

FD falls about linearly in 1/N (Chong & Forsyth 2020); the line's end at 1/N = 0 is what infinitely
many samples would have.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.data import Dataset
from fewstep.experiments.evaluation.measurement import metric_instances
from fewstep.experiments.evaluation.sampling import SamplingConfig, draw
from fewstep.experiments.metrics import at_infinity, bias_curve
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training.network import choose_device, load_network


@dataclass(frozen=True)
class Curve:
    """``sizes`` and ``values`` (points,) of nested subsets, and the line through them over 1/N."""

    what: str
    sizes: NDArray[np.float64]
    values: NDArray[np.float64]
    limit: float
    slope: float

    def record(self) -> Json:
        sizes, values = self.sizes.astype(int).tolist(), self.values.tolist()
        return {**vars(self), "sizes": sizes, "values": values}


def bias_curves(
    config: RunConfig,
    directory: RunDirectory,
    dataset: Dataset,
    cache: Path,
    cell: SamplingConfig,
    points: int,
) -> list[tuple[Json, list[Curve]]]:
    """For each extractor: the metric's identity, and curves of samples and of held-out reals."""
    settings = config.evaluation
    wanted = [m for m in metric_instances(settings, dataset, cache) if m.metric.name == "FD"]
    net = load_network(config, dataset, directory, cell.weights)
    net.to(choose_device(config.training.device))
    samples = settings.samples or len(dataset.test)
    x = draw(config, dataset, net, cell, samples, settings.batch_size).x
    by_extractor = []
    for measure in wanted:
        reference, curves = measure.reference, []
        feature_sets = {
            "samples": reference.features.extract(x),
            "held-out real": reference.held_out(samples),
        }
        for what, features in feature_sets.items():
            if features is not None:
                sizes, values = bias_curve(features, reference, points)
                curves.append(Curve(what, sizes, values, *at_infinity(sizes, values)))
        by_extractor.append((measure.identity, curves))
    return by_extractor
