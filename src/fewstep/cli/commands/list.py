"""``fewstep list``: names, descriptions, settings and defaults."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from fewstep.cli.views.console import new_table, out
from fewstep.errors import unknown

if TYPE_CHECKING:
    from fewstep.registry import Registry

REGISTRIES = {
    "objectives": "objectives:OBJECTIVES",
    "backbones": "backbones:BACKBONES",
    "data": "experiments.data:DATA",
    "extractors": "experiments.extractors:EXTRACTORS",
    "metrics": "experiments.metrics:METRICS",
    "optimisers": "experiments.optimisers:OPTIMISERS",
    "launchers": "sweeps.launcher:LAUNCHERS",
}
KINDS = (*REGISTRIES, "sweeps", "recipes")


def list_(kind: Annotated[str, typer.Argument(help="|".join(KINDS))]) -> None:
    """List names of one kind, with their settings and defaults.

    Example: [bold]fewstep list objectives[/]
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if kind == "sweeps":
        from fewstep.sweeps.definition import parse as definition

        rows = [
            {"name": s.name, "runs": str(s.size), "description": Text(s.description)}
            for s in map(definition.load, definition.own())
        ]
    elif kind == "recipes":
        rows = _recipes()
    else:
        module, name = REGISTRIES[kind].split(":")
        registry: Registry[Any] = getattr(import_module(f"fewstep.{module}"), name)
        rows = [{"name": name} | _described(registry[name]) for name in registry.names()]
    out.print(new_table(rows, overflow="fold"))


def _recipes() -> list[dict[str, Any]]:
    from fewstep.sweeps.recipes import recipes

    return [
        {
            "name": recipe.name,
            "runs": str(sweep.size),
            "paper": Text(recipe.paper),
            "unknown": Text("\n".join(f"{k}: {v}" for k, v in recipe.unknown.items()) or "-"),
            "differs": Text("\n".join(recipe.differs) or "-"),
        }
        for sweep, recipe in recipes()
    ]


def _described(entry: Any) -> dict[str, Any]:
    settings = [f"{f.name}={getattr(entry, f.name)}" for f in fields(entry) if f.init]
    lines = (type(entry).__doc__ or "").strip().splitlines() or [""]
    return {"description": Text(lines[0]), "settings": Text("\n".join(settings) or "-")}
