"""``fewstep sync``: MLflow brought up to date, once or again and again."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.cli.console import err, meter, out
from fewstep.cli.report import find_sweep
from fewstep.errors import UserError, check_range, unknown
from fewstep.experiments.rundir import SweepDirectory, find_sweeps

if TYPE_CHECKING:
    from fewstep.experiments.tracking import SyncReport

INTERRUPTED = 130


def sync(
    name: str | None, root: Path, overrides: Sequence[str], *, watch: bool, every: float
) -> int:
    """``fewstep sync``: one sweep, or all under ``root``; returns the exit code."""
    check_range("--every", every, 0, open_low=True)
    uri = None
    for override in overrides:
        from fewstep.experiments.config import parse  # which knows all that can be trained: slow

        key, value = parse(override)
        if key != "tracking.uri":
            raise unknown("override of sync", key, ("runs", "tracking.uri"))
        uri = None if value is None else str(value)

    def find() -> Sequence[SweepDirectory]:
        return find_sweeps(root) if name is None else [find_sweep(name, root)]

    if not (sweeps := find()):
        raise UserError(f"no runs under {root}/")
    if not watch:
        sync_sweeps(sweeps, root, uri)
        return 0
    asked = threading.Event()

    def on_interrupt(number: int, frame: object) -> None:
        asked.set()  # in a library's destructor the exception is swallowed
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        _watch(find, root, uri, every, asked)
    except KeyboardInterrupt:
        err.print("stopped watching; the same command goes on")
        return INTERRUPTED
    return 0


def sync_sweeps(sweeps: Sequence[SweepDirectory], root: Path, uri: str | None) -> None:
    """Bring MLflow up to date, and say how to look at it."""
    from fewstep.experiments.tracking import charts, sync, ui_command

    began = time.monotonic()

    def told(name: str, done: int, total: int) -> None:
        bar(name, done, total, done / (time.monotonic() - began))

    with meter("sync", "runs") as bar:
        done = sync(sweeps, root, uri, told)
    out.print(f"MLflow at {done.uri}: {_counts(done)}", markup=False)
    _tell_problems(done.problems)
    _tell_how_to_look(ui_command(done.uri), charts(done))


def _watch(
    find: Callable[[], Sequence[SweepDirectory]],
    root: Path,
    uri: str | None,
    every: float,
    asked: threading.Event,
) -> None:
    """A line whenever runs change their state, or the store goes and comes back."""
    from fewstep.experiments.tracking import charts, tracking_uri, ui_command
    from fewstep.experiments.tracking_watch import watch

    place = tracking_uri(root, uri)
    out.print(f"MLflow at {place}, every {every:g} s; Ctrl-C ends it", markup=False)
    _tell_how_to_look(ui_command(place))
    trouble, last = False, ""
    problems: set[str] = set()
    told: set[str] = set()
    for this in watch(find, root, uri, every):
        if asked.is_set():
            raise KeyboardInterrupt
        now = time.strftime("%H:%M:%S")
        if this.report is None:
            if not trouble:
                err.print(f"{now} {this.trouble}; tried again quietly", markup=False)
            trouble = True
            continue
        if trouble:
            out.print(f"{now} MLflow is back: {_counts(this.report)}", markup=False)
        trouble = False
        for address in charts(this.report).values():
            if address not in told:
                out.print(f"  {address}", markup=False)
                told.add(address)
        states = ", ".join(f"{n} {state}" for state, n in sorted(this.states.items()))
        if states != last:
            out.print(f"{now} {states}: {_counts(this.report)}", markup=False)
        last = states
        _tell_problems([p for p in this.report.problems if p not in problems])
        problems |= set(this.report.problems)
    out.print("all runs are done or failed, and in MLflow")


def _counts(report: SyncReport) -> str:
    return f"{report.created} created, {report.updated} updated, {report.unchanged} unchanged"


def _tell_problems(problems: Iterable[str]) -> None:
    for problem in problems:
        err.print(f"not synced: {problem}", markup=False)


def _tell_how_to_look(command: str, charts: Mapping[str, str] | None = None) -> None:
    out.print("to look at it:", style="bold")
    out.print(f"  {command}", markup=False)
    for address in (charts or {}).values():
        out.print(f"  {address}", markup=False)
