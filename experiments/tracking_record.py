"""What MLflow is told of one run: a pure reading of the run directory, without MLflow.

Names follow the dashboards: ``fd_vs_nfe`` is a curve whose *step* is the number of function
evaluations, ``fd_nfe_4`` the same value as a flat key (for tables and parallel coordinates).
Cells other than the default ones (EMA weights, no guidance, first sample set, the objective's own
sampler, uniform times) carry a suffix, so that a native chart never mixes two protocols. Nor does
it mix two metrics: a second identity of one name has a name of its own (``metric_called``).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.experiments.rundir import Json, RunDirectory

FORMAT = 3  # raise it when what is recorded changes: every run is then looked at again
NAME_LENGTH = 250  # MLflow's limit for keys
LABEL_LENGTH = 100  # of a metric's label in a key: an id and a variant shall still go behind it
OWNER = "fewstep.metric."  # begins the tags that tell which metric each name belongs to
PARAM_LENGTH = 500  # MLflow 3 takes 6000 characters, older servers 500
COSTS = ("seconds_total", "train_seconds", "evaluate_seconds", "steps_per_second",
         "images_per_second", "peak_memory_bytes", "parameters")  # fmt: skip
FINAL = {"loss": "final_loss", "validation_loss": "final_validation_loss"}


class Point(NamedTuple):
    """One value of a metric. ``milliseconds`` is the wall clock since the epoch."""

    key: str
    value: float
    step: int
    milliseconds: int


@dataclass(frozen=True)
class Record:
    """One run, as MLflow shall show it.

    ``curves``: of training; a (key, step) once logged stays. ``values``: what evaluation and
    bookkeeping say; a changed value of a (key, step) is logged again, and the latest is shown.
    """

    name: str
    status: str
    started: int
    ended: int | None
    tags: dict[str, str]
    params: dict[str, str]
    curves: list[Point]
    values: list[Point]


def metric_name(name: str) -> str:
    """``name`` with the characters MLflow forbids replaced by ``_``, at most 250 long."""
    clean = re.sub(r"[^A-Za-z0-9_./ -]", "_", name)[:NAME_LENGTH]
    return "/".join(part for part in clean.split("/") if part not in ("", ".", "..")) or "_"


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of a nested mapping as ``("training.lr", "0.001")``; lists as JSON, cut at 500."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        text = value if isinstance(value, str) else json.dumps(value)
        cut = text if len(text) <= PARAM_LENGTH else text[: PARAM_LENGTH - 3] + "..."
        yield metric_name(prefix), cut


def milliseconds(moment: object) -> int | None:
    """An ISO 8601 time as milliseconds since the epoch; None for anything else."""
    try:
        return round(datetime.fromisoformat(str(moment)).timestamp() * 1000)
    except ValueError:
        return None


def fingerprint(run: RunDirectory, status: str, about: object) -> str:
    """A digest of the state of the run's files (names, sizes, times; nothing is read).

    Equal fingerprints mean that there is nothing to log. ``about`` is what the sweep says of it.
    """
    names = ("spec.json", "metrics.jsonl", "result.json", "failure.json")
    stats = [(name, s.st_size, s.st_mtime_ns) for name in names if (s := _stat(run.path / name))]
    for folder, ending in ((run.path / "evaluations", ".json"), (run.diagnostics, "")):
        stats += sorted(_listing(folder, ending))
    state = json.dumps([FORMAT, status, stats, about], sort_keys=True)
    return hashlib.sha256(state.encode()).hexdigest()[:16]


def _listing(folder: Path, ending: str) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of the files; scandir, for this is done for thousands of folders."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(ending) and not entry.name.startswith("."):
                    stat = entry.stat()
                    yield entry.name, stat.st_size, stat.st_mtime_ns
    except FileNotFoundError:  # no folder, or a file replaced this very moment
        return


def read_record(
    run: RunDirectory,
    spec: Json,
    choices: Mapping[str, Any],
    names: dict[str, str],
    started: int | None = None,
) -> Record:
    """Read the whole run directory.

    Args:
        choices: the label of each axis of the sweep, from sweep.json.
        names: whose each metric's name is in the sweep; new ones are added (``metric_called``).
        started: milliseconds; the start already recorded, so that a point keeps its time stamp.
    """
    config, status = spec.get("config", {}), run.status()
    result = (run.result() or {}) if status == "done" else {}
    failure = (run.failure() or {}) if status == "failed" else {}
    rows, provenance = run.metrics(), result.get("provenance", {})
    begun = (
        started
        or milliseconds(provenance.get("started"))
        or _begun(run, rows)
        or milliseconds(spec.get("created"))
        or 0
    )
    ended = milliseconds(provenance.get("finished") or failure.get("finished"))
    values = [_number(key, result.get(key), 0, ended or begun) for key in COSTS]
    values += [_number(new, result.get(old), 0, ended or begun) for old, new in FINAL.items()]
    curves = [
        _number(key, value, int(row["step"]), begun + round(1000 * float(row.get("seconds") or 0)))
        for row in rows
        for key, value in row.items()
        if key != "step"
    ]
    called = set()
    for file, cell in run.cells().items():
        when = round(run.cell_file(file).stat().st_mtime * 1000)
        called.add(name := metric_called(cell["metric"], names))
        values += _cell_points(cell, config, when, name)
    values += _diagnostics_points(run)
    # by the sweep's label where it has one: two may share an objective
    method = str(choices.get("objective") or _name(config, "objective"))[: NAME_LENGTH - 50]
    return Record(
        name=f"{method}-s{config.get('seed', 0)}-{run.key[:6]}",
        status=_mlflow_status(status, failure),
        started=begun,
        ended=ended if status in ("done", "failed") else None,
        tags=_tags(run, spec, choices, provenance, failure)
        | {f"{OWNER}{name}": names[name] for name in sorted(called)},
        params=dict(flatten(config)),
        curves=[point for point in curves if point is not None],
        values=[point for point in values if point is not None],
    )


def metric_called(metric: Json, names: dict[str, str]) -> str:
    """What a metric is called: the first that is free, or its own, of its name, label, and both.

    ``names`` holds whose each name is. It is the sweep's and it only grows, so what has a name
    keeps it: ``fd`` is of the identity that came first, and another (other data, another N) is
    called by its label, with its id where labels coincide.
    """
    label, identity = str(metric.get("label", metric["name"])), str(metric.get("id", ""))
    short, long = (metric_name(s.lower())[:LABEL_LENGTH] for s in (str(metric["name"]), label))
    for name in (short, long, f"{long}-{identity}"):
        # by its id: a label may come to say more than it did
        if names.setdefault(name, f"{label} ({identity})").endswith(f"({identity})"):
            break
    return name


def _cell_points(cell: Json, config: Json, when: int, name: str) -> list[Point | None]:
    """A cell's point on the curve over NFE, and its flat values; its metric is called ``name``."""
    suffix, nfe = variant(cell["cell"], config), int(cell["nfe"])
    curve = _number(f"{name}_vs_nfe{suffix}", cell.get("value"), nfe, when)
    flat = {
        f"{name}_nfe_{nfe}{suffix}": cell.get("value"),
        f"images_per_second_nfe_{nfe}{suffix}": cell.get("images_per_second"),
        f"{name}_floor{suffix}": cell.get("floor"),
    }
    return [curve, *(_number(key, value, 0, when) for key, value in flat.items())]


