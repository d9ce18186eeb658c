"""A sweep and its members: its runs, and the choice that the command line makes among them."""

import contextlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from fewstep.errors import UserError, check_choice, check_range, located
from fewstep.experiments.config.earlier_defaults import earlier_defaults
from fewstep.experiments.config.hydra_schema import GROUPS
from fewstep.experiments.config.run_config import (
    Override,
    RunConfig,
    compose,
    default_name,
    pair,
    sweep_name,
)
from fewstep.experiments.run import directory_of
from fewstep.experiments.store.json_files import CorruptFile
from fewstep.experiments.store.run_directory import SweepDirectory
from fewstep.sweeps.definition import sampling
from fewstep.sweeps.definition.axes import Axis, Combination, axis_values
from fewstep.sweeps.definition.budget import Budget, BudgetAccount
from fewstep.sweeps.definition.conditions import Condition
from fewstep.sweeps.definition.launchers import LAUNCHERS, with_new_names
from fewstep.sweeps.definition.member import Member
from fewstep.sweeps.definition.recipe import Recipe
from fewstep.sweeps.definition.resources import NO_REQUEST, Request
from fewstep.sweeps.definition.sampling import Sample, read_sample


@dataclass(frozen=True)
class Sweep:
    """Base settings, axes by name, and seeds; ``members`` are the runs they make.

    Attributes:
        budget: what each run spends (budget.py). request: what its runs ask a machine for.
        launchers: settings by the name of a launcher, which checks them.
        recipe: of a paper, or the name of the recipe that the sweep was made from.
        overrides, chosen: settings and labels by axis from the command line.
        file_seeds: those of the file, where the command line has others: runs that the command
            line does not choose still belong to the sweep.
    """

    name: str
    description: str
    base: tuple[tuple[str, Any], ...]
    axes: Mapping[str, Axis]
    seeds: tuple[int, ...]
    exclude: tuple[Condition, ...] = ()
    sample: Sample | None = None
    budget: Budget | None = None
    request: Request = NO_REQUEST
    launchers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipe: Recipe | str | None = None
    overrides: tuple[tuple[str, Any], ...] = ()
    chosen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    file_seeds: tuple[int, ...] = ()
    _steps: dict[Combination, int] = field(default_factory=dict, init=False, compare=False)

    def with_overrides(self, overrides: Iterable[Override]) -> Self:
        """The sweep with settings from the command line, which win over the file's.

        On an axis they choose among its values: ``objective=[a,b]``. ``seeds=5`` or
        ``seeds=[3,4]`` replaces the seeds, ``name=...`` the name; ``resources.hours=4``,
        ``sample.count=9`` and ``slurm.partition=low`` go to the fields of these names.
        """
        sweep = self
        for override in overrides:
            key, value = pair(override)
            head, _, rest = key.partition(".")
            if key == "seeds":
                kept = sweep.file_seeds or sweep.seeds
                sweep = replace(sweep, seeds=seeds_of(value), file_seeds=kept)
            elif key == "name":
                sweep = replace(sweep, name=sweep_name(value))
            elif key in sweep.axes:
                labels = _chosen(sweep.axes[key], sweep.chosen.get(key), value)
                sweep = replace(sweep, chosen={**sweep.chosen, key: labels})
            elif key in ("sample.count", "sample.seed"):
                values = {} if sweep.sample is None else vars(sweep.sample)
                sweep = replace(sweep, sample=read_sample({**values, rest: value}))
            elif head == "resources" and rest:
                sweep = replace(sweep, request=sweep.request.override(rest, value))
            elif head in LAUNCHERS and rest:
                name, *below = rest.split(".")
                (name,) = with_new_names(LAUNCHERS[head], head, {name: value})
                settings = _nested(sweep.launchers.get(head, {}), [name, *below], value)
                sweep = replace(sweep, launchers={**sweep.launchers, head: settings})
            else:
                sweep = replace(sweep, overrides=(*sweep.overrides, (key, value)))
        return sweep

    def members(self) -> list[Member]:
        """Every run that is chosen, axes in their order, seeds innermost.

        Raises ``UserError``: a setting that is not valid, or two members that are the same run.
        """
        members: dict[str, Member] = {}
        if self.budget is not None:
            self.total  # noqa: B018  (raises the error of a bad budget now)
        for combination in filter(self._is_chosen, self._combinations):
            for seed in self.seeds:
                member = self._member(combination, seed)
                key = member.config.key
                if key in members:
                    raise UserError(
                        f"sweep {self.name}: {member.label} and {members[key].label} "
                        f"are the same run {key}"
                    )
                members[key] = member
        return list(members.values())

    @property
    def size(self) -> int:
        """The number of ``members``, which are not composed for that."""
        return len(self.seeds) * sum(map(self._is_chosen, self._combinations))

    def members_of(self, combination: Combination) -> list[Member]:
        """The runs of one combination, by seed; a UserError if it is excluded, or not valid."""
        if sampling.is_excluded(tuple(self.axes.values()), self.exclude, combination):
            raise UserError(f"sweep {self.name}: an excluded combination")
        return [self._member(combination, seed) for seed in self.seeds]

    @property
    def is_whole(self) -> bool:
        """Whether the command line leaves out nothing."""
        return not self.chosen and set(self.file_seeds) <= set(self.seeds)

    def whole(self) -> list[Member]:
        """Every run of the sweep, also those that the command line does not choose.

        Runs that cannot be composed are skipped: the overrides were not meant for them.
        """
        members: dict[str, Member] = {}
        for combination in self._combinations:
            for seed in dict.fromkeys([*self.file_seeds, *self.seeds]):
                try:
                    member = self._member(combination, seed)
                except UserError:
                    continue
                members.setdefault(member.config.key, member)
        return list(members.values())

    @cached_property
    def _combinations(self) -> list[Combination]:
        """Of the axes; teachers that a sample leaves out are added before their students."""
        axes = tuple(self.axes.values())
        with located(f"sweep {self.name}"):
            chosen = sampling.combinations(axes, self.exclude, self.sample)
        if self.sample is None:
            return chosen
        with_teachers: dict[Combination, None] = {}
        for combination in chosen:
            chain, teacher = [combination], self._teacher(combination)
            while teacher is not None and teacher not in chain:
                chain.insert(0, teacher)
                teacher = self._teacher(teacher)
            with_teachers.update(dict.fromkeys(chain))
        return list(with_teachers)

    def _labels(self, combination: Combination) -> dict[str, str]:
        """By axis, of those that apply."""
        return {a: c.label for a, c in zip(self.axes, combination, strict=True) if c is not None}

    def _is_chosen(self, combination: Combination) -> bool:
        labels = self._labels(combination)
        return all(label in self.chosen.get(axis, (label,)) for axis, label in labels.items())

    def _member(self, combination: Combination, seed: int) -> Member:
        config = self._config(combination, seed)
        method = dict(zip(self.axes, combination, strict=True)).get("objective")
        title = method.label if method is not None and method.named else config.objective.title
        resources = self.request.of(axis_values(self.axes.values(), combination), config)
        return Member(config, self._labels(combination), seed, title, resources)

    def _config(
        self, combination: Combination, seed: int, students: Sequence[Combination] = ()
    ) -> RunConfig:
        """The run of one choice per axis, its teacher found among the others."""
        if combination in students:
            labels = ", ".join(self._labels(combination).values())
            raise UserError(f"sweep {self.name}: the teachers of {labels} form a cycle")
        settings = [*self.base, *(setting for _, setting in _settings(combination))]
        teacher = self._teacher(combination)
        if teacher is not None:
            taught_by = self._config(teacher, seed, [*students, combination])
            path = str(directory_of(taught_by).path.absolute())
            settings.append(("teacher", path))
            if self.budget is not None:
                self._account.known[path] = taught_by
        settings += [("sweep", self.name), ("seed", seed)]
        overrides = self.overrides
        if overrides and not self._is_chosen(combination):  # they may only fit chosen runs
            overrides = _applicable(settings, overrides)
        if self.is_earlier:
            said = [*settings, *overrides]
            settings = [*earlier_defaults(said, default_name("objective")), *settings]
        config = compose([*settings, *overrides])
        if self.budget is None or _sets_steps(combination) or combination == self._model:
            return config
        if combination not in self._steps:  # the same for all seeds
            self._steps[combination] = self._account.steps(config, self.total)
        return compose([*settings, *overrides, ("training.steps", self._steps[combination])])

    @cached_property
    def is_earlier(self) -> bool:
        """Whether it was begun with version 0.2, whose defaults it keeps."""
        root = dict([*self.base, *self.overrides]).get("runs", "runs")
        with contextlib.suppress(CorruptFile, OSError):  # told where it is continued
            begun = SweepDirectory(Path(str(root)) / self.name).plan()
            return begun is not None and "defaults" not in begun
        return False

    @cached_property
    def _account(self) -> BudgetAccount:
        assert self.budget is not None
        return BudgetAccount(self.budget)

    @cached_property
    def total(self) -> float:
        """What every run spends, in the unit of the budget."""
        if self._model is None:
            assert self.budget is not None
            assert self.budget.amount is not None
            return self.budget.amount
        return self._account.spent(self._config(self._model, self.seeds[0]))

    @cached_property
    def _model(self) -> Combination | None:
        """The combination whose own ``training.steps`` set the budget."""
        if self.budget is None or self.budget.amount is not None:
            return None
        for combination in self._combinations:
            if self.budget.like.items() <= self._labels(combination).items():
                return combination
        wanted = " ".join(f"{axis}={label}" for axis, label in self.budget.like.items())
        raise UserError(f"sweep {self.name}: budget.as names no run: {wanted}")

    @property
    def budget_record(self) -> dict[str, Any] | None:
        """The budget as sweep.json keeps it; None where there is none."""
        if self.budget is None:
            return None
        speeds = {"images_per_second": self._account.speeds} if self._account.speeds else {}
        model = self._model or ()
        choices = [c for axis in self.axes.values() for c in axis.choices if c not in model]
        but = [choice.label for choice in choices if _sets_steps((choice,))]
        return {
            "equal": self.budget.equal,
            "total": self.total,
            "teacher": self.budget.teacher,
            **speeds,
            "description": self.budget.describe(self.total, but),
        }

    def _teacher(self, combination: Combination) -> Combination | None:
        """The combination that this one learns from, where its teacher is a value of an axis."""
        axes = list(self.axes.values())
        teachers = [(i, v) for i, (key, v) in _settings(combination) if key == "teacher"]
        if not teachers:
            return None
        i, label = teachers[-1]
        if not (siblings := [choice for choice in axes[i].choices if choice.label == label]):
            return None
        try:
            return sampling.complete(axes, [*combination[:i], siblings[0], *combination[i + 1 :]])
        except LookupError as error:
            student = self._labels(combination)[axes[i].name]
            raise UserError(
                f"sweep {self.name}: which run of {label} teaches {student}? axis {error} varies "
                f"among them and does not apply to {student}"
            ) from None


