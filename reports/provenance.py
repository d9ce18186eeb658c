"""Where every cell comes from: runs, source, packages, machine, and the command that repeats it."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
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


def runs(frame: pd.DataFrame) -> Json:
    """Every run by its directory, SWEEP/KEY, whatever became of it."""
    return {
        _directory(run): {name: plain(run[name]) for name in FACTS}
        for run in frame.drop_duplicates(RUN).to_dict("records")
    }


def cells(summary: Summary, rows: pd.DataFrame) -> list[Json]:
    """Each cell of the table, with what each of its runs gave and how to get it again."""
    by_place = {
        (row["method"], int(row["seed"]), int(row["steps"])): row for row in rows.to_dict("records")
    }
    return [
        {
            "method": method,
            "group": group_of(summary, method),
            "steps": steps,
            "nfe": cell.nfe,
            "mean": plain(cell.mean),
            "half_width": plain(cell.half_width),
            "failed_seeds": list(cell.failed_seeds),
            "stopped_seeds": list(cell.stopped_seeds),
            "missing_seeds": list(cell.missing_seeds),
            "runs": [
                {"seed": seed, "value": value, **_made(by_place[method, seed, steps])}
                for seed, value in cell.values.items()
            ],
        }
        for (method, steps), cell in summary.cells.items()
    ]


def _made(row: Mapping[Hashable, Any]) -> Json:
    """How a cell is made again, and what evaluated it where that was not what trained it."""
    evaluated = {name: plain(row[f"evaluated_{name}"]) for name in EVALUATED}
    same = all(value is None or value == plain(row[name]) for name, value in evaluated.items())
    command = plain(row["command"])
    return {
        "run": _directory(row),
        "command": None if command is None else f"{command} {row['evaluation']}",
        **({} if same else {"evaluated": evaluated}),
    }


def _directory(run: Mapping[Hashable, Any]) -> str:
    """Under the run root; a key alone may be in two sweeps."""
    return f"{run['sweep']}/{run['key']}"


def document(summary: Summary, frame: pd.DataFrame, rows: pd.DataFrame) -> Json:
    """All of it, for ``provenance.json``."""
    c = summary.conditions
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
        "cells": cells(summary, rows),
        "runs": runs(frame),
    }


def write(value: Any) -> str:
    """JSON with sorted keys."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


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
