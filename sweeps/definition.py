"""A sweep as it is written: base settings, axes, seeds.

::

    name: my_sweep
    description: what it is for
    base:                             # settings of every run
      data: digits
      training.steps: 1500
    axes:                             # the product of these
      objective:
        - flow_matching               # a value of the axis
        - {objective: shortcut, objective.bootstrap_share: 0.5}   # or several settings at once
        - {objective: scd, teacher: flow_matching}   # learns from that value's run of its seed
    seeds: 3                          # 0, 1, 2; or a list

A ``teacher`` that is the label of another value of the same axis is the run that differs in that
value alone; anything else names a run, as on the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from fewstep.errors import UserError, check_range, unknown
from fewstep.experiments.config import Override, RunConfig, compose, pair, sweep_name
from fewstep.experiments.run import directory_of

FIELDS = ("name", "description", "base", "axes", "seeds")
OWN = {
    "seed": "write seeds: N, or seeds: [..], beside them",
    "seeds": "write it beside them",
    "sweep": "write name: beside them",
    "runs": "the run root belongs to the command line, --runs DIR",
}
PRESETS = files("fewstep.sweeps.presets")


@dataclass(frozen=True)
class Choice:
    """One value of an axis: how it is told, and the settings it stands for.

    ``named``: the label was given in the file, and is to be the method's name.
    """

    label: str
    settings: tuple[tuple[str, Any], ...]
    named: bool = False


@dataclass(frozen=True)
class Sweep:
    """Base settings, axes by name, and seeds; ``members`` is their product."""

    name: str
    description: str
    base: tuple[tuple[str, Any], ...]
    axes: Mapping[str, tuple[Choice, ...]]
    seeds: tuple[int, ...]
    overrides: tuple[tuple[str, Any], ...] = ()
    whole_axes: Mapping[str, tuple[Choice, ...]] | None = None  # where a command line chose

    def with_overrides(self, overrides: Iterable[Override]) -> Sweep:
        """The sweep with settings from the command line, which win over the file's.

        On an axis they choose among its values: ``objective=[a,b]``. ``seeds=5`` or
        ``seeds=[3,4]`` replaces the seeds, ``name=...`` the name.
        """
        sweep = self
        for override in overrides:
            key, value = pair(override)
            if key == "seeds":
                sweep = replace(sweep, seeds=_seeds(value))
            elif key == "name":
                sweep = replace(sweep, name=sweep_name(value))
            elif key in sweep.axes:
                chosen = _chosen(key, sweep.axes[key], value)
                axes = {**sweep.axes, key: chosen}
                sweep = replace(sweep, axes=axes, whole_axes=sweep.whole_axes or sweep.axes)
            else:
                sweep = replace(sweep, overrides=(*sweep.overrides, (key, value)))
        return sweep

    def members(self) -> list[Member]:
        """Every run of the sweep, axes in their order, seeds innermost.

        Raises:
            UserError: a setting that is not valid, or two members that are the same run.
        """
        found: dict[str, Member] = {}
        for combination in product(*self.axes.values()):
            choices = dict(zip(self.axes, (c.label for c in combination), strict=True))
            for seed in self.seeds:
                config = self._config(combination, seed)
                named = [c.label for a, c in zip(self.axes, combination, strict=True)
                         if c.named and a == "objective"]  # fmt: skip
                title = named[0] if named else config.objective.title
                member = Member(config, choices, seed, title)
                if config.key in found:
                    raise UserError(
                        f"sweep {self.name}: {member.label} and {found[config.key].label} "
                        f"are the same run {config.key}"
                    )
                found[config.key] = member
        return list(found.values())

    def _config(self, combination: Sequence[Choice], seed: int, depth: int = 0) -> RunConfig:
        """The run of one choice per axis, its teacher found among the others."""
        if depth > sum(len(choices) for choices in self.axes.values()):
            labels = ", ".join(choice.label for choice in combination)
            raise UserError(f"sweep {self.name}: the teachers of {labels} go round in a circle")
        axes = list((self.whole_axes or self.axes).values())
        settings: list[Override] = []
        for i, choice in enumerate(combination):
            for key, value in choice.settings:
                sibling = [c for c in axes[i] if key == "teacher" and c.label == value]
                if sibling:
                    others = [*combination[:i], sibling[0], *combination[i + 1 :]]
                    teacher = directory_of(self._config(others, seed, depth + 1))
                    settings.append((key, str(teacher.path.absolute())))
                else:
                    settings.append((key, value))
        own: list[Override] = [("sweep", self.name), ("seed", seed)]
        return compose([*self.base, *settings, *self.overrides, *own])


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    config: RunConfig
    choices: Mapping[str, str]
    seed: int
    title: str

    @property
    def label(self) -> str:
        """As in ``objective=scm seed=0``."""
        return " ".join(f"{k}={v}" for k, v in {**self.choices, "seed": self.seed}.items())


def names() -> list[str]:
    """The sweeps that come with fewstep."""
    return sorted(f.name[:-5] for f in PRESETS.iterdir() if f.name.endswith(".yaml"))


def load(name: str) -> Sweep:
    """A sweep by the name of a preset, or by the path of a YAML file.

    Raises:
        UserError: no such preset or file, or a file that is not a sweep.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"no sweep file at {path.resolve()}")
        return _read(path.read_text(encoding="utf-8", errors="replace"), str(path), path.stem)
    if name not in names():
        raise UserError(f"{unknown('sweep', name, names())}, or the path of a .yaml file")
    return _read((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"), name, name)


def _read(text: str, source: str, stem: str) -> Sweep:
    try:
        content = OmegaConf.to_container(OmegaConf.create(text))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"sweep {source} is not valid YAML: {_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"sweep {source} must be a mapping with the fields {', '.join(FIELDS)}")
    for field in content:
        if field not in FIELDS:
            raise unknown(f"field of sweep {source}", field, FIELDS)
    axes = content.get("axes") or {}
    base = content.get("base") or {}
    if not isinstance(axes, dict) or not isinstance(base, dict):
        raise UserError(f"sweep {source}: base and axes must be mappings")
    if not content:
        raise UserError(f"sweep {source} is empty (fields: {', '.join(FIELDS)})")
    given = set(base) | set(axes) | {k for v in axes.values() for c in v or () for k in _keys(c)}
    for key, instead in OWN.items():
        if key in given:
            raise UserError(f"sweep {source}: {key!r} is not set in base or axes; {instead}")
    return Sweep(
        name=sweep_name(content.get("name", stem)),
        description=str(content.get("description", "")).strip(),
        base=tuple(base.items()),
        axes={str(axis): _choices(source, str(axis), values) for axis, values in axes.items()},
        seeds=_seeds(content.get("seeds", 1)),
    )


def _keys(choice: Any) -> list[str]:
    return list(choice) if isinstance(choice, dict) else []


def _choices(source: str, axis: str, values: Any) -> tuple[Choice, ...]:
    if not isinstance(values, list) or not values:
        raise UserError(f"sweep {source}: axis {axis} must be a list of values, got {values!r}")
    choices = []
    for value in values:
        if not isinstance(value, dict):
            choices.append(Choice(str(value), ((axis, value),)))
            continue
        settings = {k: v for k, v in value.items() if k != "label"}
        told = value.get("label", value.get(axis))
        if told is None:
            told = ",".join(f"{k}={v}" for k, v in settings.items())
        choices.append(Choice(str(told), tuple(settings.items()), "label" in value))
    labels = [choice.label for choice in choices]
    for label in labels:
        if labels.count(label) > 1:  # two methods under one name would be averaged as one
            raise UserError(
                f"sweep {source}: two values of axis {axis} are both called {label!r}; "
                f"tell them apart with label: NAME"
            )
    return tuple(choices)


def _chosen(axis: str, choices: tuple[Choice, ...], value: Any) -> tuple[Choice, ...]:
    labels = [str(v) for v in (value if isinstance(value, list) else [value])]
    known = [c.label for c in choices]
    for label in labels:
        if label not in known:
            raise unknown(f"value of axis {axis}", label, known)
    return tuple(c for c in choices if c.label in labels)


def _seeds(value: Any) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        check_range("seeds", value, 1)
        return tuple(range(value))
    if isinstance(value, list) and value and all(isinstance(v, int) for v in value):
        return tuple(dict.fromkeys(value))
    raise UserError(f"seeds must be a number of seeds or a list of them, got {value!r}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
