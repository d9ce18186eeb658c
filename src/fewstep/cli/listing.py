"""``fewstep list``: names, what they are, their settings and defaults."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rich.table import Table
from rich.text import Text

from fewstep.cli.console import out
from fewstep.errors import unknown
from fewstep.registry import Registry

KINDS = ("objectives", "backbones", "data", "sweeps", "extractors", "metrics")


def show(kind: str) -> None:
    """Print one kind.

    Raises:
        UserError: no such kind.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if kind == "sweeps":
        _sweeps()
    else:
        _registry(kind)


def _registry(kind: str) -> None:
    table = _table("name", "what", "settings")
    registry = _registries()[kind]
    for name in registry.names():
        entry = registry[name]
        settings = [f"{f.name}={getattr(entry, f.name)}" for f in fields(entry) if f.init]
        what = (type(entry).__doc__ or "").strip().splitlines() or [""]
        table.add_row(name, Text(what[0]), Text("\n".join(settings) or "-"))
    out.print(table)


def _registries() -> dict[str, Registry[Any]]:
    from fewstep.backbones import BACKBONES
    from fewstep.experiments.data import DATA
    from fewstep.experiments.extractors import EXTRACTORS
    from fewstep.experiments.metrics import METRICS
    from fewstep.objectives import OBJECTIVES

    return {
        "objectives": OBJECTIVES,
        "backbones": BACKBONES,
        "data": DATA,
        "extractors": EXTRACTORS,
        "metrics": METRICS,
    }


def _sweeps() -> None:
    from fewstep.sweeps import definition

    table = _table("name", "runs", "what")
    for name in definition.names():
        sweep = definition.load(name)
        table.add_row(name, str(len(sweep.members())), Text(sweep.description))
    out.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
