"""A run that learns from another: finding its teacher, holding the two together, loading it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fewstep.errors import UserError
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.data import Dataset
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training.initialisation import NetworkForm, kept_form, own_form, taken_over
from fewstep.experiments.training.network import check_guidance, load_checkpoint, load_saved
from fewstep.objectives import OBJECTIVES, ProbabilityPath, Teacher

WEAK = "weak_teacher"


def teacher_directory(config: RunConfig, role: str = "teacher") -> RunDirectory | None:
    """Where the run's teacher, or ``weak_teacher``, is; None if it has none.

    By the path it was named with, or, when that was moved, by its key under the run root.
    """
    if config.values.get(role) is None:
        return None
    path = Path(config.values[role])
    if not (path / "spec.json").is_file():
        moved = Path(config.values["runs"]).glob(f"*/{path.name}/spec.json")
        copies = sorted(p.parent for p in moved)
        done = [copy for copy in copies if (copy / "result.json").is_file()]
        path = next(iter([*done, *copies]), path)
    return RunDirectory(path)


def check_teacher(
    config: RunConfig, to_come: Mapping[str, RunConfig] = {}, dataset: Dataset | None = None
) -> None:
    """Raise ``UserError`` unless the run's teacher, if it needs one, is there and fits.

    ``to_come`` are runs, by key, that will be done before. ``dataset``: the run's, where it is
    loaded.
    """
    objective, name = config.objective, config.values["objective"]["name"]
    _check_weak_teacher(config, dataset)
    directory = teacher_directory(config)
    if objective.continues and (directory is None or config.training.init != "teacher"):
        raise UserError(
            f"objective {name!r} goes on from a finished run: name it with teacher=RUN "
            f"training.init=teacher"
        )
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
    teacher = to_come.get(directory.key) or _finished(directory)
    _check(config, f"teacher {directory.key}", teacher, dataset)
    if config.training.init == "teacher":
        network_form(config, to_come)


def _check_weak_teacher(config: RunConfig, dataset: Dataset | None) -> None:
    directory, needed = teacher_directory(config, WEAK), config.objective.needs_weak_teacher
    if directory is not None and needed:
        if directory.key == Path(str(config.values.get("teacher"))).name:
            raise UserError(f"{WEAK} {directory.key} is the teacher: name a worse one")
        _check(config, f"{WEAK} {directory.key}", _finished(directory, WEAK), dataset)
    elif needed:
        scale = getattr(config.objective, "autoguidance", None)
        raise UserError(
            f"objective.autoguidance={scale} needs a second, worse teacher: name a finished run "
            f"with {WEAK}=RUN (its directory, or the beginning of its key)"
        )
    elif directory is not None:
        name = config.values["objective"]["name"]
        raise UserError(
            f"objective {name!r} asks no weak teacher, got {WEAK}={directory.path} "
            f"(objective.autoguidance, where the objective has it, does)"
        )


def _finished(directory: RunDirectory, role: str = "teacher") -> RunConfig:
    key, path, status = directory.key, directory.path, directory.status()
    if directory.spec() is None:
        raise UserError(f"{role}: no run in {path}")
    if directory.result() is None:
        raise UserError(f"{role} {key} is not finished ({status}): train {path} to its end first")
    return config_of(directory)


def _check(config: RunConfig, who: str, teacher: RunConfig, dataset: Dataset | None) -> None:
    """Whether a run of ``teacher``, called ``who``, can teach one of ``config``."""
    own, its = config.which_data(), teacher.which_data()
    if own != its:
        shown, expected = _describe_data(its), _describe_data(own)
        raise UserError(f"{who} learns from other data: {shown}, this run from {expected}")
    if config.objective.needs_teacher and not teacher.objective.can_teach:
        can = [name for name in OBJECTIVES.names() if OBJECTIVES[name].can_teach]
        raise UserError(
            f"{who} is trained with {teacher.values['objective']['name']!r}, "
            f"which learns no velocity that could be taught (choices: {', '.join(can)})"
        )
    student, taught = config.objective, teacher.objective
    if student.continues and (student.jump_range, student.uses_jump) != (
        taught.jump_range,
        taught.uses_jump,
    ):
        raise UserError(
            f"{who} is trained with {teacher.values['objective']['name']!r}, which "
            f"{student.title} cannot go on from: its jumps are others"
        )
    guidance = getattr(config.objective, "teacher_guidance", 1)
    if guidance != 1 and (dataset := dataset or config.data.load()).has_conditions:
        check_guidance(teacher, dataset, f"objective.teacher_guidance {guidance:g} of {who}", True)
    asks_it = config.objective.needs_teacher and not config.objective.needs_pairs
    dropout = config.training.label_dropout
    if asks_it and dropout and (dataset := dataset or config.data.load()).has_conditions:
        what = f'training.label_dropout {dropout:g} asks {who} for "no label", which'
        check_guidance(teacher, dataset, what, True)


def _describe_data(data: dict[str, object]) -> str:
    rest = ", ".join(f"{k}={v}" for k, v in data.items() if k != "name")
    return f"{data['name']} ({rest})" if rest else str(data["name"])


def config_of(directory: RunDirectory) -> RunConfig:
    """The configuration in a run's spec.json, which must be there."""
    spec = directory.spec()
    if spec is None:
        raise UserError(f"no run in {directory.path}: it has no spec.json")
    return RunConfig(spec["config"])


