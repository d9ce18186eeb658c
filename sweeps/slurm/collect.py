"""Old name of ``finalize``: sbatch scripts queued by version 0.1 start it. Removed in 0.3."""

import sys

from fewstep.sweeps.slurm.finalize import main

if __name__ == "__main__":
    sys.exit(main())
