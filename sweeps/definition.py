"""A sweep as its file writes it: base settings, axes, seeds, and what its runs ask a machine for.

::

    name: my_sweep
    description: what it is for
    base:                             # settings of every run
      data: digits
      training.steps: 1500
    axes:                             # the product of these; more ways to write one: axes.py
      objective:
        - flow_matching               # a value of the axis
        - {objective: shortcut, objective.bootstrap_share: 0.5}   # or several settings at once
        - {objective: scd, teacher: flow_matching}   # learns from that value's run of its seed
      training.lr: {logspace: [1.0e-4, 1.0e-2, 3]}
    seeds: 3                          # 0, 1, 2; or a list
    exclude:                          # combinations that are left out
      - {objective: scd, training.lr: 0.01}
    sample: {count: 4}                # so many of the combinations, by chance
    budget: flops                     # what all runs spend the same of: budget.py
    resources: {gpus: 1, hours: 2}    # and rules: resources.py
    slurm: {partition: low}           # settings of a launcher, which checks them; also ray, local

A ``teacher`` that is the label of another value of the same axis is the run that differs in that
value alone; anything else names a run, as on the command line.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from fewstep.errors import UserError, unknown
from fewstep.experiments.config import sweep_name
from fewstep.sweeps.axes import Axis, Choice, known_facts, read_axes
from fewstep.sweeps.budget import read_budget
from fewstep.sweeps.conditions import Condition, read_condition
from fewstep.sweeps.resources import read_resources
from fewstep.sweeps.space import read_sample
from fewstep.sweeps.sweep import LAUNCHERS, Member, Sweep, seeds_of

__all__ = ["Axis", "Choice", "Member", "Sweep", "load", "names"]

PARTS = ("name", "description", "base", "axes", "seeds", "exclude", "sample", "budget",
         "resources")  # fmt: skip
FIELDS = (*PARTS, *LAUNCHERS)
OWN = {
    "seed": "write seeds: N, or seeds: [..], beside them",
    "seeds": "write it beside them",
    "sweep": "write name: beside them",
    "runs": "the run root belongs to the command line, --runs DIR",
}
PRESETS = files("fewstep.sweeps.presets")


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
    if not content:
        raise UserError(f"sweep {source} is empty (fields: {', '.join(FIELDS)})")
    base, axes = content.get("base") or {}, content.get("axes") or {}
    if not isinstance(axes, dict) or not isinstance(base, dict):
        raise UserError(f"sweep {source}: base and axes must be mappings")
    varied = read_axes(source, axes)
    settings = {key for a in varied.values() for c in a.choices for key, _ in c.settings}
    for key, instead in OWN.items():
        if key in {*base, *varied, *settings}:
            raise UserError(f"sweep {source}: {key!r} is not set in base or axes; {instead}")
    known, _ = known_facts(varied.values())
    return Sweep(
        name=sweep_name(content.get("name", stem)),
        description=str(content.get("description", "")).strip(),
        base=tuple((str(key), value) for key, value in base.items()),
        axes=varied,
        seeds=seeds_of(content.get("seeds", 1)),
        exclude=_exclude(source, content.get("exclude"), varied),
        sample=read_sample(source, content.get("sample")),
        budget=read_budget(source, content.get("budget"), {a: x.labels for a, x in varied.items()}),
        request=read_resources(source, content.get("resources"), known),
        launchers={name: _settings(source, name, content[name])
                   for name in LAUNCHERS if name in content},
    )  # fmt: skip


def _exclude(source: str, listed: Any, axes: dict[str, Axis]) -> tuple[Condition, ...]:
    where = f"sweep {source}: exclude"
    if not isinstance(listed or [], list):
        raise UserError(f"{where} must be a list of mappings of axes to values, got {listed!r}")
    known, drawn = known_facts(axes.values())
    return tuple(
        read_condition(f"{where}, entry {i}", entry, known, (), drawn)
        for i, entry in enumerate(listed or [], start=1)
    )


def _settings(source: str, launcher: str, settings: Any) -> dict[str, Any]:
    if not isinstance(settings or {}, dict):
        raise UserError(
            f"sweep {source}: {launcher} must be a mapping of settings to values, got {settings!r}"
        )
    return {str(name): value for name, value in (settings or {}).items()}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