def cell_names(run: RunDirectory, spec: Json, names: dict[str, str]) -> list[str]:
    """The names of what the run's cells are recorded as."""
    points = (
        _cell_points(cell, spec.get("config", {}), 0, metric_called(cell["metric"], names))
        for cell in run.cells().values()
    )
    return [point.key for several in points for point in several if point is not None]


def _diagnostics_points(run: RunDirectory) -> list[Point | None]:
    """``jump_error/0.25`` and the like by length, and the denoising error as a curve over t.

    A curve's step must be an integer: it counts the times, the last of which is t_max.
    """
    found = run.diagnosed()
    if found is None:
        return []
    when = round((run.diagnostics / "diagnostics.json").stat().st_mtime * 1000)
    rms = found["denoising"]["rms"]
    return [
        *(
            _number(f"jump_error/{jump['length']:g}", jump["rms"], 0, when)
            for jump in found.get("jump_error", [])
        ),
        *(
            _number(f"denoising_rms_vs_{len(rms)}ths_of_t_max", value, i, when)
            for i, value in enumerate(rms, start=1)
        ),
    ]


def variant(setting: Json, config: Json) -> str:
    """The suffix of a cell that is not a default one: ``_raw``, ``_cfg1.5``, ``_set2``, ..."""
    parts = []
    if setting.get("weights", "ema") != "ema":
        parts.append(str(setting["weights"]))
    if (guidance := float(setting.get("guidance") or 1)) != 1:
        parts.append(f"cfg{guidance:g}")
    if sample_set := setting.get("sample_set"):
        parts.append(f"set{sample_set}")
    own = {"solver": "euler"} | _mapping(config.get("objective"))
    for key, value in sorted((setting.get("sampler") or {}).items()):
        if own.get(key) != value:
            parts.append(str(value) if isinstance(value, str) else f"{key}{value}")
    if times := setting.get("times"):
        digest = hashlib.sha256(json.dumps(times).encode()).hexdigest()[:4]
        shown = "-".join(f"{time:.3g}" for time in times)
        parts.append(f"times{shown if len(times) <= 5 else digest}")
    return metric_name("_" + "_".join(parts)) if parts else ""


