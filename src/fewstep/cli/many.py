"""Commands on sweeps: sweep, status, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from fewstep.cli.console import err, out
from fewstep.errors import UserError, check_range, unknown
from fewstep.experiments.rundir import SweepDirectory, find_sweeps


def sweep(name: str, overrides: Sequence[Any], *, plan_only: bool, workers: int | None) -> int:
    """``fewstep sweep``; returns the exit code."""
    from fewstep.cli.live import sweep_view
    from fewstep.experiments.trainer import choose_device
    from fewstep.sweeps import definition
    from fewstep.sweeps.local import LocalLauncher
    from fewstep.sweeps.plan import plan

    if workers is not None:
        check_range("--workers", workers, 1)
    made = plan(definition.load(name).with_overrides(overrides))
    counts = ", ".join(f"{n} {state}" for state, n in made.counts().items())
    out.print(f"sweep {made.sweep.name}: {len(made.runs)} runs ({counts})")
    if plan_only:
        _show_plan(made)
        return 0
    waiting = [run for run in made.runs if run.to_do]
    for run in waiting:
        choose_device(run.member.config.training.device)
    made.write()
    interrupted: list[str] = []
    failed: list[str] = []
    if waiting:
        with sweep_view(waiting, len(made.runs) - len(waiting)) as view:
            outcome = LocalLauncher(workers).launch([run.directory for run in waiting], view)
        interrupted, failed = outcome.interrupted, outcome.failed
    if interrupted:
        err.print(f"{len(interrupted)} runs are not finished; the same command continues them")
        return 130
    directory = made.directory
    report(directory, None)
    tracking = made.runs[0].member.config.values["tracking"]
    if tracking["enabled"]:
        from fewstep.cli.sync import sync_sweeps

        sync_sweeps([directory], made.root, tracking["uri"])
    return 1 if failed else 0


def _show_plan(made: Any) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("key", "state", "run"):
        table.add_column(column)
    for run in made.runs:
        table.add_row(run.directory.key, run.state, Text(run.member.label))
    out.print(table)
    out.print(f"run directories: {made.directory.path}", markup=False)
    out.print("nothing was started", style="dim")


def status(name: str | None, root: Path) -> None:
    """``fewstep status``: all sweeps, or the runs of one."""
    from fewstep.sweeps.status import counts, sweep_status

    if name is not None:
        _show_runs(sweep_status(find_sweep(name, root)))
        return
    sweeps = find_sweeps(root)
    if not sweeps:
        out.print(f"no runs under {root}/", markup=False)
        return
    states = ("done", "running", "interrupted", "failed", "new")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("sweep")
    for column in ("runs", *states):
        table.add_column(column, justify="right")
    for sweep in sweeps:
        runs = sweep_status(sweep)
        found = counts(runs)
        table.add_row(sweep.name, str(len(runs)), *(str(found.get(s, 0)) for s in states))
    out.print(table)


def _show_runs(runs: Sequence[Any]) -> None:
    colours = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow"}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("key", "run", "seed", "state", "step", "steps/s", "FD at steps"):
        table.add_column(column, justify="right" if column in ("seed", "step") else "left")
    for run in runs:
        choices = " ".join(run.choices.values()) or run.title
        table.add_row(
            run.key,
            Text(choices),
            str(run.seed),
            Text(run.state, style=colours.get(run.state, "")),
            f"{run.step}/{run.steps}",
            "" if run.rate is None else f"{run.rate:.1f}",
            "  ".join(f"{steps}: {value:.1f}" for steps, value in run.values.items()),
        )
    out.print(table)
    for run in runs:
        if run.note:
            out.print(f"{run.key} {run.note}", markup=False)


def report(
    directory: SweepDirectory, output: Path | None, filters: dict[str, Any] | None = None
) -> None:
    """``fewstep report``: print the table, write the files, name them.

    ``filters`` choose among cells, as in ``analysis.summarise``; None is no choice.
    """
    from fewstep.analysis import load, load_samples, summarise
    from fewstep.reports import terminal
    from fewstep.reports.report import write_report

    chosen: Any = {name: value for name, value in (filters or {}).items() if value is not None}
    frame = load(directory)
    out.print(terminal.table(summarise(frame, **chosen)))
    samples = load_samples(directory, frame, **chosen)
    target = output or directory.report
    try:
        files = write_report(frame, samples, target, **chosen)
    except OSError as error:
        raise UserError(f"cannot write the report to {target} ({error.strerror})") from None
    out.print("report:", style="bold")
    for path in files.values():
        out.print(f"  {path}", markup=False)


def find_sweep(name: str, root: Path) -> SweepDirectory:
    """The directory of a sweep under ``root``.

    Raises:
        UserError: there is none of this name.
    """
    known = {sweep.name: sweep for sweep in find_sweeps(root)}
    if name not in known:
        raise unknown(f"sweep under {root}/", name, known)
    return known[name]
