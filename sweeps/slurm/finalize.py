"""On a node, after a sweep's other jobs: ``python -m fewstep.sweeps.slurm.finalize FOLDER``.

Records why runs ended that could not record it themselves. Submits lost runs again that SLURM did
not requeue; another finalizer follows them. Then syncs MLflow and writes the report, with the
commands that a user would run.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

from fewstep.errors import UserError, counted
from fewstep.experiments.store.failures import MAX_FRUITLESS_ATTEMPTS, retried_by_launcher
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.lease import live_lease
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory, is_readable
from fewstep.sweeps.definition.launchers import with_new_names, with_settings
from fewstep.sweeps.definition.resources import Resources
from fewstep.sweeps.launcher import teacher_of
from fewstep.sweeps.slurm.array_task import read_manifest
from fewstep.sweeps.slurm.reconcile import reconcile
from fewstep.sweeps.slurm.sbatch import FINALIZER
from fewstep.sweeps.slurm.settings import SlurmSettings
from fewstep.sweeps.slurm.submission import LIMIT, NoRoom, Slurm

WAIT_SECONDS = 3600 * (FINALIZER.resources.hours or 1) / 2  # for room; the rest is for the report
LOOK_SECONDS = 15.0
log = logging.getLogger(__name__)


def main() -> int:
    """The finalizer; its exit code is that of the first command that fails."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sweep = SweepDirectory(Path(sys.argv[1]).parent.parent)
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            for job in resubmit(sweep, read_manifest(Path(sys.argv[1]))):
                log.info("lost runs are submitted again: job %s", job)
        except UserError as error:  # finished runs are still synced and reported
            limited = isinstance(error, NoRoom) or LIMIT.search(str(error))
            if limited and time.monotonic() < end:  # the finalizer before this one ends, or others
                time.sleep(LOOK_SECONDS)
                continue
            log.error("%s", error)
        break
    code = 0
    for command in (["sync"], ["report", "--each"]):
        words = [sys.executable, "-P", "-m", "fewstep.cli.app", *command, sweep.name]
        done = subprocess.run([*words, "--runs", str(sweep.path.parent)])
        log.info("%s: exit code %d", command[0], done.returncode)
        code = code or done.returncode
    return code


def resubmit(sweep: SweepDirectory, manifest: Json) -> list[str]:
    """Submit lost runs, and students whose teacher was lost, again; returns the new jobs."""
    reconcile(sweep)
    default = SlurmSettings()
    values = with_new_names(default, "slurm", manifest["settings"], silent=True)
    slurm = Slurm(sweep, with_settings(default, "slurm", values))
    resources = {key: Resources(**values) for key, values in manifest["resources"].items()}
    readable = [run for run in sweep.runs() if is_readable(run)]  # the report names the others
    runs = [run for run in readable if run.result() is None and live_lease(run) is None]
    again = {
        r.key: r
        for r in runs
        if retried_by_launcher(r) and slurm.never_began(r) < MAX_FRUITLESS_ATTEMPTS
    }
    waiting = manifest.get("waiting", ())  # there was no room for them
    again |= {r.key: r for r in runs if r.key in waiting and never_tried(r)}
    for _ in runs:  # students of students are found in the next round
        if not (students := [r for r in runs if r.key not in again and lost_teacher(r, again)]):
            break
        again |= {run.key: run for run in students}
    requests = {key: resources.get(key, Resources()) for key in again}
    if not again:
        return []
    done = slurm.submit(list(again.values()), requests, patient="SLURM_JOB_ID" in os.environ)
    if done.refused:
        count = counted(len(done.waiting), "run")
        then = "the next finalizer" if done.finalized else "fewstep sweep, started again,"
        log.warning("not submitted: %s (%s); %s submits them", count, done.refused, then)
    return [s.job for s in done if s.job]


def never_tried(run: RunDirectory) -> bool:
    """Whether no job had the run, and nobody has cancelled it."""
    return run.failure() is None and not run.attempts() and not run.cancel.exists()


def lost_teacher(run: RunDirectory, again: Collection[str]) -> bool:
    """Whether the run's job was removed because its teacher, one of ``again``, was lost."""
    failure = run.failure() or {"class": "no_teacher"}  # not recorded yet
    waits = failure["class"] == "no_teacher" and not run.attempts() and not run.cancel.exists()
    return waits and teacher_of(run) in again


if __name__ == "__main__":
    sys.exit(main())