def _tags(
    run: RunDirectory, spec: Json, choices: Mapping[str, Any], provenance: Json, failure: Json
) -> dict[str, str]:
    config = spec.get("config", {})
    tags = {
        "sweep": run.sweep,
        "key": run.key,
        "role": "run",
        "title": spec.get("title"),
        "method": ", ".join(map(str, choices.values())) or spec.get("title"),
        "status": run.status(),
        "objective": _name(config, "objective"),
        "backbone": _name(config, "backbone"),
        "data": _name(config, "data"),
        "seed": config.get("seed"),
        "failure.class": failure.get("class"),
        "failure.message": failure.get("message"),
    }
    kept = ("commit", "dirty", "objective_source", "backbone_source", "host", "device")
    tags |= {key: provenance.get(key) for key in kept}
    tags |= {f"axis.{metric_name(axis)}": label for axis, label in choices.items()}
    texts = {f"fewstep.{key}": str(value) for key, value in tags.items() if value is not None}
    if commit := provenance.get("commit"):
        texts["mlflow.source.git.commit"] = str(commit)
    return {key: value[:5000] for key, value in texts.items()}


def _mlflow_status(status: str, failure: Json) -> str:
    if status == "failed":
        return "KILLED" if failure.get("class") == "killed" else "FAILED"
    return "FINISHED" if status == "done" else "RUNNING"


def _begun(run: RunDirectory, rows: list[Json]) -> int | None:
    """When training began, from the last line's age and its seconds of training."""
    if not rows or not (stat := _stat(run.metrics_file)):
        return None
    return round((stat.st_mtime - float(rows[-1].get("seconds") or 0)) * 1000)


def _number(key: str, value: object, step: int, when: int) -> Point | None:
    """A point, or None where ``value`` is no number. NaN and infinity are numbers: they tell."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = float(value)
    if math.isinf(number):  # what SQL stores hold for it; equal on the way back
        number = math.copysign(1.7976931348623157e308, number)
    return Point(metric_name(key), number, step, when)


def _name(config: Json, part: str) -> str:
    value = config.get(part)
    return str(value.get("name", part) if isinstance(value, Mapping) else value)


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
