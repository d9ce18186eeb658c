"""What a run's files say of how it was trained, at what cost, and where it comes from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from fewstep.experiments.rundir import Json, RunDirectory
from fewstep.experiments.written import written

PROTOCOL: dict[str, str] = {
    "batch_size": "Int64",
    "lr": "float64",
    "schedule": "string",
    "warmup": "Int64",
    "betas": "string",
    "eps": "float64",
    "weight_decay": "float64",
    "clip": "float64",
    "ema": "float64",
    "label_dropout": "float64",
    "precision": "string",
    "init": "string",
}
SETTINGS: dict[str, str] = {  # "target=online, share=0.25": all but the name
    "objective_settings": "string",
    "backbone_settings": "string",
    "data_settings": "string",
}
COSTS: dict[str, str] = {
    "processes": "Int64",
    "device": "string",  # what a person would call it
    "device_hours": "float64",  # of training: processes x hours
    "train_flops": "float64",  # where the record has them
    "teacher": "string",  # key of the run it learned from
    "teacher_images_seen": "Int64",  # that run's, and its own teachers'
    "teacher_train_seconds": "float64",
    "teacher_device_hours": "float64",
    "teacher_train_flops": "float64",
}
ORIGIN: dict[str, str] = {
    "commit": "string",
    "dirty": "boolean",
    "lock": "string",  # hash of all packages installed; runs/_cache/environments has their list
    "fewstep": "string",
    "python": "string",
    "torch": "string",
    "host": "string",
    "job": "string",  # "slurm 4711_2", "ray"
    "objective_source": "string",
    "backbone_source": "string",
    "started": "string",
    "finished": "string",
    "command": "string",  # that trains it again
}
CELL_ORIGIN: dict[str, str] = {
    "evaluated_commit": "string",
    "evaluated_dirty": "boolean",
    "evaluated_lock": "string",
    "evaluated_host": "string",
    "evaluated_job": "string",
    "evaluation": "string",  # what to add to ``command`` for this cell
}


def protocol(config: Json) -> Json:
    """How it is trained, from its configuration."""
    training = config.get("training", {})
    known = {name: training.get(name) for name in PROTOCOL}
    if known["betas"] is not None:
        known["betas"] = " ".join(f"{beta:g}" for beta in known["betas"])
    for group in ("objective", "backbone", "data"):
        given = config.get(group)
        settings = given.items() if isinstance(given, Mapping) else ()
        told = [f"{k}={written(v)}" for k, v in settings if k not in ("name", "root")]
        known[f"{group}_settings"] = ", ".join(told) or None
    teacher = config.get("teacher")
    return {**known, "teacher": None if teacher is None else Path(teacher).name}


def costs(result: Json) -> Json:
    """On how much, for how long; from result.json, or what stands for it."""
    made = result.get("provenance", {})
    processes, seconds = made.get("processes", 1), result.get("train_seconds")
    return {
        "processes": processes if seconds is not None else None,
        "device": made.get("device_name", made.get("device")),
        "device_hours": None if seconds is None else seconds * processes / 3600,
        "train_flops": result.get("train_flops"),
    }


def origin(result: Json, spec: Json) -> Json:
    """Where it comes from."""
    made = result.get("provenance", {})
    kept = ("commit", "dirty", "lock", "fewstep", "python", "host", "objective_source",
            "backbone_source", "started", "finished")  # fmt: skip
    return {
        **{name: made.get(name) for name in kept},
        "torch": made.get("versions", {}).get("torch"),
        "job": job(made.get("job")),
        "command": spec.get("command"),
    }


def cell_origin(record: Json) -> Json:
    """Where a cell comes from, and the settings with which the run's command makes it."""
    made, cell = record.get("provenance", {}), record["cell"]
    times = cell.get("times")
    asked = {
        "steps": [cell["steps"]] if times is None else [],
        "times": None if times is None else [times],
        "weights": [cell["weights"]],
        "guidance": [cell["guidance"]],
        "sample_sets": cell["sample_set"] + 1 if cell["sample_set"] else None,
        **record.get("asked", {}),
    }
    if metric := asked.pop("metric", None):
        asked["metrics"] = [metric]
    given = {f"evaluation.{k}": v for k, v in asked.items() if v is not None}
    sampler = dict(cell.get("sampler") or {})
    if interval := sampler.pop("guidance_interval", None):
        given["evaluation.guidance_interval"] = [float(end) for end in interval.split("-")]
    given |= {f"objective.{k}": v for k, v in sampler.items()}
    return {
        "evaluated_commit": made.get("commit"),
        "evaluated_dirty": made.get("dirty"),
        "evaluated_lock": made.get("lock"),
        "evaluated_host": made.get("host"),
        "evaluated_job": job(made.get("job")),
        "evaluation": shlex.join(f"{k}={written(v)}" for k, v in given.items()),
    }


def job(told: Json | None) -> str | None:
    """What a launcher said of its job, in few words."""
    if not told:
        return None
    return " ".join(str(told[name]) for name in ("launcher", "id") if told.get(name)) or None


def add_teachers(facts: Sequence[Json], root: Path) -> None:
    """Add to each of the runs what its teacher, and the teacher's own, have cost.

    A teacher that is not among them is looked for by its key in the run root's other sweeps.
    """
    known = {str(fact["key"]): fact for fact in facts}

    def spent(key: str | None, column: str, depth: int = 0) -> float | None:
        if key is None or pd.isna(key) or depth > 10:
            return None
        if key not in known:
            known[key] = _elsewhere(key, root)
        fact = known[key]
        before = spent(fact.get("teacher"), column, depth + 1)
        own = fact.get(column)
        return own if before is None or own is None else own + before

    for fact in facts:
        for column in ("images_seen", "train_seconds", "device_hours", "train_flops"):
            fact[f"teacher_{column}"] = spent(fact["teacher"], column)


def _elsewhere(key: str, root: Path) -> Json:
    for found in sorted(root.glob(f"*/{key}/result.json")):
        run = RunDirectory(found.parent)
        result, spec = run.result() or {}, run.spec() or {}
        teacher = protocol(spec.get("config", {}))["teacher"]
        kept = {name: result.get(name) for name in ("images_seen", "train_seconds")}
        return {**kept, **costs(result), "teacher": teacher}
    return {}
