"""Where every cell comes from: runs, source, packages, machine, and the command that repeats it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fewstep.analysis.records import Summary
from fewstep.analysis.selection import RUN
from fewstep.reports.rows import group_of

FACTS = ("method", "seed", "status", "failure_class", "failure_message", "objective", "backbone",
       "data", "teacher", "commit", "dirty", "lock", "fewstep", "python", "torch", "host", "job",
       "device", "processes", "objective_source", "backbone_source", "started", "finished",
       "command")  # fmt: skip
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


@dataclass(frozen=True)
class Origin:
    """The runs behind one cell of a table."""

    method: str
    steps: int
    sources: tuple[Source, ...]


def runs(frame: pd.DataFrame) -> Json:
    """Every run by its directory, SWEEP/KEY, whatever became of it."""
    each = frame.drop_duplicates(RUN)
    facts = plain_rows(each, *FACTS)
    return {
        f"{sweep}/{key}": dict(zip(FACTS, values, strict=True))
        for (sweep, key), values in zip(plain_rows(each, *RUN), facts, strict=True)
    }


def origins(summary: Summary, rows: pd.DataFrame) -> list[Origin]:
    """Each cell of the table, with its runs; what makes the last sample set makes those before."""
    facts = ("evaluation", *EVALUATED, *(f"evaluated_{name}" for name in EVALUATED))
    by_set = rows.sort_values("sample_set", kind="stable")
    made = plain_rows(by_set, "method", "seed", "steps", *RUN, *facts)
    found = {(method, steps, seed): rest for method, seed, steps, *rest in made}

    def source(method: str, steps: int, seed: int, value: float) -> Source:
        sweep, key, evaluation, *facts = found[method, steps, seed]
        trained, evaluated = facts[: len(EVALUATED)], facts[len(EVALUATED) :]
        same = all(b is None or a == b for a, b in zip(trained, evaluated, strict=True))
        by = None if same else dict(zip(EVALUATED, evaluated, strict=True))
        return Source(seed, value, f"{sweep}/{key}", evaluation, by)

    return [
        Origin(method, steps, tuple(source(method, steps, *one) for one in cell.values.items()))
        for (method, steps), cell in summary.cells.items()
    ]


def cells(summary: Summary, known: Json, found: Iterable[Origin]) -> list[Json]:
    """Each cell of the table, what each of its runs gave, and the command that makes it again.

    ``known``: the runs by their directory.
    """

    def told(source: Source) -> Json:
        command = known[source.run]["command"]
        return {
            "seed": source.seed,
            "value": source.value,
            "run": source.run,
            "command": None if command is None else f"{command} {source.evaluation}",
            **({} if source.evaluated is None else {"evaluated": source.evaluated}),
        }

    return [
        {
            "method": origin.method,
            "group": group_of(summary, origin.method),
            "steps": origin.steps,
            "nfe": cell.nfe,
            "mean": plain(cell.mean),
            "half_width": plain(cell.half_width),
            "failed_seeds": list(cell.failed_seeds),
            "stopped_seeds": list(cell.stopped_seeds),
            "missing_seeds": list(cell.missing_seeds),
            "runs": list(map(told, origin.sources)),
        }
        for origin in found
        for cell in [summary.cells[origin.method, origin.steps]]
    ]


def document(summary: Summary, frame: pd.DataFrame, found: Iterable[Origin]) -> Json:
    """All of it, for ``provenance.json``."""
    c, known = summary.conditions, runs(frame)
    return {
        "sweep": summary.sweep,
        "metric": {
            "label": c.metric,
            "id": c.metric_id,
            "extractor": c.extractor,
            "extractor_sha256": c.extractor_sha256,
            "samples": c.samples,
            "reference": c.reference,
        },
        "cells": cells(summary, known, found),
        "runs": known,
    }


def write(value: Any) -> str:
    """JSON with sorted keys."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def plain_rows(frame: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The rows of these columns as ``plain`` values; whole rows would take ten times as long."""
    lists = (
        frame[name].astype(object).where(frame[name].notna(), None).tolist() for name in columns
    )
    return zip(*lists, strict=True)


def plain(value: Any) -> Any:
    """None for what is missing, Python's own types for NumPy's."""
    if value is None or pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def short(commit: str | None, dirty: bool | None) -> str:
    """``2d82b42+``: a plus for uncommitted changes."""
    return "unknown" if commit is None else commit[:7] + "+" * bool(dirty)


def identifier(text: str) -> str:
    """``text`` as a part of an id or a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-") or "x"
