"""Evaluated cells: how a network was sampled, and what metrics say of the samples.

A file in ``evaluations/`` holds one metric of one cell. Samples are drawn once a cell, and every
metric that is asked for is taken of them; one that is added later draws the same samples again.
Of several processes of a run, all draw (drawing.py), and the first one measures.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.config import RunConfig
from fewstep.experiments.data import Dataset
from fewstep.experiments.distributed import ranks
from fewstep.experiments.drawing import Cell, Drawn, calls, draw
from fewstep.experiments.measure import Measure, measures
from fewstep.experiments.network import choose_device, load_network
from fewstep.experiments.provenance import made_by
from fewstep.experiments.reference import Array, Reference, short_hash
from fewstep.experiments.rundir import Json, RunDirectory
from fewstep.experiments.settings import Evaluation
from fewstep.files import replacing

SAMPLES_KEPT = 64  # of each cell, for the sample grid

OnEvaluation = Callable[[int, int, float, float], None]
"""(images that the network was asked for, of how many, a second, seconds that the cell has left)"""


def cells(evaluation: Evaluation) -> list[Cell]:
    """The product that the settings ask for."""
    schedules: list[tuple[int, tuple[float, ...] | None]] = [(k, None) for k in evaluation.steps]
    schedules += [(len(times) - 1, tuple(times)) for times in evaluation.times]
    low, high = (float(share) for share in evaluation.guidance_interval)
    samplers = [tuple(sorted(sampler.items())) for sampler in evaluation.samplers or [{}]]
    return [
        Cell(steps, times, weights, float(guidance), sample_set, (low, high), sampler)
        for (steps, times), weights, guidance, sample_set, sampler in product(
            schedules,
            evaluation.weights,
            evaluation.guidance,
            range(evaluation.sample_sets),
            samplers,
        )
    ]


def cells_to_come(config: RunConfig, directory: RunDirectory) -> list[Cell]:
    """Which cells lack a metric that is asked for; reads JSON only, prepares nothing."""
    have: dict[str, list[Json]] = {}
    for record in directory.cells().values():
        have.setdefault(_told(record["cell"]), []).append(record["asked"])
    asked = config.evaluation.asked()
    # two samplers may come to the same, as none and the objective's own: that is one cell
    want = {_told(cell.describe(config.objective)): cell for cell in cells(config.evaluation)}
    return [c for told, c in want.items() if any(a not in have.get(told, ()) for a in asked)]


def _told(described: Json) -> str:
    return json.dumps(described, sort_keys=True)


def cells_lacking(config: RunConfig, directory: RunDirectory) -> int:
    """How many they are."""
    return len(cells_to_come(config, directory))


def evaluate(
    config: RunConfig,
    dataset: Dataset,
    directory: RunDirectory,
    cache: Path,
    on_images: OnEvaluation,
) -> list[str]:
    """Evaluate the cells that ``config.evaluation`` asks for and the run lacks.

    Returns the names of the files added. A cell's are written as soon as it is known; what
    ``on_images`` raises leaves the cells before.
    """
    settings = config.evaluation
    if not settings.steps and not settings.times:
        return []
    everyone = ranks()
    todo: list[tuple[Cell, dict[str, Measure]]] = []
    if everyone.first:
        todo = _todo(config, directory, measures(settings, dataset, cache))
    drawn_cells = everyone.told([cell for cell, _ in todo])
    samples = settings.samples or len(dataset.test)
    device = choose_device(config.training.device)
    networks = {
        weights: load_network(
            config, dataset, directory.checkpoints, weights, config.training.steps
        ).to(device)
        for weights in sorted({cell.weights for cell in drawn_cells})
    }
    progress = _Progress([samples * calls(config, dataset, c) for c in drawn_cells], on_images)
    untold: list[UserError] = []  # metrics that cannot be taken; the others are, all the same
    for done, cell in enumerate(drawn_cells, start=1):
        started = time.perf_counter()
        drawn = draw(
            config, dataset, networks[cell.weights], cell, samples, settings.batch_size,
            lambda images: progress.drawn(images * everyone.size),
        )  # fmt: skip
        seconds = time.perf_counter() - started
        if everyone.first:
            about = {
                "cell": cell.describe(config.objective),
                "nfe": drawn.nfe,
                "seconds": seconds,
                "images_per_second": samples / seconds,
                "device": str(device),
                "provenance": made_by(),
            }
            untold += _record(directory, drawn, about, todo[done - 1][1])
        everyone.told(done)  # the others wait
        progress.measured()
    if (reason := everyone.told(str(untold[0]) if untold else None)) is not None:
        raise UserError(reason)
    return [name for _, lacking in todo for name in lacking]


class _Progress:
    """How far an evaluation is: images through the network, of those that each cell takes."""

    def __init__(self, cells: Sequence[int], on_images: OnEvaluation) -> None:
        self.cells, self.on_images = cells, on_images
        self.cell = self.images = 0  # images: of this cell
        self.begun = time.perf_counter()

    def drawn(self, images: int) -> None:
        """So many more; a cell is not done before it is measured."""
        self.images = min(self.images + images, self.cells[self.cell] - 1)
        self._tell()

    def measured(self) -> None:
        self.cell, self.images = self.cell + 1, 0
        self._tell()

    def _tell(self) -> None:
        done = sum(self.cells[: self.cell]) + self.images
        rate = done / (time.perf_counter() - self.begun)
        left = (self.cells[self.cell] - self.images) / rate if self.images else 0.0
        self.on_images(done, sum(self.cells), rate, left)


def _todo(
    config: RunConfig, directory: RunDirectory, wanted: Sequence[Measure]
) -> list[tuple[Cell, dict[str, Measure]]]:
    """The cells that lack a metric, and which, by the name of the file to come."""
    found: dict[str, tuple[Cell, dict[str, Measure]]] = {}
    for cell in cells(config.evaluation):
        described = cell.describe(config.objective)
        names = {
            f"steps{cell.steps:04d}-{cell.weights}-"
            + short_hash([described, measure.identity["id"]]): measure
            for measure in wanted
        }
        lacking = {n: m for n, m in names.items() if not directory.cell_file(n).exists()}
        if lacking:
            found[_told(described)] = cell, lacking
    return list(found.values())


def _record(
    directory: RunDirectory, drawn: Drawn, about: Json, lacking: Mapping[str, Measure]
) -> list[UserError]:
    """Measure the samples of one cell, each extractor asked once, and write a file a metric.

    Returns why some cannot be taken.
    """
    untold = []
    features: dict[Reference, Array] = {}
    kept: Path | None = None
    shown = drawn.x[:SAMPLES_KEPT]
    decoders = (measure.reference.features.decode for measure in lacking.values())
    if (decode := next(filter(None, decoders), None)) is not None:
        shown = decode(shown)
    for name, measure in lacking.items():
        if measure.reference not in features:
            features[measure.reference] = measure.reference.features.extract(drawn.x)
        try:
            found = measure.of(features[measure.reference])
        except UserError as error:
            untold.append(error)
            continue
        kept = _keep(directory.samples / f"{name}.npz", shown, drawn.y, kept)
        record = {
            **about,
            "asked": measure.asked,
            "metric": measure.identity,
            "better": measure.metric.better,
            "value": found.value,
            "floor": measure.floor,
        }
        if found.error is not None:
            record["error"] = found.error
        directory.write_within(directory.cell_file(name), record)
    return untold


def _keep(file: Path, shown: Tensor, y: Tensor | None, kept: Path | None) -> Path:
    """Write the first samples to ``file``, or link it to where they are ``kept`` already."""
    file.parent.mkdir(exist_ok=True)
    with replacing(file) as other:
        if kept is not None:
            with contextlib.suppress(OSError):  # a file system without hard links
                os.link(kept, other)
                return file
        arrays = {"images": shown.numpy()}
        if y is not None:
            arrays["labels"] = y[:SAMPLES_KEPT].numpy()
        with other.open("wb") as opened:
            np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]
    return file
