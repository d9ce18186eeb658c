"""``fewstep sweep NAME --plan``: the runs, their resources, an estimate of their duration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.text import Text

from fewstep.cli.views.console import duration, new_table, out
from fewstep.errors import counted
from fewstep.sweeps.launcher import duration_text

if TYPE_CHECKING:
    from fewstep.sweeps.plan import Plan


def headline(plan: Plan) -> str:
    """As in ``sweep digits: 12 runs (10 new, 0 interrupted, ..., 2 cached)``.

    Scripts read this line: always "runs", and states of later versions only if some run has them.
    """
    later = ("cancelled", "running", "stopped", "unreadable")
    counts = {s: n for s, n in plan.counts().items() if n or s not in later}
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    return f"sweep {plan.sweep.name}: {len(plan.runs)} runs ({states})"


def show(plan: Plan, preview: Iterable[str] = ()) -> None:
    """Print a plan; ``preview``: lines of the launcher."""
    estimate, resources = plan.estimate, {run.member.resources for run in plan.runs}
    budget = plan.sweep.budget is not None
    rows = []
    for run in plan.runs:
        key, label = run.directory.key, Text(run.member.label)
        row: dict[str, Any] = {"key": key, "state": run.state, "run": label}
        if budget:
            row["training steps"] = f"{run.member.config.training.steps:,}"
        if len(resources) > 1:
            row["resources"] = str(run.member.resources)
        if estimate.seconds:
            seconds = estimate.seconds.get(key)
            unknown = "?" if run.to_do else ""
            row["time left"] = unknown if seconds is None else duration(seconds)
        rows.append(row)
    out.print(new_table(rows, right=("training steps", "time left")))
    if (budget_record := plan.sweep.budget_record) is not None:
        out.print(f"equal {budget_record['equal']}: {budget_record['description']}")
    if plan.sweep.request.given and len(resources) == 1:
        out.print(f"resources of each run: {resources.pop()}")
    if plan.to_do:
        _print_estimate(plan)
    for line in preview:
        out.print(line)
    out.print(f"run directories: {plan.directory.path}")
    out.print("nothing was started", style="dim")


def _print_estimate(plan: Plan) -> None:
    estimate, runs = plan.estimate, len(plan.to_do)
    if not estimate.seconds:
        out.print(f"estimate: ? ({runs} to do; no comparable finished run to estimate from)")
        return
    text = duration_text(estimate.hours)
    if estimate.gpu_hours:
        text += f", {estimate.gpu_hours:.3g} GPU-hours"
    of = f"{len(estimate.seconds)} of {counted(runs, 'run')} to do"
    out.print(f"estimate: {text} for {of}, one after another; {estimate.basis}")
