"""What a run's files say of how it was trained, at what cost, and where it comes from."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.experiments.config.overrides import format_override
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.run_directory import TEACHERS, RunDirectory

RUN_COLUMNS: dict[str, str] = {
    "sweep": "string", "key": "string", "seed": "Int64",
    "status": "string",  # done | failed | stopped | running | new
    "failure_class": "string",  # also "stopped" for a run that ended before its planned steps
    "failure_message": "string",
    "method": "string",  # display label: title and the choices that vary
    "title": "string", "objective": "string", "backbone": "string", "data": "string",
}  # fmt: skip
EVALUATION: dict[str, str] = {
    "cell": "string",  # stem of the evaluation's and the samples' file; missing: no cell
    "steps": "Int64",  # sampling steps
    "times": "string",  # "uniform" or the times given, space separated
    "sampler": "string",  # "solver=heun, ..." or "default"
    "weights": "string",  # ema | raw | ema-0.9999 | sigma_rel-0.1
    # training step whose weights they are; missing: the last. Costs are of the whole training
    "at_step": "Int64",
    "guidance": "float64", "sample_set": "Int64",
    "metric": "string",  # label, e.g. FD-digits-cnn@597
    "metric_id": "string", "metric_name": "string",
    "extractor": "string", "extractor_sha256": "string",
    "better": "string",  # lower | higher | neither
    "value": "float64",
    "error": "float64",  # standard error over draws of the samples; few metrics know it
    "floor": "float64",
    "reconstruction": "float64",  # of latents: of what the autoencoder makes of held-out images
    "nfe": "Int64", "samples": "Int64",
    "reference": "string", "reference_samples": "Int64", "reference_sha256": "string",
    "reference_file": "string",  # its name, where it is known to be that of another project
}  # fmt: skip
PROTOCOL: dict[str, str] = {
    "batch_size": "Int64",
    "optimiser": "string",  # "adamw", "muon (momentum=0.9)"
    "lr": "float64", "auxiliary_lr": "float64", "companion_lr": "float64",
    "schedule": "string", "warmup": "Int64", "decay_from": "Int64",
    "betas": "string", "eps": "float64", "weight_decay": "float64", "clip": "float64",
    "ema": "float64", "ema_warmup": "boolean", "label_dropout": "float64", "flip": "boolean",
    "augment": "float64", "precision": "string", "init": "string",
}  # fmt: skip
CONDITIONS: dict[str, str] = {
    "data_is": "string",  # the public data set that it was checked to be
    "conditional": "string",  # classes | vectors | none
    "trained_guidance": "string",  # settings of the guidance that the network learned; "" for none
}
ORIGIN: dict[str, str] = {
    "data_sha256": "string",  # of the examples and classes it is trained on
    "commit": "string", "dirty": "boolean",
    "lock": "string",  # hash of all packages installed; runs/_cache/environments has their list
    "fewstep": "string", "python": "string", "torch": "string", "host": "string",
    "job": "string",  # "slurm 4711_2", "ray"
    "objective_source": "string", "backbone_source": "string",
    "started": "string", "finished": "string",
    "command": "string",  # that trains it again
}  # fmt: skip
CELL_ORIGIN: dict[str, str] = {
    "evaluated_commit": "string", "evaluated_dirty": "boolean", "evaluated_lock": "string",
    "evaluated_host": "string", "evaluated_job": "string",
    "evaluation": "string",  # what to add to ``command`` for this cell
}  # fmt: skip
COLUMNS: dict[str, str] = {
    **RUN_COLUMNS,
    **EVALUATION,
    "budget": "string",  # what all runs of the sweep spend, where they were made to spend the same
    "first_spike": "Int64",  # training step of the gradient's first spike; 0: none
    "recipe": "string",  # of a paper that the sweep is or was made from, and how far it differs
    "planned_steps": "Int64",  # optimisation steps asked for
    "planned_cells": "string",  # sampling step counts asked for, space separated
    "train_steps": "Int64", "images_seen": "Int64", "train_seconds": "float64",
    "steps_per_second": "float64", "sample_images_per_second": "float64",
    "peak_memory_bytes": "Int64", "parameters": "Int64",
    **PROTOCOL,
    # "target=online, share=0.25": all but the name
    "objective_settings": "string", "backbone_settings": "string", "data_settings": "string",
    "processes": "Int64",
    "device": "string",  # what a person would call it
    "device_hours": "float64",  # of training: processes x hours
    "train_flops": "float64",  # where the record has them
    "weak_teacher": "string",  # key of the run that autoguidance compares with
    "teacher": "string",  # key of the run it learned from; what that one and its teachers took:
    "teacher_images_seen": "Int64", "teacher_train_seconds": "float64",
    "teacher_device_hours": "float64", "teacher_train_flops": "float64",
    "initialised": "string",  # title of the teacher, where its weights were the first ones
    "taught": "boolean",  # whether its loss asks the teacher; not recorded before 0.3
    **CONDITIONS,
    **ORIGIN,
    **CELL_ORIGIN,
}  # fmt: skip
"""Nullable types throughout: a run that failed has no steps and no value, and must not turn a
column of integers into floats."""
CELL_COLUMNS = [*EVALUATION, "sample_images_per_second", *CELL_ORIGIN]
"""What differs from cell to cell; all else is the run's."""


PLACES = ("name", "root", "cache", "download", "is_")
"""Settings of a group that do not say what it is."""


