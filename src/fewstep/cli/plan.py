"""stub until the axes' branch is merged"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from fewstep.cli.console import out


def show(made: Any, launcher: str, settings: Mapping[str, Any], whole: bool) -> None:
    counts = ", ".join(f"{n} {state}" for state, n in made.counts().items())
    out.print(f"sweep {made.sweep.name}: {len(made.runs)} runs ({counts})")
    if not whole:
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("key", "state", "run"):
        table.add_column(column)
    for run in made.runs:
        table.add_row(run.directory.key, run.state, Text(run.member.label))
    out.print(table)
    out.print(f"run directories: {made.directory.path}", markup=False)
    out.print("nothing was started", style="dim")
