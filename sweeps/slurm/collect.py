"""On a node, after a sweep's other jobs: ``python -m fewstep.sweeps.slurm.collect FOLDER``.

What those jobs could not say themselves becomes a failure of their runs. Runs that were
lost, and whose job SLURM did not queue again, are submitted again; another collector comes after
them. Then MLflow is brought up to date and the report is written, by the same commands that a
person would use.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from fewstep.errors import UserError
from fewstep.experiments.claim import at_work
from fewstep.experiments.failures import STUCK, comes_again
from fewstep.experiments.rundir import Json, RunDirectory, SweepDirectory
from fewstep.sweeps.launcher import teacher_of
from fewstep.sweeps.resources import Resources
from fewstep.sweeps.slurm.job import read_manifest
from fewstep.sweeps.slurm.settings import SlurmSettings
from fewstep.sweeps.slurm.settle import settle
from fewstep.sweeps.slurm.submission import Slurm

log = logging.getLogger(__name__)


def main() -> int:
    """The collector; its exit code is that of the first command that fails."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sweep = SweepDirectory(Path(sys.argv[1]).parent.parent)
    try:
        for job in resubmit(sweep, read_manifest(Path(sys.argv[1]))):
            log.info("lost runs are submitted again: job %s", job)
    except UserError as error:  # what there is is synced and reported all the same
        log.error("%s", error)
    code = 0
    for command in (["sync"], ["report", "--each"]):
        words = [sys.executable, "-P", "-m", "fewstep.cli.main", *command, sweep.name]
        done = subprocess.run([*words, "--runs", str(sweep.path.parent)])
        log.info("%s: exit code %d", command[0], done.returncode)
        code = code or done.returncode
    return code


def resubmit(sweep: SweepDirectory, manifest: Json) -> list[str]:
    """Submit runs that were lost, and the students that waited for them in vain; the new jobs."""
    settle(sweep)
    slurm = Slurm(sweep, SlurmSettings.parse(manifest["settings"]))
    resources = {key: Resources(**told) for key, told in manifest["resources"].items()}
    runs = [run for run in sweep.runs() if run.result() is None and at_work(run) is None]
    again = {r.key: r for r in runs if comes_again(r) and slurm.never_began(r) < STUCK}
    for _ in runs:  # a student of a student comes in the second round
        students = [r for r in runs if r.key not in again and waits_for(r, again)]
        if not students:
            break
        again |= {run.key: run for run in students}
    wanted = {key: resources.get(key, Resources()) for key in again}
    return [s.job for s in slurm.submit(list(again.values()), wanted) if s.job] if again else []


def waits_for(run: RunDirectory, again: Collection[str]) -> bool:
    """Whether the run's job was removed because its teacher, one of ``again``, was lost."""
    failure = run.failure() or {"class": "no_teacher"}  # nobody has settled it yet
    left = failure["class"] == "no_teacher" and not run.attempts() and not run.cancel.exists()
    return left and teacher_of(run) in again


if __name__ == "__main__":
    sys.exit(main())
