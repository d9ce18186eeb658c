"""Sweeps: many runs, planned, launched and followed."""

# importing the built-in launchers registers them; they import ray and submitit only when used
from fewstep.sweeps.local import launcher as _local  # noqa: F401
from fewstep.sweeps.ray import launcher as _ray  # noqa: F401
from fewstep.sweeps.slurm import launcher as _slurm  # noqa: F401
