"""``fewstep cancel``: have runs save and stop, wherever they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli.options import OnlyRuns, Overrides, Runs, SweepName, find_sweep, only_root
from fewstep.cli.views.console import err, out
from fewstep.errors import UserError, counted

if TYPE_CHECKING:
    from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory


def cancel(
    sweep: SweepName,
    run: OnlyRuns = None,
    orphaned: Annotated[
        bool, typer.Option("--orphaned", help="Only runs that are no longer in the sweep.")
    ] = False,
    former: Annotated[bool, typer.Option("--former", hidden=True)] = False,
    overrides: Overrides = None,
    runs: Runs = None,
) -> None:
    """Stop a sweep's runs, on any machine; they save a checkpoint and can be resumed.

    Example: [bold]fewstep cancel digits --run 3f2a[/]
    """
    from fewstep.cli.commands.status import queued_runs
    from fewstep.deprecation import warn
    from fewstep.experiments.store import failures
    from fewstep.experiments.store.lease import live_lease
    from fewstep.sweeps.status import orphaned_runs

    if former:
        warn("--former", "--orphaned")
    directory = find_sweep(sweep, only_root(overrides, runs))
    members = [] if orphaned or former else directory.runs()
    keys = run or [""]
    if all(any(r.key.startswith(key) for r in members) for key in keys):  # else orphans', or none
        for r in members:  # before SLURM is asked, which may be away
            if r.key.startswith(tuple(keys)):
                _ask_to_stop(r)
    orphans = orphaned_runs(directory, queued_runs(directory))
    selected = directory.select(run or [], [*members, *orphans])
    chosen = [r for r in selected if r.status() != "done"]
    there = [r for r in chosen if r.path.is_dir()]
    for r in there:
        _ask_to_stop(r)
    try:
        queued = _cancel_jobs(directory, chosen)
    except UserError as error:
        err.print(f"{error}; a job that begins later finds its runs cancelled, and ends")
        queued = set()
    for r in there:
        if live_lease(r) is None and (r.key in queued or r.status() == "running"):
            r.write("failure", failures.record(r, "cancelled", "cancelled before it ended"))
    then = "the command that started them resumes them" if there else "none is unfinished"
    out.print(f"cancelling {counted(len(there), 'run')} of {sweep}; {then}")


def _ask_to_stop(run: RunDirectory) -> None:
    """The process that has the run, or takes it, looks for this file."""
    if run.status() != "done" and run.path.is_dir():
        run.cancel.touch()


def _cancel_jobs(sweep: SweepDirectory, chosen: Sequence[RunDirectory]) -> set[str]:
    """Cancel the SLURM jobs that have no other runs; returns the queued runs among ``chosen``."""
    from fewstep.cli.commands.status import slurm_of
    from fewstep.experiments.store.run_directory import RunDirectory
    from fewstep.sweeps.slurm import squeue

    slurm = slurm_of(sweep)
    if slurm is None:
        return set()
    keys = {run.key for run in chosen}
    queued, jobs = set(), set()

    def is_needed(key: str) -> bool:
        return key not in keys and RunDirectory(sweep.path / key).status() != "done"

    for key, task in slurm.tasks().items():
        if key in keys and task.job is not None and task.pending:
            queued.add(key)
            if not any(map(is_needed, task.submission.tasks[task.index])):
                jobs.add(task.job.id)
    if jobs:
        squeue.cancel(jobs)
    return queued
