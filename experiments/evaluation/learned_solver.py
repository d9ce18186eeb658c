"""Solvers that are trained for a run's network (``objectives/core/amed.py``), kept with the run.

A trained solver is one small JSON file: its settings, its weights and what it cost. A cell that has
the same settings takes it from there, so that evaluating again gives the same samples.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from fewstep.experiments.distributed.process_group import ranks
from fewstep.experiments.metrics.reference import short_hash
from fewstep.experiments.store.json_files import Json, read_record, write_json
from fewstep.objectives.core.amed import Amed, ConditionalField, StepPredictor, train

VERSION = 1  # of how they are trained


class Passes:
    """Counts rows through a network, and twice where a gradient goes back to its input."""

    count = 0

    def __call__(self, rows: int) -> None:
        self.count += rows * (2 if torch.is_grad_enabled() else 1)


def trained_solver(
    velocity: ConditionalField,
    start: Tensor,
    y: Tensor | None,
    times: Sequence[float],
    settings: Amed,
    g: Generator,
    described: Json,
    folder: Path | None,
    passes: "Passes",
) -> tuple[StepPredictor, Json]:
    """The solver of the cell ``described``, and what it cost; from ``folder`` where it is there.

    ``passes`` counts those of ``velocity``; the other arguments are as for ``amed.train``. All
    processes train, which keeps them in step, and take what the first has found.
    """
    identity = {"cell": described, "version": VERSION}
    file = None if folder is None else folder / f"{short_hash(identity)}.json"
    everyone = ranks()
    stored = read_record(file) if everyone.is_main and file is not None else None
    if (record := everyone.broadcast(stored)) is None:
        began = time.perf_counter()
        predictor, before, after = train(velocity, start, y, times, settings, g)
        weights = {name: w.tolist() for name, w in predictor.state_dict().items()}
        training: Json = {
            "seconds": time.perf_counter() - began,
            "passes": passes.count,
            "midpoint_errors": before,
            "errors": after,
        }
        made: Json = {**identity, "weights": weights, "training": training}
        record = everyone.broadcast(made)
        if everyone.is_main and file is not None and math.isfinite(sum(after)):
            write_json(file, record)
    cost: Json = record["training"]
    if not math.isfinite(sum(cost["errors"])):
        raise FloatingPointError(f"solver amed, {len(times) - 1} steps: its error is not finite")
    predictor = StepPredictor(settings.scale, Generator()).to(start)
    predictor.load_state_dict({k: torch.tensor(w) for k, w in record["weights"].items()})
    return predictor.requires_grad_(False), cost
