"""``fewstep sync``: MLflow brought up to date, once or repeatedly."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli import options as opt
from fewstep.cli.views.console import err, meter, out, print_lines
from fewstep.errors import UserError, check_range

if TYPE_CHECKING:
    from fewstep.experiments.store.run_directory import SweepDirectory
    from fewstep.experiments.tracking.sync import SyncReport


def sync(
    sweep: opt.OneSweep = None,
    overrides: opt.Overrides = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Repeat until all runs are done or failed.")
    ] = False,
    every: Annotated[float, typer.Option(help="Seconds between two syncs of --watch.")] = 30.0,
    runs: opt.Runs = None,
) -> int:
    """Bring MLflow up to date with the run directories; safe to repeat.

    Example: [bold]fewstep sync digits --watch tracking.uri=http://localhost:5000[/]
    """
    from fewstep.experiments.store.run_directory import find_sweeps

    if sweep is not None and "=" in sweep:
        overrides, sweep = [sweep, *(overrides or [])], None
    root, rest = opt.root_and_rest(overrides, runs)
    check_range("--every", every, 0, open_low=True)
    given = dict(opt.pairs("sync", rest, ("runs", "tracking.uri"))) if rest else {}
    uri = None if given.get("tracking.uri") is None else str(given["tracking.uri"])

    def find() -> Sequence[SweepDirectory]:
        return find_sweeps(root) if sweep is None else [opt.find_sweep(sweep, root)]

    if not (sweeps := find()):
        raise UserError(f"no runs under {root.absolute()}/")
    if not watch:
        sync_sweeps(sweeps, root, uri)
        return 0
    interrupted = threading.Event()

    def on_interrupt(number: int, frame: object) -> None:
        interrupted.set()  # the exception is lost if it is raised in a library's destructor
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        _watch(find, root, uri, every, interrupted)
    except KeyboardInterrupt:
        err.print("stopped watching; the same command continues")
        return opt.INTERRUPTED
    return 0


def sync_sweeps(sweeps: Sequence[SweepDirectory], root: Path, uri: str | None) -> None:
    """Bring MLflow up to date, and print how to look at it."""
    from fewstep.experiments.tracking.sync import charts, sync, ui_command

    with meter("sync", "runs") as on_progress:
        report = sync(sweeps, root, uri, on_progress)
    out.print(f"MLflow at {report.uri}: {_counts(report)}")
    _print_problems(report.problems)
    print_lines("to look at it:", [ui_command(report.uri), *charts(report).values()])


def _watch(
    find: Callable[[], Sequence[SweepDirectory]],
    root: Path,
    uri: str | None,
    every: float,
    interrupted: threading.Event,
) -> None:
    """Print a line when runs change their state, or the store becomes available or not."""
    from fewstep.experiments.tracking.sync import charts, tracking_uri, ui_command
    from fewstep.experiments.tracking.watch import watch

    address = tracking_uri(root, uri)
    out.print(f"MLflow at {address}, every {every:g} s; Ctrl-C ends it")
    print_lines("to look at it:", [ui_command(address)])
    trouble, last = False, ""
    shown: set[str] = set()  # charts and problems
    for this in watch(find, root, uri, every):
        if interrupted.is_set():
            raise KeyboardInterrupt
        now = time.strftime("%H:%M:%S")
        if this.report is None:
            if not trouble:
                err.print(f"{now} {this.trouble}; retrying")
            trouble = True
            continue
        if trouble:
            out.print(f"{now} MLflow is back: {_counts(this.report)}")
        trouble = False
        links = charts(this.report).values()
        for chart in (link for link in links if link not in shown):
            out.print(f"  {chart}")
        states = ", ".join(f"{n} {state}" for state, n in sorted(this.states.items()))
        if states != last:
            out.print(f"{now} {states}: {_counts(this.report)}")
        last = states
        _print_problems([p for p in this.report.problems if p not in shown])
        shown.update(links, this.report.problems)
    out.print("all runs are done or failed, and in MLflow")


def _counts(report: SyncReport) -> str:
    return f"{report.created} created, {report.updated} updated, {report.unchanged} unchanged"


def _print_problems(problems: Iterable[str]) -> None:
    for problem in problems:
        err.print(f"not synced: {problem}")
