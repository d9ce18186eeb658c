"""stub until the axes' branch is merged"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
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
    if launcher == "slurm":
        scripts(made, settings)
    out.print(f"run directories: {made.directory.path}", markup=False)
    out.print("nothing was started", style="dim")


def scripts(made: Any, settings: Mapping[str, Any]) -> None:
    """The arrays that SLURM would get, and the script of each kind."""
    from fewstep.sweeps.slurm import submission
    from fewstep.sweeps.slurm.queue import array_limit
    from fewstep.sweeps.slurm.settings import SlurmSettings

    parsed = SlurmSettings.parse(settings)
    to_do = [run for run in made.runs if run.to_do]
    keys = {run.directory.key for run in to_do}
    wanted = []
    for run in to_do:
        teacher = Path(run.member.config.values["teacher"] or "-").name
        taught_by = teacher if teacher in keys else None
        wanted.append(submission.Wanted(run.directory.key, taught_by, run.member.resources))
    chunks = submission.chunks(wanted, parsed, array_limit())
    told = submission.scripts(made.directory, chunks, parsed)
    shown = set()
    for chunk, text in told:
        n = sum(len(keys) for keys in chunk.tasks)
        out.print(f"an array of {len(chunk.tasks)} tasks, {n} runs", style="bold")
        kind = (chunk.resources, chunk.teacher is None)
        if kind not in shown:
            shown.add(kind)
            out.print(text, markup=False, style="dim")
