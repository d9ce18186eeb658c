"""``fewstep sweep NAME --plan``: the runs, their resources, and what they will cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rich.text import Text

from fewstep.cli.views.console import duration, new_table, out
from fewstep.errors import counted
from fewstep.experiments.config.earlier_defaults import TRAINING
from fewstep.experiments.cost.devices import DEVICES
from fewstep.registry import named
from fewstep.sweeps.launcher import duration_text

if TYPE_CHECKING:
    from fewstep.sweeps.estimate import Estimate
    from fewstep.sweeps.plan import Plan


def headline(plan: Plan) -> str:
    """As in ``sweep digits: 12 runs (10 new, 0 interrupted, ..., 2 cached)``.

    Scripts read this line: always "runs", and states of later versions only if some run has them.
    """
    later = ("cancelled", "running", "stopped", "unreadable")
    counts = {s: n for s, n in plan.counts().items() if n or s not in later}
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    return f"sweep {plan.sweep.name}: {len(plan.runs)} runs ({states})"


def show(plan: Plan, preview: Iterable[str] = (), summary: Iterable[str] = ()) -> None:
    """Print a plan, its costs last, where a long one still shows them.

    ``preview``, ``summary``: lines of the launcher before and among the costs.
    """
    estimate, resources = plan.full_estimate, {run.member.resources for run in plan.runs}
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
    if plan.sweep.is_earlier:
        theirs = ", ".join(f"{name}={value}" for name, value in TRAINING.items())
        out.print(f"defaults of fewstep 0.2, with which the sweep was begun ({theirs}, ...)")
    for line in preview:
        out.print(line)
    if (budget_record := plan.sweep.budget_record) is not None:
        out.print(f"equal {budget_record['equal']}: {budget_record['description']}")
    if plan.sweep.request.given and len(resources) == 1:
        out.print(f"resources of each run: {resources.pop()}")
    for reason in dict.fromkeys(plan.missing):
        out.print(f"data not loaded, costs are of their shapes: {reason}")
    if any(r.device in DEVICES and not r.gpus for r in (run.member.resources for run in plan.runs)):
        out.print("resources.gpus is 0: times are of 1 GPU a run")
    if plan.to_do:
        times = [*time_lines(estimate, len(plan.to_do)), *_not_counted(plan)]
        for line in [*times, *disk_lines(plan), *summary]:
            out.print(line)
    out.print(f"run directories: {plan.directory.path}")
    out.print("nothing was started", style="dim")


def time_lines(estimate: Estimate, runs: int) -> list[str]:
    """How long ``runs`` to do take, split into training and evaluation, and how that is known."""
    why = [f"  {n} unknown: {reason}" for reason, n in estimate.reasons.items()]
    if not estimate.seconds:
        return [f"estimate: ? ({counted(runs, 'run')} to do)", *why]
    least = "at least " * bool(estimate.at_least)
    of = f"{len(estimate.seconds)} of {counted(runs, 'run')} to do"
    wall = f"{duration_text(estimate.hours)} for {of}, one after another"
    lines = [f"estimate: {least}{wall}"]
    trained, evaluated = estimate.hours - estimate.evaluation_hours, estimate.evaluation_hours
    if estimate.gpu_hours:
        evaluated = estimate.evaluation_gpu_hours
        trained = estimate.gpu_hours - evaluated
        lines.append(
            f"  {estimate.gpu_hours:,.3g} GPU-hours: {trained:,.3g} training, "
            f"{evaluated:,.3g} evaluation"
        )
    else:
        parts = f"{duration_text(trained)} training, {duration_text(evaluated)} evaluation"
        lines.append(f"  {parts}")
    lines += [f"  {line}" for line in estimate.basis]
    if estimate.at_least:
        count = counted(len(estimate.at_least), "run")
        lines.append(f"  at least: steps of {count} are too small to fill a GPU, and take longer")
    return lines + why


def _not_counted(plan: Plan) -> list[str]:
    """That latents are decoded, which the estimate leaves out: a decoder is a network, too."""
    asked = [run.member.config.evaluation for run in plan.to_do]
    decoded = sum(
        any(named("evaluation.extractor", value)["name"] == "decoded" for value in e.extractors)
        for e in asked
    )
    return (
        [f"  decoding the samples of {counted(decoded, 'run')} is not counted"] if decoded else []
    )


def disk_lines(plan: Plan) -> list[str]:
    """What the runs to do will leave on the disk, and the data set in the cache."""
    uses = plan.disk_uses
    known = [use for use in uses if use is not None]
    if not known:
        return ["disk: ? (a network needs real data to be built)"]
    parts = {f.name: sum(getattr(use, f.name) for use in known) for f in fields(known[0])}
    most = max(use.total for use in known)
    listed = [f"{name} {size(n)}" for name, n in parts.items() if n]
    if plan.cache_bytes:
        listed.append(f"and the data's cache {size(plan.cache_bytes)}")
    text = f"disk: {size(sum(parts.values()))}, at most {size(most)} a run"
    if len(known) < len(uses):
        text += f", {counted(len(uses) - len(known), 'run')} unknown"
    return [text, f"  {', '.join(listed)}"]


def size(nbytes: float) -> str:
    """As in ``1.5 GB``: 10^9 bytes."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes / 1e3:.3g} kB"
