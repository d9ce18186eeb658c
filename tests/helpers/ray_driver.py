"""A launch by Ray in a process of its own: ``python ray_driver.py SETTINGS RUN...``.

``SETTINGS`` is the ``ray:`` field of a sweep, as JSON. It prints a line for each event.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.experiments.rundir import RunDirectory


def start_driver(runs: Sequence[RunDirectory], **settings: Any) -> subprocess.Popen[str]:
    """The driver, started; its output comes with ``communicate``."""
    return subprocess.Popen(
        [sys.executable, "-P", __file__, json.dumps(settings), *(str(run.path) for run in runs)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def main() -> None:
    from fewstep.sweeps.launcher import Event
    from fewstep.sweeps.ray.launcher import RayLauncher
    from fewstep.sweeps.ray.settings import RaySettings

    def on_event(event: Event, working: Sequence[RunDirectory]) -> None:
        if event.run is not None:
            print(event.kind, event.run.key, flush=True)

    runs = [RunDirectory(Path(path)) for path in sys.argv[2:]]
    outcome = RayLauncher(RaySettings.parse(json.loads(sys.argv[1]))).launch(runs, on_event)
    print(outcome)


if __name__ == "__main__":
    main()
