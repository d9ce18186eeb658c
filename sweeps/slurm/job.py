"""Old name of ``array_task``: sbatch scripts queued by version 0.1 start it. Removed in 0.3."""

import sys

from fewstep.sweeps.slurm.array_task import ArrayTask as Pack
from fewstep.sweeps.slurm.array_task import StaleAttempts as Ghosts
from fewstep.sweeps.slurm.array_task import main

__all__ = ["Ghosts", "Pack", "main"]

if __name__ == "__main__":
    sys.exit(main())
