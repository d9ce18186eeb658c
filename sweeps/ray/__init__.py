"""Runs as trials of Ray Tune: settings, launcher, trials, search, early stopping.

Importing ray takes seconds: ``RaySettings`` does without. What Ray reads from the environment must
be there before it is imported, so it is set here.
"""

import os
from typing import TYPE_CHECKING, Any

from fewstep.sweeps.ray.settings import RaySettings

if TYPE_CHECKING:
    from fewstep.sweeps.ray.launcher import RayLauncher

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # we hide the GPUs from a run that has none
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours has the runs saved first
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a tick has no score
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # what is to be kept is in the run directories
    "TUNE_MAX_PENDING_TRIALS_PG": "16",  # actors that may be starting at once
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "10",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> Any:
    if name != "RayLauncher":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fewstep.sweeps.ray.launcher import RayLauncher

    return RayLauncher


__all__ = ["RayLauncher", "RaySettings"]
