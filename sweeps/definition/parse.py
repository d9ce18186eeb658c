"""Reads a sweep file (docs/sweeps.md has an example of every field) into a checked ``Sweep``."""

from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from fewstep.errors import UserError, check_choice, located, unknown
from fewstep.experiments.config.run_config import sweep_name
from fewstep.setting_types import check_type
from fewstep.sweeps.definition.axes import Axis, Choice, known_values, read_axes
from fewstep.sweeps.definition.budget import read_budget
from fewstep.sweeps.definition.conditions import AxisValues, Condition, read_condition
from fewstep.sweeps.definition.launchers import LAUNCHERS, PARTS, with_new_names
from fewstep.sweeps.definition.member import Member
from fewstep.sweeps.definition.recipe import Recipe, read_recipe
from fewstep.sweeps.definition.resources import read_resources
from fewstep.sweeps.definition.sampling import read_sample
from fewstep.sweeps.definition.sweep import Sweep, seeds_of

__all__ = ["Axis", "Choice", "Member", "Recipe", "Sweep", "load", "names", "recipes"]

OWN = {
    "seed": "write seeds: N, or seeds: [..], beside them",
    "seeds": "write it beside them",
    "sweep": "write name: beside them",
    "runs": "the run root belongs to the command line, --runs DIR",
}
PRESETS = files("fewstep.sweeps.presets")
PAPERS = "papers"  # the folder of the recipes


def names() -> list[str]:
    """The sweeps that come with fewstep; recipes as ``papers/NAME``."""
    return [*own(), *recipes()]


def own() -> list[str]:
    """The sweeps that come with fewstep and are no recipes."""
    return _stems(PRESETS)


def recipes() -> list[str]:
    """The recipes of papers that come with fewstep."""
    return [f"{PAPERS}/{stem}" for stem in _stems(PRESETS / PAPERS)]


def _stems(folder: Traversable) -> list[str]:
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))


def load(name: str) -> Sweep:
    """A sweep by the name of a preset, or by the path of a YAML file.

    Raises ``UserError``: no such preset or file, or a file that is not a sweep.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"no sweep file at {path.resolve()}")
        text = path.read_text(encoding="utf-8", errors="replace")
    elif name in names():
        path, text = Path(name), (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise UserError(f"{unknown('sweep', name, names())}, or the path of a .yaml file")
    known = name in names()
    with located(f"sweep {path}"):
        return _read(text, path.stem, name if known else str(path.absolute()))


def _read(text: str, stem: str, full_name: str) -> Sweep:
    try:
        content = OmegaConf.to_container(OmegaConf.create(text))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"it is not valid YAML: {' '.join(str(error).split())}") from None
    fields = (*PARTS, *LAUNCHERS.names())
    if not isinstance(content, dict):
        raise UserError(f"it must be a mapping with the fields {', '.join(fields)}")
    for field in content:
        if field not in fields:
            raise _unknown_field(str(field), content[field], fields)
    if not content:
        raise UserError(f"it is empty (fields: {', '.join(fields)})")
    base, axes = content.get("base") or {}, content.get("axes") or {}
    if not isinstance(axes, dict) or not isinstance(base, dict):
        raise UserError("base and axes must be mappings")
    varied = read_axes(axes)
    known, drawn = known_values(varied.values())
    for key, instead in OWN.items():
        if key in {*base, *varied, *known}:
            raise UserError(f"{key!r} is not set in base or axes; {instead}")
    methods = varied["objective"].labels if "objective" in varied else []
    set_here = {*map(str, base), *_set_by(varied)}
    recipe = read_recipe(content.get("recipe"), full_name, set_here, methods)
    if isinstance(recipe, str) and not Path(recipe).is_file():
        check_choice("recipe", recipe, recipes())
    return Sweep(
        name=sweep_name(content.get("name", stem)),
        description=str(content.get("description", "")).strip(),
        base=tuple((str(key), value) for key, value in base.items()),
        axes=varied,
        seeds=seeds_of(content.get("seeds", 1)),
        exclude=_exclude(content.get("exclude") or [], known, drawn),
        sample=read_sample(content.get("sample")),
        budget=read_budget(content.get("budget"), {a: x.labels for a, x in varied.items()}),
        request=read_resources(content.get("resources"), known),
        recipe=recipe,
        launchers={
            name: with_new_names(
                LAUNCHERS[name], name, check_type(name, content[name] or {}, dict[str, Any])
            )
            for name in LAUNCHERS.names()
            if name in content
        },
    )


def _set_by(axes: Mapping[str, Axis]) -> set[str]:
    """The settings that the axes set."""
    names = {key for axis in axes.values() for choice in axis.choices for key, _ in choice.settings}
    return names | {name for name, axis in axes.items() if axis.draw is not None}


def _unknown_field(field: str, value: Any, fields: Sequence[str]) -> UserError:
    error = LAUNCHERS.lookup_error(field, "field", fields)
    if field in LAUNCHERS.not_loaded or not isinstance(value, dict):
        return error
    return UserError(f"{error}; or are these settings of a launcher that is not installed?")


def _exclude(listed: Any, known: AxisValues, drawn: Collection[str]) -> tuple[Condition, ...]:
    if not isinstance(listed, list):
        raise UserError(f"exclude must be a list of mappings of axes to values, got {listed!r}")
    return tuple(
        read_condition(f"exclude, entry {i}", entry, known, (), drawn)
        for i, entry in enumerate(listed, start=1)
    )
