"""``fewstep status``: how far sweeps and their runs are, once or live."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fewstep.cli.console import duration, err, out
from fewstep.cli.report import find_sweep
from fewstep.errors import UserError
from fewstep.experiments.rundir import SweepDirectory, find_sweeps
from fewstep.sweeps.status import STATES, RunStatus, counts, left_over, sweep_status

COLOURS = {
    "done": "green",
    "running": "cyan",
    "queued": "blue",
    "failed": "red",
    "interrupted": "yellow",
    "cancelled": "yellow",
    "stopped": "magenta",
    "unreadable": "red",
}
ENDED = ("done", "failed", "cancelled", "stopped", "unreadable")
REFRESH_SECONDS = 2.0
SHOWN = 3  # keys in a line


def status(name: str | None, root: Path, watch: bool = False) -> None:
    """All sweeps, or the runs of one; ``watch`` until all have ended."""
    if not watch:
        out.print(_runs(*read(find_sweep(name, root))) if name else _sweeps(root))
        return
    if name is None:
        raise UserError("--watch needs a sweep's name")
    sweep = find_sweep(name, root)
    runs, left = read(sweep)
    if not out.is_terminal:
        while True:
            out.print(_line(runs))
            if all(run.state in ENDED for run in runs):
                return
            time.sleep(10 * REFRESH_SECONDS)
            runs, _ = read(sweep)
    with Live(_runs(runs, left), console=out, auto_refresh=False, screen=False) as live:
        try:
            while not all(run.state in ENDED for run in runs):
                time.sleep(REFRESH_SECONDS)
                runs, left = read(sweep)
                live.update(_runs(runs, left), refresh=True)
        except KeyboardInterrupt:
            pass


def read(sweep: SweepDirectory) -> tuple[list[RunStatus], str]:
    """The runs of a sweep, with what SLURM says of those that wait; a line about former ones."""
    waits = waiting(sweep)
    return sweep_status(sweep, waits), tell_left_over(sweep, waits)


def tell_left_over(sweep: SweepDirectory, waits: Collection[str]) -> str:
    """A line about runs that are no longer in the sweep; empty where there are none."""
    left = [run.key for run in left_over(sweep, waits)]
    if not left:
        return ""
    some = ", ".join(left[:SHOWN]) + (", ..." if len(left) > SHOWN else "")
    return (
        f"{len(left)} runs that are no longer in the sweep are still in jobs or at work ({some}): "
        f"fewstep cancel {sweep.name} --former stops them"
    )


def waiting(sweep: SweepDirectory) -> Mapping[str, str]:
    """Why runs wait, by key; records on the way how jobs ended that could not say so."""
    from fewstep.sweeps.slurm import queue  # imports submitit: only where there is something

    if not (sweep.path / "_slurm").is_dir() or not queue.available():
        return {}
    from fewstep.sweeps.slurm.settings import SlurmSettings
    from fewstep.sweeps.slurm.settle import settle
    from fewstep.sweeps.slurm.submission import Slurm

    try:
        settle(sweep)
        jobs = Slurm(sweep, SlurmSettings()).queued()
    except UserError as error:
        err.print(str(error), markup=False)
        return {}
    return {
        key: f"job {job.id}: {job.state.lower()}" + (f", {job.reason}" if job.waiting else "")
        for key, job in jobs.items()
    }


def _sweeps(root: Path) -> Table | str:
    sweeps = find_sweeps(root)
    if not sweeps:
        return f"no runs under {root}/"
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("sweep")
    found = []
    for sweep in sweeps:
        try:
            found.append((sweep.name, counts(sweep_status(sweep, waiting(sweep)))))
        except UserError as error:  # of its sweep.json: the others are shown all the same
            err.print(str(error), markup=False)
    usual = ("done", "running", "interrupted", "failed", "new")
    states = [s for s in STATES if s in usual or any(s in c for _, c in found)]
    for column in ("runs", *states):
        table.add_column(column, justify="right")
    for name, count in found:
        table.add_row(name, str(sum(count.values())), *(str(count.get(s, 0)) for s in states))
    return table


def _runs(runs: Sequence[RunStatus], left: str) -> Group:
    """``left``: a line about runs that are none of these."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    right = ("seed", "step", "steps/s", "left", "restarts")
    metrics = {run.metric for run in runs if run.metric}
    # values of different metrics never stand in one column without their names
    one = metrics.pop().partition("-")[0] if len(metrics) == 1 else ""
    at_steps = f"{one or 'result'} at steps"
    columns = ["key", "run", "seed", "state", "step", "steps/s", "left", at_steps, "node"]
    restarted = any(run.restarts for run in runs)
    for column in [*columns, *(["restarts"] if restarted else [])]:
        table.add_column(column, justify="right" if column in right else "left")
    for run in runs:
        state = run.state if run.phase in ("", "train") else f"{run.state} ({run.phase})"
        table.add_row(
            run.key,
            Text(" ".join(run.choices.values()) or run.title),
            str(run.seed),
            Text(state, style=COLOURS.get(run.state, "")),
            f"{run.step}/{run.steps}",
            "" if run.rate is None else f"{run.rate:.1f}",
            "" if run.left is None else duration(run.left),
            "  ".join(
                [
                    *([] if one or not run.metric else [run.metric]),
                    *(f"{steps}: {_digits(value)}" for steps, value in run.values.items()),
                ]
            ),
            run.node,
            *([str(run.restarts)] if restarted else []),
        )
    notes = [Text(f"{run.key} {run.note}") for run in runs if run.note]
    notes += [Text(left)] if left else []
    return Group(table, *notes, Text(_line(runs), style="dim"))


def _line(runs: Sequence[RunStatus]) -> str:
    found = counts(list(runs))
    told = ", ".join(f"{found[s]} {s}" for s in STATES if s in found)
    speed = sum(run.rate or 0 for run in runs if run.state == "running")
    return f"{len(runs)} runs: {told}" + (f"; {speed:.0f} steps/s" if speed else "")


def _digits(value: float) -> str:
    """Three significant ones: a distance may be 0.0057, or 57."""
    if not math.isfinite(value) or abs(value) >= 1e5:
        return f"{value:.3g}"
    decimals = 2 if value == 0 else 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(decimals, 0), 6)}f}"