def _settings(combination: Combination) -> list[tuple[int, tuple[str, Any]]]:
    """What a combination sets, each with the number of its axis."""
    return [(i, s) for i, choice in enumerate(combination) if choice for s in choice.settings]


def _sets_steps(combination: Combination) -> bool:
    return any(key == "training.steps" for _, (key, _) in _settings(combination))


def seeds_of(value: Any) -> tuple[int, ...]:
    """``N`` seeds from 0, or the seeds of a list; else a UserError."""
    if isinstance(value, int) and not isinstance(value, bool):
        check_range("seeds", value, 1)
        return tuple(range(value))
    if isinstance(value, list) and value and all(isinstance(v, int) for v in value):
        if len(set(value)) < len(value):
            warnings.warn(f"seeds has a seed twice, which is run once: {value!r}", stacklevel=2)
        return tuple(dict.fromkeys(value))
    raise UserError(f"seeds must be a number of seeds or a list of them, got {value!r}")


def _chosen(axis: Axis, before: Sequence[str] | None, value: Any) -> tuple[str, ...]:
    if axis.draw is not None:
        raise UserError(
            f"axis {axis.name} is drawn at random: no value of it can be chosen, got {value!r}"
        )
    labels = [str(v) for v in (value if isinstance(value, list) else [value])]
    known = axis.labels if before is None else before
    for label in labels:
        check_choice(f"value of axis {axis.name}", label, known)
    return tuple(labels)


def _nested(settings: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """``settings`` with the one at ``path`` set; the mappings on the way are made."""
    if len(path) == 1:
        return {**settings, path[0]: value}
    inner = settings.get(path[0])
    below = _nested(inner if isinstance(inner, Mapping) else {}, path[1:], value)
    return {**settings, path[0]: below}


def _applicable(
    settings: Sequence[tuple[str, Any]], overrides: Sequence[tuple[str, Any]]
) -> tuple[tuple[str, Any], ...]:
    """The overrides that set something the run of ``settings`` has."""
    groups = [override for override in overrides if override[0] in GROUPS]
    has = compose([*settings, *groups]).values
    kept = []
    for key, value in overrides:
        head, _, name = key.partition(".")
        if head not in GROUPS or not name or name in has[head]:
            kept.append((key, value))
    return tuple(kept)
