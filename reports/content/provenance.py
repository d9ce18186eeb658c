"""Where every cell comes from: runs, source, packages, machine, and the command that repeats it."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fewstep.analysis.filters import RUN
from fewstep.analysis.summary_types import Summary
from fewstep.reports.content.row_groups import group_of

FACTS = ("method", "seed", "status", "failure_class", "failure_message", "objective", "backbone",
       "data", "data_sha256", "teacher", "commit", "dirty", "lock", "fewstep", "python", "torch",
       "host", "job", "device", "processes", "objective_source", "backbone_source", "started",
       "finished", "command")  # fmt: skip
EVALUATED = ("commit", "dirty", "lock", "host", "job")

Json = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """What one run gave to a cell, and what is to be added to the run's command to get it again.

    ``evaluated``: by what, where that was not what trained it.
    """

    seed: int
    value: float
    run: str
    evaluation: str | None
    evaluated: Json | None


Origins = dict[tuple[str, int], list[Source]]
"""The runs behind each cell of a table, by (method, steps)."""


def runs(frame: pd.DataFrame) -> Json:
    """Every run by its directory, SWEEP/KEY, whatever became of it."""
    each = frame.drop_duplicates(RUN)
    facts = plain_rows(each, *FACTS)
    return {
        f"{sweep}/{key}": dict(zip(FACTS, values, strict=True))
        for (sweep, key), values in zip(plain_rows(each, *RUN), facts, strict=True)
    }


def origins(summary: Summary, rows: pd.DataFrame) -> Origins:
    """The runs behind each cell; what makes the last sample set makes those before."""
    by_set = rows.sort_values("sample_set", kind="stable")
    places = ("method", "steps", "seed", *RUN, "evaluation")
    facts_of = plain_rows(by_set, *places, *EVALUATED, *(f"evaluated_{n}" for n in EVALUATED))
    by_run = {}
    for method, steps, seed, sweep, key, evaluation, *facts in facts_of:
        trained, evaluated = facts[: len(EVALUATED)], facts[len(EVALUATED) :]
        same = all(b is None or a == b for a, b in zip(trained, evaluated, strict=True))
        by = None if same else dict(zip(EVALUATED, evaluated, strict=True))
        by_run[method, steps, seed] = (f"{sweep}/{key}", evaluation, by)
    return {
        (method, steps): [Source(s, v, *by_run[method, steps, s]) for s, v in cell.values.items()]
        for (method, steps), cell in summary.cells.items()
    }


def document(summary: Summary, frame: pd.DataFrame, origins: Origins) -> Json:
    """For ``provenance.json``: each cell, its runs, and the commands that make it again."""
    c, known = summary.conditions, runs(frame)

    def described(source: Source) -> Json:
        command = known[source.run]["command"]
        record = {name: getattr(source, name) for name in ("seed", "value", "run")}
        record["command"] = None if command is None else f"{command} {source.evaluation}"
        return record | ({"evaluated": source.evaluated} if source.evaluated else {})

    return {
        "sweep": summary.sweep,
        "metric": {
            "label": c.metric,
            "id": c.metric_id,
            **{name: getattr(c, name) for name in
               ("extractor", "extractor_sha256", "samples", "reference")},
        },
        "cells": [
            {
                "method": method,
                "group": group_of(summary, method),
                "steps": steps,
                "nfe": cell.nfe,
                "mean": None if math.isnan(cell.mean) else cell.mean,
                "half_width": None if math.isnan(cell.half_width) else cell.half_width,
                "failed_seeds": list(cell.failed_seeds),
                "stopped_seeds": list(cell.stopped_seeds),
                "missing_seeds": list(cell.missing_seeds),
                "runs": list(map(described, origins[method, steps])),
            }
            for (method, steps), cell in summary.cells.items()
        ],
        "runs": known,
    }  # fmt: skip


def write(value: Any) -> str:
    """JSON with sorted keys."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def plain_rows(frame: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The rows of these columns, None for what is missing, in a tenth of the time of whole rows."""
    lists = (
        frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in columns
    )
    return zip(*lists, strict=True)


def short(commit: str | None, dirty: bool | None) -> str:
    """``2d82b42+``: a plus for uncommitted changes."""
    return "unknown" if commit is None else commit[:7] + "+" * bool(dirty)


def summary(frame: pd.DataFrame) -> str:
    """Commits, packages and machines of all runs, in a few sentences."""
    runs = frame.drop_duplicates(RUN)

    def listed(column: str, name: str) -> str:
        return f"{name}: {', '.join(map(str, runs[column].dropna().unique())) or 'unknown'}."

    dirty = int(runs["dirty"].fillna(False).sum())
    return " ".join([
        listed("commit", "Commits"), listed("lock", "Packages"), listed("host", "Hosts"),
        f"Runs from a tree with uncommitted changes: {dirty} of {len(runs)}.",
    ])  # fmt: skip
