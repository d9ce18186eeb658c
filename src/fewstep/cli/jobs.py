"""Commands on runs that are somewhere at work: logs and cancel."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fewstep.cli.console import out
from fewstep.cli.report import find_sweep
from fewstep.cli.status import waiting
from fewstep.errors import UserError
from fewstep.experiments import failures
from fewstep.experiments.claim import at_work
from fewstep.experiments.rundir import RunDirectory, SweepDirectory, find_run
from fewstep.sweeps.status import left_over, run_status

LINES = 200
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 15.0  # a process takes its time before it says that it is at work


def logs(name: str, root: Path, follow: bool, lines: int = LINES) -> None:
    """``fewstep logs``: what a run printed; ``follow`` until it is neither at work nor queued."""
    run = find_run(name, root)
    if not run.log.exists() and not follow:
        raise UserError(f"run {run.key} has printed nothing yet ({run.status()})")
    for line in failures.log_tail(run.log, lines):
        out.print(line, markup=False, highlight=False)
    if not follow:
        return
    position = run.log.stat().st_size if run.log.exists() else 0
    seen = time.monotonic()
    try:
        while True:
            busy = at_work(run) is not None
            seen = time.monotonic() if busy else seen
            over = not busy and _over(run, time.monotonic() - seen)
            if run.log.exists():
                with run.log.open("rb") as file:
                    file.seek(position)
                    sys.stdout.write(file.read().decode(errors="replace"))
                    sys.stdout.flush()
                    position = file.tell()
            if over:
                break
            time.sleep(POLL_SECONDS if busy else 4 * POLL_SECONDS)  # SLURM may be asked
    except KeyboardInterrupt:
        return
    state = run_status(run)
    if state.state not in ("done", "failed"):  # these have said so
        told = f"run {run.key}: {state.state} at step {state.step} of {state.steps}"
        out.print(f"{told}; nobody is at work on it", markup=False)


def _over(run: RunDirectory, seconds: float) -> bool:
    """Whether a run that nobody has had for ``seconds`` is not to be waited for."""
    status = run.status()
    ended = status in ("failed", "stopped") or seconds > PATIENCE_SECONDS
    return status == "done" or (ended and run.key not in waiting(SweepDirectory(run.path.parent)))


def cancel(name: str, root: Path, keys: Sequence[str], former: bool = False) -> int:
    """``fewstep cancel``: ask runs to save and stop, wherever they are; returns the exit code.

    Also those that have left the sweep, or with ``former`` only those.
    """
    sweep = find_sweep(name, root)
    left = left_over(sweep, waiting(sweep))
    among = left if former else [*sweep.runs(), *left]
    chosen = [run for run in sweep.chosen(keys, among) if run.status() != "done"]
    waits = _in_jobs(sweep, chosen)
    chosen = [run for run in chosen if run.path.is_dir()]
    for run in chosen:
        run.cancel.touch()  # who is at work on it, or would begin, looks for this
        if at_work(run) is None and (run.key in waits or run.status() == "running"):
            run.write("failure", failures.record(run, "cancelled", "cancelled before it ended"))
    out.print(f"cancelling {len(chosen)} runs of {name}; fewstep sweep {name} goes on with them")
    return 0


def _in_jobs(sweep: SweepDirectory, chosen: Sequence[RunDirectory]) -> set[str]:
    """The runs among ``chosen`` that were in SLURM's queue; jobs with no other runs are cancelled.

    A job that is shared with other runs goes on: it passes over those that are cancelled.
    """
    from fewstep.sweeps.slurm import queue

    if not (sweep.path / "_slurm").is_dir() or not queue.available():
        return set()
    from fewstep.sweeps.slurm.settings import SlurmSettings
    from fewstep.sweeps.slurm.submission import Slurm

    slurm = Slurm(sweep, SlurmSettings())
    keys = {run.key for run in chosen}
    found, over = set(), set()

    def spared(key: str) -> bool:
        return key not in keys and RunDirectory(sweep.path / key).status() != "done"

    for key, task in slurm.tasks().items():
        if key in keys and task.job is not None and task.pending:
            found.add(key)
            if not any(map(spared, task.submission.tasks[task.index])):
                over.add(task.job.id)
    if over:
        queue.cancel(over)
    return found
