"""Run directories -> one tidy frame: a row is a run x cell x metric, with its costs."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fewstep.analysis import columns
from fewstep.analysis.columns import CELL_COLUMNS, COLUMNS
from fewstep.analysis.conditions import reference_file, run_conditions
from fewstep.analysis.spikes import first_spike
from fewstep.errors import UserError, counted, unknown
from fewstep.experiments.store.json_files import CorruptFile, Json
from fewstep.experiments.store.known_references import names_by_sha256
from fewstep.experiments.store.metrics_file import curve_problem
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory, find_sweeps

MEASURED = ("images_seen", "train_seconds", "steps_per_second", "peak_memory_bytes", "parameters")
REFERENCE = ("extractor", "extractor_sha256", "reference", "reference_samples", "reference_sha256")


def load(*sweeps: SweepDirectory | Path | str, stopped: bool = False) -> pd.DataFrame:
    """Every member of the sweeps as rows with the columns ``COLUMNS``, in the plans' order.

    A run without any cell (failed, running or not begun) has one row whose value is missing, so
    that it can not vanish from a table. So has a run that a search algorithm ended early, unless
    ``stopped`` asks for it: then its cell is that of the rung at which it was ended.

    Where methods of several sweeps share a label, the sweep's name is added to it.

    Raises ``UserError``: there is no such sweep, two have one name, or one of the files is not what
    it should be.
    """
    frames = [_frame(directory, stopped) for directory in sweep_directories(sweeps)]
    sweeps_of = Counter(label for frame in frames for label in frame["method"].unique())
    for frame in frames:
        shared = frame["method"].map(sweeps_of) > 1
        named = frame["method"] + " · sweep=" + frame["sweep"]
        frame["method"] = frame["method"].mask(shared, named)
    return pd.concat(frames, ignore_index=True)


def sweep_directories(sweeps: Sequence[SweepDirectory | Path | str]) -> list[SweepDirectory]:
    """The directories, each name once.

    Raises ``UserError``: there is none, or two have one name.
    """
    directories = [s if isinstance(s, SweepDirectory) else SweepDirectory(Path(s)) for s in sweeps]
    if not directories:
        raise UserError("no sweep was named")
    twice = [name for name, count in Counter(d.name for d in directories).items() if count > 1]
    if twice:
        raise UserError(f"two sweeps have the name {twice[0]!r}; their labels would be the same")
    return directories


def _frame(directory: SweepDirectory, stopped: bool) -> pd.DataFrame:
    """The rows of one sweep; what is common to the cells of a run is held once until typed."""
    plan, runs = directory.plan() or {}, directory.runs()
    if not plan and not runs:
        names = [other.name for other in find_sweeps(directory.path.parent)]
        raise unknown("sweep", directory.name, names)
    members: dict[str, Json] = {member["key"]: member for member in plan.get("runs", [])}
    references = names_by_sha256(directory.path.parent)
    facts, read, problems = [], [], list[str]()
    for run in runs:
        try:
            fact = _run_facts(directory.name, run, members.get(run.key, {}))
            evaluated = list(_cells(run, fact["status"], stopped, references))
            problems += [problem] if (problem := curve_problem(run)) else []
        except (CorruptFile, OSError) as error:  # it stays as a run without a value
            warnings.warn(f"left out: {error}", stacklevel=3)
            fact, evaluated = _unreadable(directory.name, run, members.get(run.key, {})), [{}]
            fact["failure_message"] = str(error)
        facts.append(fact)
        read.append(evaluated)
    if problems:
        more = f"; and of {counted(len(problems) - 3, 'more run')}" if len(problems) > 3 else ""
        warnings.warn(f"training curves: {'; '.join(problems[:3])}{more}", stacklevel=3)
    columns.add_teachers(facts, directory.path.parent)
    titles = [(str(fact["title"]), members.get(fact["key"], {}).get("choices", {}))
              for fact in facts]  # fmt: skip
    cells, run_of = [], []
    for i, evaluated in enumerate(read):
        for cell in evaluated:
            cells.append([cell.get(name) for name in CELL_COLUMNS])
            run_of.append(i)
    names = [name for name in COLUMNS if name not in CELL_COLUMNS]
    by_run = pd.DataFrame(facts, columns=names, dtype=object)
    by_run["method"] = method_labels(titles, plan.get("axes", ()))
    for name in ("budget", "recipe"):
        by_run[name] = (plan.get(name) or {}).get("description")
    by_cell = pd.DataFrame(cells, columns=CELL_COLUMNS, dtype=object)
    try:
        by_run = by_run.astype({name: COLUMNS[name] for name in names}).take(run_of)
        by_cell = by_cell.astype({name: COLUMNS[name] for name in CELL_COLUMNS})
    except (TypeError, ValueError) as error:
        raise UserError(
            f"sweep {directory.name!r} holds a field of a wrong type: {error}"
        ) from None
    return pd.concat([by_run.reset_index(drop=True), by_cell], axis=1)[list(COLUMNS)]


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
    named = {group: v.get("name") for group, v in config.items() if isinstance(v, dict)}
    groups = {g: named.get(g) or choices.get(g) for g in ("objective", "backbone", "data")}
    planned_steps, data = config.get("training", {}).get("steps"), run.data()
    # A scheduler (ASHA) may end a run early: on a smaller budget it must not enter a comparison.
    stopped = status == "done" and (result.get("steps") or 0) < (planned_steps or 0)
    return {
        **{name: result.get(name) for name in MEASURED},
        "sweep": sweep,
        "key": run.key,
        "seed": member.get("seed", config.get("seed", 0)),
        "status": status,
        "failure_class": "stopped" if stopped else failure.get("class"),
        "failure_message": failure.get("message"),
        "title": member.get("title") or spec.get("title") or groups["objective"] or run.key,
        **groups,
        "planned_steps": planned_steps,
        "planned_cells": " ".join(map(str, config.get("evaluation", {}).get("steps", []))) or None,
        "train_steps": result.get("steps"),
        "first_spike": first_spike(run.metrics_file),
        **columns.protocol(config),
        **columns.costs(result),
        **columns.origin(result, spec, data),
        **run_conditions(config, result, data),
    }


def _unreadable(sweep: str, run: RunDirectory, member: Json) -> Json:
    """What stands for a run with a damaged file: a failure."""
    choices = member.get("choices", {})
    return {
        **{group: choices.get(group) for group in ("objective", "backbone", "data", "teacher")},
        "sweep": sweep,
        "key": run.key,
        "seed": member.get("seed", 0),
        "status": "failed",
        "failure_class": "unreadable",
        "title": member.get("title") or run.key,
    }


def _end_of_stopped(run: RunDirectory) -> tuple[Json, Json]:
    """What stands for the failure and the result of a run that was ended early."""
    mark = run.stopped() or {}
    step, by = mark.get("step"), mark.get("by")
    rung = run.rungs().get(step, {}) if step is not None else {}
    failure = {"class": "stopped", "message": f"ended early by {by} at step {step}"}
    return failure, {"steps": step, "images_seen": rung.get("images_seen")}


def _cells(
    run: RunDirectory, status: str, stopped: bool, references: Mapping[str, str]
) -> Iterator[Json]:
    """The evaluated cells of a run; one empty mapping where there is none.

    ``references``: names of known reference files by their sha256.
    """
    damaged: list[CorruptFile] = []
    cells = run.cells(damaged)
    for error in damaged:
        warnings.warn(f"left out: {error}", stacklevel=3)
    if status == "stopped":
        step = (run.stopped() or {}).get("step")
        cells = {f"rung-{s}": r for s, r in run.rungs().items() if stopped and s == step}
    if not cells:
        yield {}
    for name, record in cells.items():
        try:
            cell, metric = record["cell"], record["metric"]
            times, sampler = cell.get("times"), sorted((cell.get("sampler") or {}).items())
            yield {
                **{name: metric.get(name) for name in REFERENCE},
                **{name: record.get(name) for name in ("error", "nfe")},
                **columns.floor_and_reconstruction(record),
                **{name: cell[name] for name in ("steps", "weights", "guidance", "sample_set")},
                **{f"metric_{name}": metric[name] for name in ("id", "name")},
                "metric": metric["label"],
                "reference_file": reference_file(metric, references),
                "samples": metric["samples"],
                "cell": name,
                "at_step": cell.get("at_step"),
                "times": "uniform" if times is None else " ".join(f"{t:.6g}" for t in times),
                "sampler": ", ".join(f"{k}={v}" for k, v in sampler) or "default",
                "better": record.get("better", "lower"),
                "value": record["value"],
                "sample_images_per_second": record.get("images_per_second"),
                **columns.cell_origin(record),
            }
        except (KeyError, TypeError) as error:
            raise UserError(f"{run.cell_file(name)} is not an evaluation: {error!r}") from None
