"""``fewstep status``: the state of sweeps and their runs, once or live."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.options import OneSweep, Overrides, Runs, find_sweep, only_root
from fewstep.cli.views.console import err, out
from fewstep.errors import UserError, counted

if TYPE_CHECKING:
    from fewstep.experiments.store.run_directory import SweepDirectory
    from fewstep.sweeps.slurm.submission import Slurm
    from fewstep.sweeps.status import RunStatus

ENDED = ("done", "failed", "cancelled", "stopped", "unreadable")
REFRESH_SECONDS = 2.0
SHOWN = 3  # keys in a line


def status(
    sweep: OneSweep = None,
    overrides: Overrides = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until all runs have ended.")
    ] = False,
    runs: Runs = None,
) -> None:
    """Show the state of sweeps, or of the runs of one sweep.

    Example: [bold]fewstep status digits --watch[/]
    """
    from fewstep.cli.views import status_table

    if sweep is not None and sweep.startswith("runs="):
        overrides, sweep = [sweep, *(overrides or [])], None
    root = only_root(overrides, runs)
    if sweep is not None:
        directory = find_sweep(sweep, root)
        if watch:
            _watch(directory)
        else:
            out.print(status_table.runs_table(*read(directory)))
        return
    if watch:
        raise UserError("--watch needs a sweep's name")
    from fewstep.experiments.store.run_directory import find_sweeps
    from fewstep.sweeps.status import counts, sweep_status

    sweeps, by_sweep = find_sweeps(root), {}
    if not sweeps:
        out.print(f"no runs under {root.absolute()}/")
        return
    for directory in sweeps:
        try:
            by_sweep[directory.name] = counts(sweep_status(directory, *look(directory)))
        except (UserError, OSError) as error:  # of its sweep.json: the others are shown
            err.print(str(error))
    out.print(status_table.sweeps_table(by_sweep))


def read(sweep: SweepDirectory) -> tuple[list[RunStatus], str]:
    """The states of a sweep's runs, and a line about orphaned runs."""
    from fewstep.sweeps.status import sweep_status

    queued, ended = look(sweep)
    return sweep_status(sweep, queued, ended), orphans_line(sweep, queued)


def orphans_line(sweep: SweepDirectory, queued: Collection[str]) -> str:
    """A line about runs that are no longer in the sweep; empty if there are none."""
    from fewstep.sweeps.status import orphaned_runs

    keys = [run.key for run in orphaned_runs(sweep, queued)]
    if not keys:
        return ""
    some = ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
    count = counted(len(keys), "run")
    return (
        f"no longer in the sweep, but still queued or running: {count} ({some}); "
        f"fewstep cancel {sweep.name} --orphaned stops them"
    )


def slurm_of(sweep: SweepDirectory) -> Slurm | None:
    """The sweep's SLURM jobs; None if it has none, or where there is no SLURM."""
    from fewstep.sweeps.slurm import squeue

    if not (sweep.path / "_slurm").is_dir() or not squeue.available():
        return None
    from fewstep.sweeps.slurm.submission import Slurm  # imports submitit

    return Slurm(sweep)


def queued_runs(sweep: SweepDirectory) -> Mapping[str, str]:
    """Why runs wait in SLURM's queue, by key; records how jobs ended that could not do so."""
    return look(sweep)[0]


def look(sweep: SweepDirectory) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """``queued_runs``, and of the runs whose job has just been found to have failed, the class."""
    slurm = slurm_of(sweep)
    if slurm is None:
        return {}, {}
    from fewstep.sweeps.slurm.reconcile import reconcile

    try:
        ended = reconcile(sweep)
        jobs = slurm.queued()
    except UserError as error:
        err.print(str(error))
        return {}, {}
    queued = {
        key: f"job {job.id}: {job.state.lower()}" + (f", {job.reason}" if job.waiting else "")
        for key, job in jobs.items()
    }
    return queued, ended


def _watch(sweep: SweepDirectory) -> None:
    from rich.live import Live

    from fewstep.cli.views.status_table import counts_line, runs_table

    live = Live(console=out, auto_refresh=False, screen=False)
    with live if out.is_terminal else nullcontext(), suppress(KeyboardInterrupt):
        while True:
            runs, note = read(sweep)
            if out.is_terminal:
                live.update(runs_table(runs, note), refresh=True)
            else:
                out.print(counts_line(runs))
            if all(run.state in ENDED for run in runs):
                return
            time.sleep(REFRESH_SECONDS if out.is_terminal else 10 * REFRESH_SECONDS)
