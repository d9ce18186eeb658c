"""``fewstep list``: names, descriptions, settings and defaults."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from fewstep.cli.views.console import new_table, out
from fewstep.errors import counted, unknown

if TYPE_CHECKING:
    from fewstep.registry import Registry

REGISTRIES = {
    "objectives": "objectives:OBJECTIVES",
    "backbones": "backbones:BACKBONES",
    "data": "experiments.data:DATA",
    "extractors": "experiments.extractors:EXTRACTORS",
    "autoencoders": "experiments.autoencoders:AUTOENCODERS",
    "metrics": "experiments.metrics:METRICS",
    "optimisers": "experiments.optimisers:OPTIMISERS",
    "launchers": "sweeps.launcher:LAUNCHERS",
}
KINDS = (*REGISTRIES, "sweeps", "recipes")


def list_(
    kind: Annotated[str, typer.Argument(help="|".join(KINDS))],
    name: Annotated[str | None, typer.Argument(help="One of them, with all that is known.")] = None,
) -> None:
    """List names of one kind, with their settings and defaults; or one of them.

    Example: [bold]fewstep list objectives[/]
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if kind == "recipes" and name is not None:
        _show_recipe(name)
        return
    if kind == "sweeps":
        from fewstep.sweeps.definition import parse as definition

        rows = [
            {"name": s.name, "runs": str(s.size), "description": Text(s.description)}
            for s in map(definition.load, definition.own())
        ]
    elif kind == "recipes":
        rows = _recipes()
    else:
        module, attribute = REGISTRIES[kind].split(":")
        registry: Registry[Any] = getattr(import_module(f"fewstep.{module}"), attribute)
        rows = [{"name": n} | _described(registry[n]) for n in registry.names()]
    if name is not None:
        if name not in (names := [str(row["name"]) for row in rows]):
            raise unknown(kind.removesuffix("s"), name, names)
        rows = [row for row in rows if row["name"] == name]
    out.print(new_table(rows, overflow="fold"))


def _recipes() -> list[dict[str, Any]]:
    from fewstep.sweeps.recipes import recipes

    return [
        {"name": recipe.name, "runs": str(sweep.size), "paper": Text(recipe.paper)}
        for sweep, recipe in recipes()
    ]


def _show_recipe(name: str) -> None:
    """A recipe's paper, published numbers, and in what it is not the paper's protocol."""
    from fewstep.sweeps.recipes import recipe_sweep

    sweep, recipe = recipe_sweep(name)
    out.print(Text(f"{recipe.name} ({counted(sweep.size, 'run')}): {recipe.paper}"))
    for row in recipe.published:
        values = ", ".join(f"{value:g} ({steps})" for steps, value in row.values.items())
        where = "; ".join(filter(None, [row.conditions, row.source]))
        out.print(Text(f"  {row.method}: {row.metric} {values}, {where}"))
    for title, lines in (
        ("unknown", [f"{setting}: {taken}" for setting, taken in recipe.unknown.items()]),
        ("differs", recipe.differs),
    ):
        out.print(f"{title}:" if lines else f"{title}: -")
        for line in lines:
            out.print(Text(f"  {line}"))


def _described(entry: Any) -> dict[str, Any]:
    settings = [f"{f.name.rstrip('_')}={getattr(entry, f.name)}" for f in fields(entry) if f.init]
    lines = (type(entry).__doc__ or "").strip().splitlines() or [""]
    return {"description": Text(lines[0]), "settings": Text("\n".join(settings) or "-")}