def first_weights_line(config: RunConfig) -> str | None:
    """Whose weights the run starts from, for people; None where it has no teacher."""
    if (directory := teacher_directory(config)) is None:
        return None
    form = network_form(config)
    if form.record is not None:
        return f"first weights: those of run {form.run} ({form.title})"
    why = "" if config.training.init == "random" else (
        f"; run {directory.key} has another backbone or path, and training.init=auto converts "
        f"nothing (training.init=teacher does, between paths)"
    )  # fmt: skip
    return f"first weights: random{why}"


def starts_from(config: RunConfig, teacher: RunConfig) -> bool:
    """Whether the run's first weights are those of its teacher."""
    if config.training.init == "auto":
        same_path = config.objective.path == teacher.objective.path
        return same_path and config.backbone == teacher.backbone
    return config.training.init == "teacher"


def network_form(config: RunConfig, to_come: Mapping[str, RunConfig] = {}) -> NetworkForm:
    """How the run's network is called, and whose weights it starts from.

    ``to_come`` are runs, by key, that will be done before. ``UserError`` if there is no such form.
    """
    directory = teacher_directory(config)
    if directory is None:
        return own_form(config)
    coming = to_come.get(directory.key)
    teacher = coming or config_of(directory)
    if not starts_from(config, teacher):
        return own_form(config)
    its = (
        network_form(teacher, to_come) if coming else kept_form(teacher, directory.first_weights())
    )
    return taken_over(config, directory.key, teacher, its)


@dataclass(frozen=True)
class LoadedTeacher:
    """A finished run to learn from: its EMA ``network``, frozen, of that ``form``.

    ``velocity``: on the student's path.
    """

    key: str
    config: RunConfig
    network: nn.Module
    form: NetworkForm
    path: ProbabilityPath

    @property
    def velocity(self) -> Teacher | None:
        """What it teaches; None where it gives its weights alone."""
        own = self.config.objective
        return Teacher(own, self.network, self.path) if own.can_teach else None


def load_teacher(
    config: RunConfig, dataset: Dataset, device: torch.device, role: str = "teacher"
) -> LoadedTeacher | None:
    """The run's teacher, or ``weak_teacher``, checked as above; None if it has none."""
    check_teacher(config)
    directory = teacher_directory(config, role)
    if directory is None:
        return None
    own = config_of(directory)
    saved = load_checkpoint(directory.checkpoints, own.training.steps)
    network = load_saved(own, dataset, saved, "ema").to(device)
    form = kept_form(own, saved.state.get("initialised"))
    return LoadedTeacher(directory.key, own, network, form, config.objective.path)


def weak_velocity(
    config: RunConfig, dataset: Dataset, device: torch.device, given: LoadedTeacher | None = None
) -> Teacher | None:
    """What the run's weak teacher teaches, or ``given``; None where the objective asks none."""
    if not config.objective.needs_weak_teacher:
        return None
    loaded = given or load_teacher(config, dataset, device, WEAK)
    return None if loaded is None else loaded.velocity


def first_form(config: RunConfig, teacher: LoadedTeacher | None) -> NetworkForm:
    """``network_form``, by the teacher's checkpoint."""
    if teacher is None or not starts_from(config, teacher.config):
        return own_form(config)
    return taken_over(config, teacher.key, teacher.config, teacher.form)
