"""Evaluated cells: how a network was sampled, and what metrics say of the samples.

A file in ``evaluations/`` holds one metric of one cell. Samples are drawn once a cell for all its
metrics; one that is added later draws the same samples again. All processes of a run draw
(sampling.py), rank 0 measures.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.config.settings import Evaluation, Training
from fewstep.experiments.data import Dataset
from fewstep.experiments.distributed.process_group import ranks
from fewstep.experiments.evaluation.measurement import (
    MetricInstance,
    features_of,
    is_made_so,
    made_with,
    metric_instances,
)
from fewstep.experiments.evaluation.sampling import SampleBatch, SamplingConfig, calls, draw
from fewstep.experiments.metrics.reference import short_hash
from fewstep.experiments.store.json_files import Json, read_record, replace_json
from fewstep.experiments.store.provenance import provenance_record
from fewstep.experiments.store.run_directory import RunDirectory, was_asked
from fewstep.experiments.training.network import choose_device, load_network
from fewstep.files import patiently, relative_to, replacing

SAMPLES_KEPT = 64  # of each cell, for the sample grid

OnEvaluation = Callable[[int, int, float, float], None]
"""(images that the network was asked for, of how many, a second, seconds that the cell has left)"""


def cells(evaluation: Evaluation, training: Training) -> list[SamplingConfig]:
    """The product that the settings ask for, of a run that is trained so."""
    schedules: list[tuple[int, tuple[float, ...] | None]] = [(k, None) for k in evaluation.steps]
    schedules += [(len(times) - 1, tuple(times)) for times in evaluation.times]
    low, high = (float(share) for share in evaluation.guidance_interval)
    samplers = [tuple(sorted(sampler.items())) for sampler in evaluation.samplers or [{}]]
    scales, sets = list(map(float, evaluation.guidance)), range(evaluation.sample_sets)
    return [
        SamplingConfig(steps, times, weights, guidance, sample_set, (low, high), sampler, at_step)
        for at_step, weights, (steps, times), guidance, sample_set, sampler in product(
            [None, *evaluation.at_steps], evaluation.weights_of(training),
            schedules, scales, sets, samplers,
        )
    ]  # fmt: skip


def cells_to_come(config: RunConfig, directory: RunDirectory) -> list[SamplingConfig]:
    """Which cells lack a metric that is asked for; reads JSON only, prepares nothing."""
    have: dict[str, list[Json]] = {}
    for record in directory.cells().values():
        have.setdefault(canonical(record["cell"]), []).append(record)
    with relative_to(directory.made_in()):
        requests = [(asked, made_with(asked)) for asked in config.evaluation.metric_requests()]

    def lacks(name: str) -> bool:
        records = have.get(name, [])
        return not all(
            any(was_asked(r, asked) and is_made_so(r, wanted) for r in records)
            for asked, wanted in requests
        )

    # two samplers may come to the same, as none and the objective's own: that is one cell
    asked = cells(config.evaluation, config.training)
    want = {canonical(cell.describe(config.objective)): cell for cell in asked}
    return [cell for name, cell in want.items() if lacks(name)]


def check_weights_kept(config: RunConfig, directory: RunDirectory) -> None:
    """``UserError`` where cells are asked for of a training step that a run has passed by."""
    if not config.evaluation.at_steps or not (reached := directory.last_step()):
        return
    for cell in cells_to_come(config, directory):
        step = cell.at_step
        if step is not None and step <= reached and not directory.has_weights(step):
            raise UserError(
                f"run {directory.key} is at step {reached} and has kept no weights of step {step}: "
                f"leave {step} out of evaluation.at_steps, or remove {directory.path} to train it "
                f"again"
            )


def canonical(described: Json) -> str:
    """A description as text that is equal where the descriptions are."""
    return json.dumps(described, sort_keys=True)


def cells_lacking(config: RunConfig, directory: RunDirectory) -> int:
    """How many they are."""
    return len(cells_to_come(config, directory))


def evaluate(
    config: RunConfig, dataset: Dataset, directory: RunDirectory, on_images: OnEvaluation
) -> list[str]:
    """Evaluate the cells that ``config.evaluation`` asks for and the run lacks.

    Returns the names of the files added. A cell's are written as soon as it is known; what
    ``on_images`` raises leaves the cells before.
    """
    settings = config.evaluation
    if not settings.steps and not settings.times:
        return []
    everyone = ranks()
    todo: list[tuple[SamplingConfig, dict[str, MetricInstance]]] = []
    if everyone.is_main:
        todo = _todo(config, directory, metric_instances(settings, dataset, directory.cache))
    drawn_cells = everyone.broadcast([cell for cell, _ in todo])
    samples = settings.samples or len(dataset.test)
    device, step = choose_device(config.training.device), config.training.steps

    @lru_cache(maxsize=1)  # those of one network come together
    def network(weights: str, at_step: int | None) -> nn.Module:
        return load_network(config, dataset, directory, weights, step, at_step).to(device)

    progress = _Progress([samples * calls(config, dataset, c) for c in drawn_cells], on_images)
    errors: list[UserError] = []  # of metrics that cannot be computed; the others are
    for done, cell in enumerate(drawn_cells, start=1):
        started = time.perf_counter()
        net = network(cell.weights, cell.at_step)
        drawn = draw(
            config, dataset, net, cell, samples, settings.batch_size,
            lambda images: progress(images * everyone.size), solvers=directory.solvers,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        if everyone.is_main:
            about = {
                "cell": cell.describe(config.objective),
                "nfe": drawn.nfe,
                "seconds": seconds,
                "images_per_second": samples / seconds,
                "device": str(device),
                "provenance": provenance_record(),
            }
            if drawn.training is not None:
                about["sampler_training"] = drawn.training
            if drawn.y is not None and drawn.y.ndim == 2:  # which vectors they were sampled for
                sha256 = hashlib.sha256(drawn.y.numpy().tobytes()).hexdigest()
                about["conditions"] = {"dim": drawn.y.shape[1], "id": sha256[:12]}
            errors += _record(directory, drawn, about, todo[done - 1][1])
        everyone.broadcast(done)  # the others wait
        progress(None)
    if (reason := everyone.broadcast(str(errors[0]) if errors else None)) is not None:
        raise UserError(reason)
    return [name for _, lacking in todo for name in lacking]


class _Progress:
    """The progress of an evaluation: images through the network, of those that each cell needs."""

    def __init__(self, cells: Sequence[int], on_images: OnEvaluation) -> None:
        self.cells, self.on_images = cells, on_images
        self.cell = self.images = 0  # images: of this cell
        self.begun = time.perf_counter()

    def __call__(self, images: int | None) -> None:
        """So many more of this cell, which is not done before it is measured (None)."""
        if images is None:
            self.cell, self.images = self.cell + 1, 0
        else:
            self.images = min(self.images + images, self.cells[self.cell] - 1)
        done = sum(self.cells[: self.cell]) + self.images
        rate = done / (time.perf_counter() - self.begun)
        left = (self.cells[self.cell] - self.images) / rate if self.images else 0.0
        self.on_images(done, sum(self.cells), rate, left)


def _todo(
    config: RunConfig, directory: RunDirectory, wanted: Sequence[MetricInstance]
) -> list[tuple[SamplingConfig, dict[str, MetricInstance]]]:
    lacking_by_cell: dict[str, tuple[SamplingConfig, dict[str, MetricInstance]]] = {}
    for cell in cells(config.evaluation, config.training):
        described = cell.describe(config.objective)
        at_step = "" if cell.at_step is None else f"at{cell.at_step}-"
        name = f"steps{cell.steps:04d}-{cell.weights}-{at_step}"
        names = {name + short_hash([described, m.identity["id"]]): m for m in wanted}
        known = {n: record for n in names if (record := read_record(directory.cell_file(n)))}
        for n, record in known.items():
            _note_words(directory.cell_file(n), record, names[n].request)
        if lacking := {n: m for n, m in names.items() if n not in known}:
            lacking_by_cell[canonical(described)] = cell, lacking
    return list(lacking_by_cell.values())


def _note_words(file: Path, record: Json, request: Json) -> None:
    """Note that a cell is asked for in other words, as by another path: it lacks no longer."""
    wanted = made_with(request)
    if was_asked(record, request) and is_made_so(record, wanted):
        return
    if (files := wanted.get("extractor_files")) is not None:
        record["extractor_files"] = files  # others, of which its metric's id is the same
    if not was_asked(record, request):
        record["asked_also"] = [*record.get("asked_also", []), request]
    replace_json(file, record)


def _record(
    directory: RunDirectory, drawn: SampleBatch, about: Json, lacking: Mapping[str, MetricInstance]
) -> list[UserError]:
    """Write one file per metric of a cell; returns the errors of those that cannot be computed."""
    errors = []
    features = features_of(lacking.values(), drawn.x)
    kept: Path | None = None
    shown = drawn.x[:SAMPLES_KEPT]
    decoders = (measure.reference.features.decode for measure in lacking.values())
    if (decode := next(filter(None, decoders), None)) is not None:
        shown = decode(shown)
    for name, measure in lacking.items():
        try:
            value = measure.of(features[measure.reference])
        except UserError as error:
            errors.append(error)
            continue
        wanted = made_with(measure.request)
        keep = partial(_keep, directory.samples / f"{name}.npz", shown, drawn.y, kept)
        kept = patiently(keep)
        record = {
            **about,
            "asked": measure.request,
            **(
                {}
                if (files := wanted.get("extractor_files")) is None
                else {"extractor_files": files}
            ),
            "metric": measure.identity,
            "better": measure.metric.better,
            "value": value.value,
            "floor": measure.floor,
        }
        if measure.reconstruction is not None:
            record["reconstruction"] = measure.reconstruction
        if value.error is not None:
            record["error"] = value.error
        directory.write_file(directory.cell_file(name), record)
    return errors


def _keep(file: Path, shown: Tensor, y: Tensor | None, kept: Path | None) -> Path:
    file.parent.mkdir(exist_ok=True)
    with replacing(file) as other:
        if kept is not None:
            with contextlib.suppress(OSError):  # a file system without hard links
                os.link(kept, other)
                return file
        arrays = {"images": shown.numpy()}
        if y is not None:
            name = "labels" if y.ndim == 1 else "conditions"
            arrays[name] = y[:SAMPLES_KEPT].numpy()
        with other.open("wb") as opened:
            np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]
    return file