def protocol(config: Json) -> Json:
    """How it is trained, from its configuration."""
    training = config.get("training", {})
    known = {name: training.get(name) for name in PROTOCOL}
    if isinstance(known["ema"], list):  # that of the weights called ema
        known["ema"] = known["ema"][0]
    if training:  # runs of old versions had no choice
        known["optimiser"] = _with_settings(training.get("optimiser", "adamw"))
    if known["betas"] is not None:
        known["betas"] = " ".join(f"{beta:g}" for beta in known["betas"])
    for group in ("objective", "backbone", "data"):
        given = config.get(group)
        settings = given.items() if isinstance(given, Mapping) else ()
        pairs = [f"{k}={format_override(v)}" for k, v in settings if k not in PLACES]
        known[f"{group}_settings"] = ", ".join(pairs) or None
    named = {role: config.get(role) for role in TEACHERS}
    return {**known, **{k: None if v is None else Path(v).name for k, v in named.items()}}


def _with_settings(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    settings = ", ".join(f"{k}={format_override(v)}" for k, v in value.items() if k != "name")
    return f"{value['name']} ({settings})" if settings else str(value["name"])


def costs(result: Json) -> Json:
    """On how much, for how long; from result.json, or what stands for it."""
    provenance = result.get("provenance", {})
    processes, seconds = provenance.get("processes", 1), result.get("train_seconds")
    return {
        "processes": processes if seconds is not None else None,
        "device": provenance.get("device_name", provenance.get("device")),
        "device_hours": None if seconds is None else seconds * processes / 3600,
        "train_flops": result.get("train_flops"),
        "initialised": (result.get("initialised") or {}).get("title"),
        "taught": result.get("taught"),
    }


def origin(result: Json, spec: Json, data: Json | None) -> Json:
    """Where it comes from."""
    provenance = result.get("provenance", {})
    return {
        **{name: provenance.get(name) for name in ORIGIN},
        "data_sha256": (data or {}).get("sha256"),
        "torch": provenance.get("versions", {}).get("torch"),
        "job": job(provenance.get("job")),
        "command": spec.get("command"),
    }


def cell_origin(record: Json) -> Json:
    """Where a cell comes from, and the settings with which the run's command makes it."""
    provenance, cell = record.get("provenance", {}), record["cell"]
    times = cell.get("times")
    settings = {
        "steps": [cell["steps"]] if times is None else [],
        "times": None if times is None else [times],
        "weights": [cell["weights"]],
        "at_steps": [cell["at_step"]] if cell.get("at_step") else None,
        "guidance": [cell["guidance"]],
        "sample_sets": cell["sample_set"] + 1 if cell["sample_set"] else None,
        **record.get("asked", {}),
    }
    if metric := settings.pop("metric", None):
        settings["metrics"] = [metric]
    overrides = {f"evaluation.{k}": v for k, v in settings.items() if v is not None}
    sampler = dict(cell.get("sampler") or {})
    if interval := sampler.pop("guidance_interval", None):
        overrides["evaluation.guidance_interval"] = [float(end) for end in interval.split("-")]
    if sampler.get("solver") == "amed":  # no setting of an objective
        overrides["evaluation.samplers"] = [sampler]
    else:
        overrides |= {f"objective.{k}": v for k, v in sampler.items()}
    return {
        **{
            f"evaluated_{name}": provenance.get(name)
            for name in ("commit", "dirty", "lock", "host")
        },
        "evaluated_job": job(provenance.get("job")),
        "evaluation": shlex.join(f"{k}={format_override(v)}" for k, v in overrides.items()),
    }


def floor_and_reconstruction(record: Json) -> Json:
    """The metric of real images, and of what an autoencoder makes of them, where it is told."""
    floor, metric = record.get("floor"), record["metric"]
    decoded = str(metric.get("extractor")).startswith("decoded-")
    if "reconstruction" not in record and decoded and metric.get("reference") == "file":
        return {"floor": None, "reconstruction": floor}  # as fewstep 0.2 called it
    return {"floor": floor, "reconstruction": record.get("reconstruction")}


def job(record: Json | None) -> str | None:
    """What a launcher said of its job, in few words."""
    if not record:
        return None
    return " ".join(str(record[name]) for name in ("launcher", "id") if record.get(name)) or None


def add_teachers(facts: Sequence[Json], root: Path) -> None:
    """Add to each of the runs what its teachers, and theirs, have cost.

    A teacher that is not among them is looked for by its key in the run root's other sweeps.
    """
    known = {str(fact["key"]): fact for fact in facts}

    def learned_from(fact: Json, depth: int = 0) -> set[str]:
        found = set[str]()
        for key in {str(fact[role]) for role in TEACHERS if fact.get(role) and depth <= 10}:
            if key not in known:
                known[key] = _elsewhere(key, root)
            found |= {key} | learned_from(known[key], depth + 1)
        return found

    for fact in facts:  # each run once, though several may have learned from it
        runs = [known[key] for key in sorted(learned_from(fact))]
        for column in ("images_seen", "train_seconds", "device_hours", "train_flops"):
            costs = [cost for run in runs if (cost := run.get(column)) is not None]
            complete = bool(runs) and len(costs) == len(runs)
            fact[f"teacher_{column}"] = sum(costs) if complete else None


def _elsewhere(key: str, root: Path) -> Json:
    for file in sorted(root.glob(f"*/{key}/result.json")):
        run = RunDirectory(file.parent)
        result, spec = run.result() or {}, run.spec() or {}
        known = protocol(spec.get("config", {}))
        spent = {name: result.get(name) for name in ("images_seen", "train_seconds")}
        return {**spent, **costs(result), **{role: known[role] for role in TEACHERS}}
    return {}
