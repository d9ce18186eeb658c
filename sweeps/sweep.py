"""A sweep and its members: which runs they are, and what the command line chooses among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from fewstep.errors import UserError, check_range, unknown
from fewstep.experiments.composition import GROUPS
from fewstep.experiments.config import Override, RunConfig, compose, pair, sweep_name
from fewstep.experiments.run import directory_of
from fewstep.sweeps.axes import Axis, Combination, facts
from fewstep.sweeps.budget import Accounts, Budget
from fewstep.sweeps.conditions import Condition
from fewstep.sweeps.resources import DEFAULT, NO_REQUEST, Request, Resources
from fewstep.sweeps.space import Sample, combinations, complete, is_excluded

LAUNCHERS = ("local", "ray", "slurm")


@dataclass(frozen=True)
class Member:
    """One run of a sweep. ``choices``: a label by axis, of the axes that apply to it."""

    config: RunConfig
    choices: Mapping[str, str]
    seed: int
    title: str
    resources: Resources = DEFAULT

    @property
    def label(self) -> str:
        """As in ``objective=scm seed=0``."""
        return " ".join(f"{k}={v}" for k, v in {**self.choices, "seed": self.seed}.items())


@dataclass(frozen=True)
class Sweep:
    """Base settings, axes by name, and seeds; ``members`` are the runs they make.

    ``budget``: what all of them spend the same of (budget.py).
    ``request``: what its runs ask a machine for. ``launchers``: settings by the name of a launcher,
    which checks them. ``overrides`` and ``chosen`` (labels by axis) are the command line's say, and
    ``file_seeds`` those of the file where the command line has others: what it does not choose
    still belongs to the sweep.
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
    overrides: tuple[tuple[str, Any], ...] = ()
    chosen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    file_seeds: tuple[int, ...] = ()

    def with_overrides(self, overrides: Iterable[Override]) -> Sweep:
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
                sweep = replace(sweep, sample=_resampled(sweep, rest, value))
            elif head == "resources" and rest:
                sweep = replace(sweep, request=sweep.request.override(rest, value))
            elif head in LAUNCHERS and rest:
                told = _nested(sweep.launchers.get(head, {}), rest.split("."), value)
                sweep = replace(sweep, launchers={**sweep.launchers, head: told})
            else:
                sweep = replace(sweep, overrides=(*sweep.overrides, (key, value)))
        return sweep

    def members(self) -> list[Member]:
        """Every run that is chosen, axes in their order, seeds innermost.

        Raises:
            UserError: a setting that is not valid, or two members that are the same run.
        """
        found: dict[str, Member] = {}
        if self.budget is not None:
            self.total  # noqa: B018  (a budget that cannot be told is told now)
        for combination in filter(self._is_chosen, self._combinations):
            for seed in self.seeds:
                member = self._member(combination, seed)
                key = member.config.key
                if key in found:
                    raise UserError(
                        f"sweep {self.name}: {member.label} and {found[key].label} "
                        f"are the same run {key}"
                    )
                found[key] = member
        return list(found.values())

    def of(self, combination: Combination) -> list[Member]:
        """The runs of one combination, by seed.

        Raises:
            UserError: a combination that is excluded, or not valid.
        """
        if is_excluded(tuple(self.axes.values()), self.exclude, combination):
            raise UserError(f"sweep {self.name}: an excluded combination")
        return [self._member(combination, seed) for seed in self.seeds]

    @property
    def is_whole(self) -> bool:
        """Whether the command line leaves out nothing."""
        return not self.chosen and set(self.file_seeds) <= set(self.seeds)

    def whole(self) -> list[Member]:
        """Every run of the sweep, with those that the command line does not choose.

        What cannot be composed is passed over: the command line was not meant for it.
        """
        found: dict[str, Member] = {}
        for combination in self._combinations:
            for seed in dict.fromkeys([*self.file_seeds, *self.seeds]):
                try:
                    member = self._member(combination, seed)
                except UserError:
                    continue
                found.setdefault(member.config.key, member)
        return list(found.values())

    @cached_property
    def _combinations(self) -> list[Combination]:
        """Of the axes; teachers that a sample would leave out come before their students."""
        axes = tuple(self.axes.values())
        found = combinations(f"sweep {self.name}", axes, self.exclude, self.sample)
        if self.sample is None:
            return found
        taught: dict[Combination, None] = {}
        for combination in found:
            chain, teacher = [combination], self._teacher(combination)
            while teacher is not None and teacher not in chain:
                chain.insert(0, teacher)
                teacher = self._teacher(teacher)
            taught.update(dict.fromkeys(chain))
        return list(taught)

    def _is_chosen(self, combination: Combination) -> bool:
        return all(
            choice is None or choice.label in self.chosen.get(axis, (choice.label,))
            for axis, choice in zip(self.axes, combination, strict=True)
        )

    def _member(self, combination: Combination, seed: int) -> Member:
        config = self._config(combination, seed)
        chosen = {a: c for a, c in zip(self.axes, combination, strict=True) if c is not None}
        method = chosen.get("objective")
        return Member(
            config,
            {axis: choice.label for axis, choice in chosen.items()},
            seed,
            method.label if method is not None and method.named else config.objective.title,
            self.request.of(facts(self.axes.values(), combination), config),
        )

    def _config(
        self, combination: Combination, seed: int, students: Sequence[Combination] = ()
    ) -> RunConfig:
        """The run of one choice per axis, its teacher found among the others."""
        if combination in students:
            labels = ", ".join(choice.label for choice in combination if choice is not None)
            raise UserError(f"sweep {self.name}: the teachers of {labels} go round in a circle")
        settings = [*self.base, *(s for choice in combination if choice for s in choice.settings)]
        teacher = self._teacher(combination)
        if teacher is not None:
            taught_by = self._config(teacher, seed, [*students, combination])
            place = str(directory_of(taught_by).path.absolute())
            settings.append(("teacher", place))
            if self.budget is not None:
                self._accounts.known[place] = taught_by
        settings += [("sweep", self.name), ("seed", seed)]
        overrides = self.overrides
        if overrides and not self._is_chosen(combination):  # of those that are, maybe
            overrides = _applicable(settings, overrides)
        config = compose([*settings, *overrides])
        if self.budget is None or _sets_steps(combination) or combination == self._model:
            return config
        if combination not in self._steps:  # the same for all seeds
            self._steps[combination] = self._accounts.steps(config, self.total)
        return compose([*settings, *overrides, ("training.steps", self._steps[combination])])

    @cached_property
    def _accounts(self) -> Accounts:
        assert self.budget is not None
        return Accounts(self.budget)

    @cached_property
    def _steps(self) -> dict[Combination, int]:
        return {}

    @cached_property
    def total(self) -> float:
        """What every run spends, in the unit of the budget."""
        assert self.budget is not None
        if self.budget.amount is not None:
            return self.budget.amount
        assert self._model is not None
        return self._accounts.spent(self._config(self._model, self.seeds[0]))

    @cached_property
    def _model(self) -> Combination | None:
        """The combination whose own ``training.steps`` set the budget."""
        if self.budget is None or self.budget.amount is not None:
            return None
        for combination in self._combinations:
            labels = {a: c.label for a, c in zip(self.axes, combination, strict=True) if c}
            if all(labels.get(axis) == label for axis, label in self.budget.like.items()):
                return combination
        told = ", ".join(f"{axis}={label}" for axis, label in self.budget.like.items())
        raise UserError(f"sweep {self.name}: no run has {told}, which is to set the budget")

    @property
    def accounts(self) -> dict[str, Any] | None:
        """The budget as sweep.json keeps it; None where there is none."""
        if self.budget is None:
            return None
        told = {"equal": self.budget.equal, "total": self.total, "teacher": self.budget.teacher}
        speeds = {"images_per_second": self._accounts.speeds} if self._accounts.speeds else {}
        model = self._model or ()
        choices = [c for axis in self.axes.values() for c in axis.choices if c not in model]
        but = [choice.label for choice in choices if _sets_steps((choice,))]
        return {**told, **speeds, "description": self.budget.describe(self.total, but)}

    def _teacher(self, combination: Combination) -> Combination | None:
        """The combination that this one learns from, where its teacher is a value of an axis."""
        axes = list(self.axes.values())
        told = [
            (i, value)
            for i, choice in enumerate(combination)
            for key, value in (choice.settings if choice is not None else ())
            if key == "teacher"
        ]
        if not told:
            return None
        i, label = told[-1]
        siblings = [choice for choice in axes[i].choices if choice.label == label]
        if not siblings:
            return None
        try:
            return complete(axes, [*combination[:i], siblings[0], *combination[i + 1 :]])
        except LookupError as error:
            student = combination[i].label if combination[i] else "?"  # type: ignore[union-attr]
            raise UserError(
                f"sweep {self.name}: which run of {label} teaches {student}? axis {error} varies "
                f"among them and does not apply to {student}"
            ) from None


def _sets_steps(combination: Combination) -> bool:
    return any(
        key == "training.steps"
        for choice in combination
        if choice is not None
        for key, _ in choice.settings
    )


def seeds_of(value: Any) -> tuple[int, ...]:
    """``N`` seeds from 0, or the seeds of a list.

    Raises:
        UserError: neither.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        check_range("seeds", value, 1)
        return tuple(range(value))
    if isinstance(value, list) and value and all(isinstance(v, int) for v in value):
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
        if label not in known:
            raise unknown(f"value of axis {axis.name}", label, known)
    return tuple(labels)


def _resampled(sweep: Sweep, name: str, value: Any) -> Sample:
    if sweep.sample is not None:
        return replace(sweep.sample, **{name: value})
    if name == "seed":
        raise UserError(f"sweep {sweep.name} has no sample: sample.seed needs sample.count")
    return Sample(value)


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
