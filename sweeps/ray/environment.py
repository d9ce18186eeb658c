"""What Ray reads from the environment; it must be there before ``ray`` is imported."""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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

TOKEN = secrets.token_hex(32)  # of all clusters of this process: Ray reads it once


@contextmanager
def ray_environment(own_cluster: bool = False) -> Iterator[None]:
    """Meanwhile Ray finds our settings, but for those that the user has set.

    The processes that Ray starts inherit them. The host program's environment stays unchanged.
    ``own_cluster``: it starts one, with a token that ends with it. Ray would leave one in the home
    folder, and every ``ray start`` of the user's would ask for it from then on.
    """
    settings = ENVIRONMENT | _authentication(own_cluster)
    added = [name for name in settings if name not in os.environ]
    if "RAY_AUTH_MODE" not in os.environ:
        added.append("RAY_AUTH_MODE")  # Ray sets it
    os.environ.update({name: settings[name] for name in added if name in settings})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _authentication(own_cluster: bool) -> dict[str, str]:
    """``ray start`` asks for a token where there is one, ``ray.init(ADDRESS)`` does not show it."""
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    known = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if known or (Path.home() / ".ray/auth_token").exists():
        # Ray does so itself for a cluster of its own; once it is imported it does not look again
        return {} if own_cluster or "ray" in sys.modules else {"RAY_AUTH_MODE": "token"}
    return {"RAY_AUTH_TOKEN": TOKEN} if own_cluster else {}
