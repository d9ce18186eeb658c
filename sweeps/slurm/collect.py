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
from pathlib import Path

from fewstep.experiments.claim import at_work
from fewstep.experiments.failures import STUCK, comes_again
from fewstep.experiments.rundir import SweepDirectory
from fewstep.sweeps.launching import recall
from fewstep.sweeps.resources import Resources
from fewstep.sweeps.slurm.settings import SlurmSettings
from fewstep.sweeps.slurm.settle import settle
from fewstep.sweeps.slurm.submission import Slurm

log = logging.getLogger(__name__)


def main() -> int:
    """The collector; its exit code is that of the first command that fails."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sweep = SweepDirectory(Path(sys.argv[1]).parent.parent)
    settle(sweep)
    _, settings, resources = recall(sweep)
    slurm = Slurm(sweep, SlurmSettings.parse(settings))
    again = [
        run
        for run in sweep.runs()
        if at_work(run) is None and comes_again(run) and slurm.never_began(run) < STUCK
    ]
    if again:
        wanted = {run.key: resources.get(run.key, Resources()) for run in again}
        for made in slurm.submit(again, wanted):
            log.info("lost runs are submitted again: job %s", made.job)
    code = 0
    for command in ("sync", "report"):
        words = [sys.executable, "-P", "-m", "fewstep.cli.main", command, sweep.name]
        done = subprocess.run([*words, "--runs", str(sweep.path.parent)])
        log.info("%s: exit code %d", command, done.returncode)
        code = code or done.returncode
    return code


if __name__ == "__main__":
    sys.exit(main())
