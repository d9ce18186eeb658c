"""Diagnostics of finished runs -> curves by method, each point a mean over seeds."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.analysis.filters import RUN
from fewstep.analysis.frame import load
from fewstep.analysis.statistics import Curves, Estimate, estimate
from fewstep.errors import UserError
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory

FEWEST = 16  # losses in a bin, for its mean to be shown
BIN = 1.0  # width of a bin of log-SNR
TANGENT = "tangent_norm"


@dataclass(frozen=True)
class Diagnosed:
    """One run that has been diagnosed: what was found, and its logged curves."""

    key: str
    method: str
    seed: int
    facts: Json
    metrics: list[Json]


def diagnosed_run(run: RunDirectory) -> Diagnosed:
    """A run by itself; its method is its objective's title.

    Raises ``UserError``: it has not been diagnosed.
    """
    if (facts := run.diagnosis()) is None:
        raise UserError(f"run {run.key} has no diagnostics: fewstep diagnose {run.path}")
    seed = (run.spec() or {}).get("config", {}).get("seed", 0)
    return Diagnosed(run.key, str(facts["title"]), int(seed), facts, run.metrics())


def diagnosed_runs(*sweeps: SweepDirectory) -> list[Diagnosed]:
    """The diagnosed runs of sweeps, labelled as in their report, in the plans' order."""
    runs = {(sweep.name, run.key): run for sweep in sweeps for run in sweep.runs()}
    diagnosed = []
    for row in load(*sweeps).drop_duplicates(RUN).to_dict("records"):
        run = runs[row["sweep"], row["key"]]
        if row["status"] == "done" and (facts := run.diagnosis()) is not None:
            diagnosed.append(
                Diagnosed(run.key, row["method"], int(row["seed"]), facts, run.metrics())
            )
    return diagnosed


def arrays(run: RunDirectory) -> dict[str, NDArray[Any]]:
    """``diagnostics.npz``: t (times,), clean (n, ...), noisy and denoised (times, n, ...)."""
    with np.load(run.diagnostics / "diagnostics.npz") as file:
        return dict(file)


def loss_curves(runs: Sequence[Diagnosed]) -> Curves:
    """Held-out loss by log-SNR; open bins stand half a bin beyond the last edge.

    The interval of a method with one seed is that of its held-out examples, 2 standard errors.
    """
    curves = _over_seeds(runs, lambda run: ((x, row["mean"]) for x, row in _bins(run)))
    errors = {(run.method, x): row["standard_error"] for run in runs for x, row in _bins(run)}
    return {
        method: {
            x: Estimate(point.mean, 2 * errors[method, x], 1) if point.n == 1 else point
            for x, point in curve.items()
        }
        for method, curve in curves.items()
    }


def _bins(run: Diagnosed) -> Iterator[tuple[float, Json]]:
    for row in run.facts["loss_by_log_snr"]:
        if row["count"] >= FEWEST:
            yield row["low"] + BIN / 2 if row["low"] is not None else row["high"] - BIN / 2, row


def jump_curves(runs: Sequence[Diagnosed]) -> Curves:
    """RMS error of the jump map by length, a share of t_max; empty without a closed form."""
    return _over_seeds(
        runs, lambda run: ((e["length"], e["rms"]) for e in run.facts.get("jump_error", []))
    )


def tangent_curves(runs: Sequence[Diagnosed]) -> Curves:
    """Norm of the tangent by training step, of the methods that take one."""
    return _over_seeds(
        runs, lambda run: ((row["step"], row[TANGENT]) for row in run.metrics if TANGENT in row)
    )


def _over_seeds(
    runs: Sequence[Diagnosed], points: Callable[[Diagnosed], Iterator[tuple[float, float]]]
) -> Curves:
    values: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        for x, value in points(run):
            if math.isfinite(value):
                values.setdefault(run.method, {}).setdefault(float(x), []).append(float(value))
    return {
        method: {x: estimate(curve[x]) for x in sorted(curve)} for method, curve in values.items()
    }
