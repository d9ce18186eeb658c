"""What MLflow records of one run: a pure reading of the run directory, without MLflow.

``fd_vs_nfe`` is a curve whose *step* is the number of function evaluations, ``fd_nfe_4`` the same
value as a flat key (for tables and parallel coordinates). ``fd_nfe_4_vs_images``, of runs that are
evaluated at several training steps, has the images seen as its *step*. Cells other than the default
ones (EMA weights, no guidance, first sample set, the objective's own sampler, uniform times) have a
suffix, and a second metric of one name has another (``unique_metric_name``): no chart mixes them.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.metrics_file import curve_problem
from fewstep.experiments.store.run_directory import RunDirectory

FORMAT = 3  # raise it when runs in MLflow must change: each is then compared again, 5 a second
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
    # scandir, for this is done for thousands of folders; a file may be replaced this very moment
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(ending) and not entry.name.startswith("."):
                stat = entry.stat()
                yield entry.name, stat.st_size, stat.st_mtime_ns


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
        names: which metric has each name in the sweep; new ones are added.
        started: milliseconds; the start already recorded, so that a point keeps its time stamp.
    """
    config, status = spec.get("config", {}), run.status()
    result = (run.result() or {}) if status == "done" else {}
    failure = (run.failure() or {}) if status == "failed" else {}
    rows, provenance = run.metrics(), result.get("provenance", {})
    begun = started or _begun(run, spec, provenance, rows)
    ended = milliseconds(provenance.get("finished") or failure.get("finished"))
    curves: list[Point] = []
    for row in rows:
        when = begun + round(1000 * float(row.get("seconds") or 0))
        curves += _points({k: v for k, v in row.items() if k != "step"}, int(row["step"]), when)
    costs = {key: result.get(key) for key in COSTS}
    costs |= {new: result.get(old) for old, new in FINAL.items()}
    values, owners = _points(costs, 0, ended or begun), {}
    cells = run.cells()
    over_training = _over_training(cells.values())
    for file, cell in cells.items():
        when = round(run.cell_file(file).stat().st_mtime * 1000)
        name = unique_metric_name(cell["metric"], names)
        owners[f"{OWNER}{name}"] = names[name]
        values += _cell_points(cell, config, when, name, over_training)
    values += _diagnostics_points(run)
    ended_badly = "KILLED" if failure.get("class") == "killed" else "FAILED"
    # by the sweep's label where it has one: two may share an objective
    method = str(choices.get("objective") or _name(config, "objective"))[: NAME_LENGTH - 50]
    return Record(
        name=f"{method}-s{config.get('seed', 0)}-{run.key[:6]}",
        status={"done": "FINISHED", "failed": ended_badly}.get(status, "RUNNING"),
        started=begun,
        ended=ended if status in ("done", "failed") else None,
        tags=_tags(run, spec, choices, provenance, failure) | owners,
        params=dict(flatten(config)),
        curves=curves,
        values=values,
    )


def unique_metric_name(metric: Json, names: dict[str, str]) -> str:
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


def _over_training(cells: Iterable[Json]) -> bool:
    """Whether a run was evaluated at earlier training steps, too."""
    return any(cell["cell"].get("at_step") for cell in cells)


def _cell_points(
    cell: Json, config: Json, when: int, name: str, over_training: bool
) -> list[Point]:
    """A cell's points on the curves over NFE and over training, and its flat values.

    Its metric is called ``name``. A cell of an earlier training step is on the latter alone.
    """
    suffix, nfe = variant(cell["cell"], config), int(cell["nfe"])
    training, value = config.get("training", {}), cell.get("value")
    points = []
    at_step = cell["cell"].get("at_step")
    if over_training:
        images = int((at_step or training.get("steps", 0)) * training.get("batch_size", 0))
        points += _points({f"{name}_nfe_{nfe}_vs_images{suffix}": value}, images, when)
    if at_step:
        return points
    flat = {
        f"{name}_nfe_{nfe}{suffix}": value,
        f"images_per_second_nfe_{nfe}{suffix}": cell.get("images_per_second"),
        f"{name}_floor{suffix}": cell.get("floor"),
        f"{name}_reconstruction{suffix}": cell.get("reconstruction"),
    }
    curve = _points({f"{name}_vs_nfe{suffix}": value}, nfe, when)
    return points + curve + _points(flat, 0, when)


def cell_names(run: RunDirectory, spec: Json, names: dict[str, str]) -> list[str]:
    """The names of what the run's cells are recorded as."""
    cells, config = run.cells().values(), spec.get("config", {})
    over_training = _over_training(cells)
    return [
        point.key
        for cell in cells
        for point in _cell_points(
            cell, config, 0, unique_metric_name(cell["metric"], names), over_training
        )
    ]


def _diagnostics_points(run: RunDirectory) -> list[Point]:
    # a curve's step must be an integer: it counts the times, the last of which is t_max
    if (diagnosis := run.diagnosis()) is None:
        return []
    when = round((run.diagnostics / "diagnostics.json").stat().st_mtime * 1000)
    jumps = {f"jump_error/{j['length']:g}": j["rms"] for j in diagnosis.get("jump_error", [])}
    rms = diagnosis["denoising"]["rms"]
    curve = f"denoising_rms_vs_{len(rms)}ths_of_t_max"
    points = _points(jumps, 0, when)
    for i, value in enumerate(rms, start=1):
        points += _points({curve: value}, i, when)
    return points


def variant(setting: Json, config: Json) -> str:
    """The suffix of a cell that is not a default one: ``_raw``, ``_cfg1.5``, ``_set2``, ..."""
    parts = []
    if setting.get("weights", "ema") != "ema":
        parts.append(str(setting["weights"]))
    if (guidance := float(setting.get("guidance") or 1)) != 1:
        parts.append(f"cfg{guidance:g}")
    if sample_set := setting.get("sample_set"):
        parts.append(f"set{sample_set}")
    own = config.get("objective")
    for key, value in sorted((setting.get("sampler") or {}).items()):
        if not isinstance(own, Mapping) or own.get(key) != value:
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
        "problem": curve_problem(run),
    }
    kept = (
        "commit", "dirty", "objective_source", "backbone_source", "host", "device", "data_sha256",
    )  # fmt: skip
    tags |= {key: provenance.get(key) for key in kept} | {"version": provenance.get("fewstep")}
    tags |= {f"axis.{metric_name(axis)}": label for axis, label in choices.items()}
    texts = {f"fewstep.{key}": str(value) for key, value in tags.items() if value is not None}
    if commit := provenance.get("commit"):
        texts["mlflow.source.git.commit"] = str(commit)
    return {key: value[:5000] for key, value in texts.items()}


def _begun(run: RunDirectory, spec: Json, provenance: Json, rows: list[Json]) -> int:
    if (recorded := milliseconds(provenance.get("started"))) is not None:
        return recorded
    if rows and (stat := _stat(run.metrics_file)):  # by the last line's age and training seconds
        return round((stat.st_mtime - float(rows[-1].get("seconds") or 0)) * 1000)
    return milliseconds(spec.get("created")) or 0


def _points(values: Mapping[str, object], step: int, when: int) -> list[Point]:
    """Points of the values that are numbers, NaN and infinity among them."""
    points = []
    for key, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value)
            if math.isinf(number):  # what SQL stores hold for it; equal on the way back
                number = math.copysign(sys.float_info.max, number)
            points.append(Point(metric_name(key), number, step, when))
    return points


def _name(config: Json, part: str) -> str:
    value = config.get(part)
    return str(value.get("name", part) if isinstance(value, Mapping) else value)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
