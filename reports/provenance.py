"""Where every cell comes from: runs, source, packages, machine, and the command that repeats it."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from fewstep.analysis.records import Summary
from fewstep.reports.rows import group_of

RUN = ("method", "seed", "status", "failure_class", "failure_message", "objective", "backbone",
       "data", "teacher", "commit", "dirty", "lock", "fewstep", "python", "torch", "host", "job",
       "device", "processes", "objective_source", "backbone_source", "started", "finished",
       "command")  # fmt: skip
EVALUATED = ("commit", "dirty", "lock", "host", "job")

Json = dict[str, Any]


def runs(frame: pd.DataFrame) -> Json:
    """Every run by its key, whatever became of it."""
    found = {}
    for run in frame.drop_duplicates("key").to_dict("records"):
        found[str(run["key"])] = {name: plain(run[name]) for name in RUN}
    return found


def cells(summary: Summary, rows: pd.DataFrame) -> list[Json]:
    """Each cell of the table, with what each of its runs gave and how to get it again."""
    by_place = {(row["key"], int(row["steps"])): row for row in rows.to_dict("records")}
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
                {"seed": seed, "value": value, "key": key, **_made(by_place[key, steps])}
                for (seed, value), key in zip(cell.values.items(), cell.keys, strict=True)
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
        "command": None if command is None else f"{command} {row['evaluation']}",
        **({} if same else {"evaluated": evaluated}),
    }


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
