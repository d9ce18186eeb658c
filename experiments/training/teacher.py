"""A run that learns from another: finding its teacher, holding the two together, loading it."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from fewstep.errors import UserError
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.data import Dataset
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training.network import check_guidance, load_network
from fewstep.objectives import OBJECTIVES, Teacher


def teacher_directory(config: RunConfig) -> RunDirectory | None:
    """Where the run's teacher is; None if it has none.

    By the path it was named with, or, when that was moved, by its key under the run root.
    """
    if config.values.get("teacher") is None:
        return None
    path = Path(config.values["teacher"])
    if not (path / "spec.json").is_file():
        moved = Path(config.values["runs"]).glob(f"*/{path.name}/spec.json")
        copies = sorted(p.parent for p in moved)
        done = [copy for copy in copies if (copy / "result.json").is_file()]
        path = next(iter([*done, *copies]), path)
    return RunDirectory(path)


def check_teacher(config: RunConfig, to_come: Mapping[str, RunConfig] = {}) -> None:
    """Raise ``UserError`` unless the run's teacher, if it needs one, is there and fits.

    ``to_come`` are runs, by key, that will be done before.
    """
    objective, name = config.objective, config.values["objective"]["name"]
    directory = teacher_directory(config)
    if directory is None:
        if objective.needs_teacher:
            raise UserError(
                f"objective {name!r} needs a teacher: name a finished run with teacher=RUN "
                f"(its directory, or the beginning of its key)"
            )
        if config.training.init == "teacher":
            raise UserError("training.init 'teacher' needs a run to start from: teacher=RUN")
        return
    if not objective.needs_teacher and config.training.init != "teacher":
        raise UserError(
            f"objective {name!r} learns from no teacher, got teacher={directory.path} "
            f"(to start from its weights, training.init=teacher)"
        )
    _check(config, directory.key, to_come.get(directory.key) or _finished(directory))


def _finished(directory: RunDirectory) -> RunConfig:
    key, path, status = directory.key, directory.path, directory.status()
    if directory.spec() is None:
        raise UserError(f"teacher: no run in {path}")
    if directory.result() is None:
        raise UserError(f"teacher {key} is not finished ({status}): train {path} to its end first")
    return config_of(directory)


def _check(config: RunConfig, key: str, teacher: RunConfig) -> None:
    """Whether a run of ``teacher``, called ``key``, can teach one of ``config``."""
    own, its = config.which_data(), teacher.which_data()
    if own != its:
        shown, expected = _describe_data(its), _describe_data(own)
        raise UserError(f"teacher {key} learns from other data: {shown}, this run from {expected}")
    if config.objective.needs_teacher and not teacher.objective.can_teach:
        can = [name for name in OBJECTIVES.names() if OBJECTIVES[name].can_teach]
        raise UserError(
            f"teacher {key} is trained with {teacher.values['objective']['name']!r}, "
            f"which learns no velocity that could be taught (choices: {', '.join(can)})"
        )
    guidance = getattr(config.objective, "teacher_guidance", 1)
    if guidance != 1 and (dataset := config.data.load()).has_conditions:
        check_guidance(teacher, dataset, f"objective.teacher_guidance {guidance:g} of {key}", True)
    asks_it = config.objective.needs_teacher and not config.objective.needs_pairs
    dropout = config.training.label_dropout
    if asks_it and dropout and (dataset := config.data.load()).has_conditions:
        what = f'training.label_dropout {dropout:g} asks teacher {key} for "no label", which'
        check_guidance(teacher, dataset, what, True)
    if config.training.init == "teacher" and not same_architecture(config, teacher):
        here, needed = (
            f"{c.values['backbone']['name']}, {c.objective.path}" for c in (config, teacher)
        )
        raise UserError(
            f"training.init 'teacher' needs the backbone and the path of teacher {key} ({needed}), "
            f"got {here}; use training.init=random"
        )


def _describe_data(data: dict[str, object]) -> str:
    rest = ", ".join(f"{k}={v}" for k, v in data.items() if k != "name")
    return f"{data['name']} ({rest})" if rest else str(data["name"])


def config_of(directory: RunDirectory) -> RunConfig:
    """The configuration in a run's spec.json, which must be there."""
    spec = directory.spec()
    if spec is None:
        raise UserError(f"no run in {directory.path}: it has no spec.json")
    return RunConfig(spec["config"])


def same_architecture(config: RunConfig, teacher: RunConfig) -> bool:
    """Whether the teacher's weights mean the same in the student's network."""
    same_path = config.objective.path == teacher.objective.path
    return same_path and config.backbone == teacher.backbone


def load_teacher(
    config: RunConfig, dataset: Dataset, device: torch.device
) -> tuple[Teacher, nn.Module, RunConfig] | None:
    """The teacher, its network (EMA weights, frozen) and configuration; checked as above."""
    check_teacher(config)
    directory = teacher_directory(config)
    if directory is None:
        return None
    own = config_of(directory)
    network = load_network(own, dataset, directory.checkpoints, "ema", own.training.steps)
    return Teacher(own.objective, network.to(device), config.objective.path), network, own
