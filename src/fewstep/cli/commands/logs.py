"""``fewstep logs``: what a run printed."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.options import Overrides, RunName, Runs, only_root
from fewstep.cli.views.console import out
from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.experiments.store.run_directory import RunDirectory

LINES = 200
POLL_SECONDS = 0.5
START_SECONDS = 15.0  # a process needs some seconds until it takes the run's lease


def logs(
    run: RunName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines until the run ends.")
    ] = False,
    overrides: Overrides = None,
    runs: Runs = None,
) -> None:
    """Show what a run printed.

    Example: [bold]fewstep logs 3f2a --follow[/]
    """
    from fewstep.experiments.store.failures import log_tail
    from fewstep.experiments.store.run_directory import find_run
    from fewstep.sweeps.status import run_status

    directory = find_run(run, only_root(overrides, runs))
    if not directory.log.exists() and not follow:
        raise UserError(f"run {directory.key} has printed nothing ({directory.status()})")
    for line in log_tail(directory.log, LINES):
        out.print(line, highlight=False)
    if not follow:
        return
    try:
        _follow(directory)
    except KeyboardInterrupt:
        return
    state = run_status(directory)
    if state.state not in ("done", "failed"):  # these are in the log
        progress = f"{state.state} at step {state.step} of {state.steps}"
        out.print(f"run {directory.key}: {progress}; no process has it")


def _follow(run: RunDirectory) -> None:
    """Print what is added to the log, until the run is neither running nor queued."""
    from fewstep.experiments.store.lease import live_lease

    position = run.log.stat().st_size if run.log.exists() else 0
    seen = time.monotonic()
    while True:
        busy = live_lease(run) is not None
        seen = time.monotonic() if busy else seen
        over = not busy and _is_over(run, time.monotonic() - seen)
        if run.log.exists():
            with run.log.open("rb") as file:
                file.seek(position)
                sys.stdout.write(file.read().decode(errors="replace"))
                sys.stdout.flush()
                position = file.tell()
        if over:
            return
        time.sleep(POLL_SECONDS if busy else 4 * POLL_SECONDS)  # the latter may query SLURM


def _is_over(run: RunDirectory, seconds: float) -> bool:
    """Whether not to wait for a run that no process has had for ``seconds``."""
    from fewstep.cli.commands.status import queued_runs
    from fewstep.experiments.store.run_directory import SweepDirectory

    status = run.status()
    if status == "done":
        return True
    ended = status in ("failed", "stopped") or seconds > START_SECONDS
    return ended and run.key not in queued_runs(SweepDirectory(run.path.parent))
