"""Ray is configured by its environment, and the host program's environment stays unchanged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HOST = """
import os, sys
from pathlib import Path

before, seen = dict(os.environ), {}

class Spy:
    def find_spec(self, name, path=None, target=None):
        if name == "ray":
            seen.update(os.environ)

import fewstep.sweeps.ray.settings
from fewstep.errors import UserError
from fewstep.experiments.store.run_directory import SweepDirectory
from fewstep.sweeps.launcher import LaunchRequest, launcher
from fewstep.sweeps.ray.environment import ENVIRONMENT
assert "ray" not in sys.modules and dict(os.environ) == before
sys.meta_path.insert(0, Spy())
request = LaunchRequest(SweepDirectory(Path("runs/mine")), {"0123456789ab": {}})
try:
    launcher("ray", {"address": "127.0.0.1:1"}).check(request)
except UserError as error:
    assert "nothing answers" in str(error), error
else:
    raise AssertionError("there is no cluster")
expected = {**ENVIRONMENT, "TUNE_MAX_PENDING_TRIALS_PG": "3"}
assert {name: seen.get(name) for name in expected} == expected
del os.environ["RAY_CLIENT_MODE"]  # which importing ray sets
assert dict(os.environ) == before
"""


def test_importing_and_using_ray_leaves_the_environment_unchanged(tmp_path: Path) -> None:
    own = {"TUNE_MAX_PENDING_TRIALS_PG": "3"}  # what the user has set stays
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", HOST],
        cwd=tmp_path,
        env={**inherited, **own},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
