"""``fewstep recipe diff``: how a run differs from the protocol of a paper."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.text import Text

from fewstep.cli import options as opt
from fewstep.cli.views.console import new_table, out, print_lines
from fewstep.errors import counted

app = typer.Typer(
    help="Recipes: the training protocols of papers, as sweeps.", no_args_is_help=True, **opt.TYPER
)


@app.callback()
def group() -> None:
    """Recipes: the training protocols of papers, as sweeps."""


@app.command("diff")
def diff(
    run: opt.RunName,
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe's name; default: the sweep's, or the closest.", show_default=False
        ),
    ] = None,
    runs: opt.Runs = None,
) -> None:
    """Show every setting in which a run differs from a paper's recipe, and where that is printed.

    Example: [bold]fewstep recipe diff 3f2a papers/shortcut_celeba_hq[/]
    """
    from fewstep.experiments.store.run_directory import SweepDirectory, find_run
    from fewstep.experiments.training.teacher import config_of
    from fewstep.sweeps import recipes

    root = opt.only_root(None, runs)
    found = find_run(run, root)
    config = config_of(found)
    plan = SweepDirectory(found.path.parent).plan() or {}
    named = recipe or recipes.made_from(plan, found.path.parent.name)
    members = {member["key"]: member for member in plan.get("runs", [])}
    label = members.get(found.key, {}).get("choices", {}).get("objective")
    beside = recipes.compare(config, named or recipes.closest(config), label)
    which = " ".join(f"{k}={v}" for k, v in beside.member.choices.items()) or "its only run"
    nearest = "" if beside.same_objective else ", the nearest: it has no run of this objective"
    out.print(f"run {found.key} and recipe {beside.recipe.name}, {which}{nearest}")
    out.print(f"paper: {beside.recipe.paper}")
    if beside.differences:
        out.print(new_table(map(_row, beside.differences), overflow="fold"))
    out.print(f"{counted(len(beside.differences), 'setting')} of this run not as in the recipe")
    if beside.recipe.unknown:
        unknown = (f"{k}: {v}" for k, v in beside.recipe.unknown.items())
        print_lines("published values that are unknown", unknown)
    if beside.recipe.differs:
        print_lines("what fewstep cannot do", beside.recipe.differs)


def _row(difference: Any) -> dict[str, Any]:
    shown = {"setting": difference.setting, "run": difference.run, "paper": difference.paper}
    return {k: Text(str(v)) for k, v in {**shown, "source": difference.source}.items()}
