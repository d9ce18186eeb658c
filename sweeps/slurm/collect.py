"""On a node, after a sweep's other jobs: ``python -m fewstep.sweeps.slurm.collect FOLDER``.

What those jobs could not say themselves becomes a failure in their runs' directories; then MLflow
is brought up to date and the report is written, by the same commands that a person would use.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from fewstep.experiments.rundir import SweepDirectory
from fewstep.sweeps.slurm.settle import settle

log = logging.getLogger(__name__)


def main() -> int:
    """The collector; its exit code is that of the first command that fails."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sweep = SweepDirectory(Path(sys.argv[1]).parent.parent)
    settle(sweep)
    code = 0
    for command in ("sync", "report"):
        words = [sys.executable, "-P", "-m", "fewstep.cli.main", command, sweep.name]
        done = subprocess.run([*words, "--runs", str(sweep.path.parent)])
        log.info("%s: exit code %d", command, done.returncode)
        code = code or done.returncode
    return code


if __name__ == "__main__":
    sys.exit(main())
