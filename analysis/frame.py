"""Run directories -> one tidy frame: a row is a run x cell x metric, with its costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fewstep.analysis.origin import (
    CELL_ORIGIN,
    COSTS,
    ORIGIN,
    PROTOCOL,
    SETTINGS,
    add_teachers,
    cell_origin,
    costs,
    origin,
    protocol,
)
from fewstep.errors import UserError, unknown
from fewstep.experiments.rundir import Json, RunDirectory, SweepDirectory, find_sweeps

# Nullable types throughout: a run that failed has no steps and no value, and must not turn
# a column of integers into floats.
COLUMNS: dict[str, str] = {
    "sweep": "string",
    "key": "string",
    "seed": "Int64",
    "status": "string",  # done | failed | stopped | running | new
    "failure_class": "string",  # also "stopped" for a run that ended before its planned steps
    "failure_message": "string",
    "method": "string",  # display label: title and the choices that vary
    "title": "string",
    "objective": "string",
    "backbone": "string",
    "data": "string",
    "cell": "string",  # stem of the evaluation's and the samples' file; missing: no cell
    "steps": "Int64",  # sampling steps
    "times": "string",  # "uniform" or the times given, space separated
    "sampler": "string",  # "solver=heun, ..." or "default"
    "weights": "string",  # ema | raw
    "guidance": "float64",
    "sample_set": "Int64",
    "metric": "string",  # label, e.g. FD-digits-cnn@597
    "metric_id": "string",
    "metric_name": "string",
    "extractor": "string",
    "extractor_sha256": "string",
    "value": "float64",
    "floor": "float64",
    "nfe": "Int64",
    "samples": "Int64",
    "reference": "string",
    "reference_samples": "Int64",
    "reference_sha256": "string",
    "planned_steps": "Int64",  # optimisation steps asked for
    "planned_cells": "string",  # sampling step counts asked for, space separated
    "train_steps": "Int64",
    "images_seen": "Int64",
    "train_seconds": "float64",
    "steps_per_second": "float64",
    "sample_images_per_second": "float64",
    "peak_memory_bytes": "Int64",
    "parameters": "Int64",
    **PROTOCOL,
    **SETTINGS,
    **COSTS,
    **ORIGIN,
    **CELL_ORIGIN,
}


def load(sweep: SweepDirectory | Path, stopped: bool = False) -> pd.DataFrame:
    """Every member of a sweep as rows with the columns ``COLUMNS``, in the plan's order.

    A run without any cell (failed, running or not begun) has one row whose value is missing, so
    that it can not vanish from a table. So has a run that a search algorithm ended early, unless
    ``stopped`` asks for it: then its cell is that of the rung at which it was ended.

    Raises:
        UserError: there is no such sweep, or one of its files is not what it should be.
    """
    directory = sweep if isinstance(sweep, SweepDirectory) else SweepDirectory(Path(sweep))
    plan = directory.plan()
    runs = directory.runs()
    if plan is None and not runs:
        names = [other.name for other in find_sweeps(directory.path.parent)]
        raise unknown("sweep", directory.name, names)
    planned: dict[str, Json] = {run["key"]: run for run in (plan or {}).get("runs", [])}
    facts = [_run_facts(directory.name, run, planned.get(run.key, {})) for run in runs]
    add_teachers(facts, directory.path.parent)
    labels = method_labels(
        [(str(fact["title"]), planned.get(run.key, {}).get("choices", {}))
         for run, fact in zip(runs, facts, strict=True)],
        (plan or {}).get("axes", ()),
    )  # fmt: skip
    rows = [
        {**fact, "method": label, **cell}
        for run, fact, label in zip(runs, facts, labels, strict=True)
        for cell in _cells(run, stopped)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    try:
        return frame.astype(COLUMNS)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"sweep {directory.name!r} holds a field of a wrong type: {error}"
        ) from None


def method_labels(
    runs: Sequence[tuple[str, Mapping[str, Any]]], axes: Sequence[str] = ()
) -> list[str]:
    """Display labels: the title, and the choice on every other axis that varies in the sweep.

    ``runs`` pairs each run's title with its choices. The objective's own choice is added only
    where two of them would share a label.
    """
    order = list(dict.fromkeys([*axes, *(axis for _, choices in runs for axis in choices)]))
    varying = [
        axis
        for axis in order
        if axis != "objective" and len({str(choices.get(axis)) for _, choices in runs}) > 1
    ]
    labels = [
        " · ".join([title, *(f"{axis}={choices[axis]}" for axis in varying if axis in choices)])
        for title, choices in runs
    ]
    objectives: dict[str, set[str]] = {}
    for label, (_, choices) in zip(labels, runs, strict=True):
        objectives.setdefault(label, set()).add(str(choices.get("objective")))
    return [
        f"{label} · objective={choices.get('objective')}" if len(objectives[label]) > 1 else label
        for label, (_, choices) in zip(labels, runs, strict=True)
    ]


def _run_facts(sweep: str, run: RunDirectory, member: Json) -> Json:
    """What is the same for all cells of a run."""
    spec = run.spec() or {}
    config = spec.get("config", {})
    status = run.status()
    result = (run.result() or {}) if status == "done" else {}
    failure = (run.failure() or {}) if status == "failed" else {}
    if status == "stopped":
        failure, result = _end_of_stopped(run)
    if not result and (lines := run.metrics()):  # costs so far, for one that did not end well
        last = lines[-1]
        result = {
            "steps": last.get("step"),
            "images_seen": last.get("images_seen"),
            "train_seconds": last.get("seconds"),
        }
    choices = member.get("choices", {})
    objective = _name(config, "objective") or choices.get("objective")
    planned_steps = config.get("training", {}).get("steps")
    # A scheduler (ASHA) may end a run early: on a smaller budget it must not enter a comparison.
    stopped = status == "done" and (result.get("steps") or 0) < (planned_steps or 0)
    return {
        "sweep": sweep,
        "key": run.key,
        "seed": member.get("seed", config.get("seed", 0)),
        "status": status,
        "failure_class": "stopped" if stopped else failure.get("class"),
        "failure_message": failure.get("message"),
        "title": member.get("title") or spec.get("title") or objective or run.key,
        "objective": objective,
        "backbone": _name(config, "backbone") or choices.get("backbone"),
        "data": _name(config, "data") or choices.get("data"),
        "planned_steps": planned_steps,
        "planned_cells": " ".join(map(str, config.get("evaluation", {}).get("steps", []))) or None,
        "train_steps": result.get("steps"),
        "images_seen": result.get("images_seen"),
        "train_seconds": result.get("train_seconds"),
        "steps_per_second": result.get("steps_per_second"),
        "peak_memory_bytes": result.get("peak_memory_bytes"),
        "parameters": result.get("parameters"),
        **protocol(config),
        **costs(result),
        **origin(result, spec),
    }


def _end_of_stopped(run: RunDirectory) -> tuple[Json, Json]:
    """What stands for the failure and the result of a run that was ended early."""
    mark = run.stopped() or {}
    step, by = mark.get("step"), mark.get("by")
    rung = run.rungs().get(step, {}) if step is not None else {}
    failure = {"class": "stopped", "message": f"ended early by {by} at step {step}"}
    return failure, {"steps": step, "images_seen": rung.get("images_seen")}


def _cells(run: RunDirectory, stopped: bool) -> Iterator[Json]:
    """The evaluated cells of a run; one empty mapping where there is none."""
    cells = run.cells()
    if run.status() == "stopped":
        step = (run.stopped() or {}).get("step")
        cells = {f"rung-{s}": r for s, r in run.rungs().items() if stopped and s == step}
    if not cells:
        yield {}
    for name, record in cells.items():
        try:
            cell, metric = record["cell"], record["metric"]
            yield {
                "cell": name,
                "steps": cell["steps"],
                "times": _times(cell.get("times")),
                "sampler": _sampler(cell.get("sampler")),
                "weights": cell["weights"],
                "guidance": cell["guidance"],
                "sample_set": cell["sample_set"],
                "metric": metric["label"],
                "metric_id": metric["id"],
                "metric_name": metric["name"],
                "extractor": metric.get("extractor"),
                "extractor_sha256": metric.get("extractor_sha256"),
                "value": record["value"],
                "floor": record.get("floor"),
                "nfe": record.get("nfe"),
                "samples": metric["samples"],
                "reference": metric.get("reference"),
                "reference_samples": metric.get("reference_samples"),
                "reference_sha256": metric.get("reference_sha256"),
                "sample_images_per_second": record.get("images_per_second"),
                **cell_origin(record),
            }
        except (KeyError, TypeError) as error:
            raise UserError(f"{run.cell_file(name)} is not an evaluation: {error!r}") from None


def _name(config: Json, group: str) -> str | None:
    entry = config.get(group)
    return entry.get("name") if isinstance(entry, dict) else None


def _times(times: Sequence[float] | None) -> str:
    return "uniform" if times is None else " ".join(f"{t:.6g}" for t in times)


def _sampler(sampler: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{k}={v}" for k, v in sorted((sampler or {}).items())) or "default"
