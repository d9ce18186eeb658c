"""``fewstep sweep NAME --plan``: what would run, what it asks for, how long it will take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from fewstep.cli.console import duration, out

if TYPE_CHECKING:
    from fewstep.sweeps.plan import Plan


def headline(made: Plan) -> str:
    """As in ``sweep digits: 12 runs (10 new, 0 interrupted, ..., 2 cached)``.

    Scripts read this line: states that came later are told where there are any.
    """
    later = ("cancelled", "running", "stopped")
    counts = {s: n for s, n in made.counts().items() if n or s not in later}
    told = ", ".join(f"{n} {state}" for state, n in counts.items())
    return f"sweep {made.sweep.name}: {len(made.runs)} runs ({told})"


def show(made: Plan, submission: Iterable[str] = ()) -> None:
    """Print a plan. ``submission``: lines that a launcher has to say of how it would be started."""
    estimate, asked = made.estimate, {run.resources for run in made.runs}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("key", "state", "run"):
        table.add_column(column)
    budget = made.sweep.budget is not None
    if budget:
        table.add_column("training steps", justify="right")
    if len(asked) > 1:
        table.add_column("resources")
    if estimate.seconds:
        table.add_column("time left", justify="right")
    for run in made.runs:
        row: list[str | Text] = [run.directory.key, run.state, Text(run.member.label)]
        if budget:
            row.append(f"{run.member.config.training.steps:,}")
        if len(asked) > 1:
            row.append(str(run.resources))
        if estimate.seconds:
            seconds = estimate.seconds.get(run.directory.key)
            unknown = "?" if run.to_do else ""
            row.append(unknown if seconds is None else duration(seconds))
        table.add_row(*row)
    out.print(table)
    if (accounts := made.sweep.accounts) is not None:
        out.print(f"equal {accounts['equal']}: {accounts['description']}")
    if made.sweep.request.given and len(asked) == 1:
        out.print(f"resources of each run: {asked.pop()}")
    if made.to_do:
        _tell_estimate(made)
    for line in submission:
        out.print(line, markup=False)
    out.print(f"run directories: {made.directory.path}", markup=False)
    out.print("nothing was started", style="dim")


def _tell_estimate(made: Plan) -> None:
    estimate, runs = made.estimate, len(made.to_do)
    if not estimate.seconds:
        out.print(f"estimate: ? ({runs} to do; no finished run tells their speed)")
        return
    told = _time(estimate.hours)
    if estimate.gpu_hours:
        told += f", {estimate.gpu_hours:.3g} GPU-hours"
    of = f"{len(estimate.seconds)} of {runs} runs to do"
    out.print(f"estimate: {told} for {of}, one after another; {estimate.basis}")


def _time(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
