"""A launch by Ray in a process of its own: ``python ray_driver.py SETTINGS RESOURCES RUN...``.

``SETTINGS`` is the ``ray:`` field of a sweep, as JSON, and ``RESOURCES`` what each run asks for. It
prints a line for each event.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.experiments.store.run_directory import RunDirectory

# a token that an earlier Ray has left is asked for by some ways of starting it, and not by others
OPEN = {"RAY_AUTH_MODE": "disabled"}


def start_driver(
    runs: Sequence[RunDirectory], resources: Mapping[str, Any] | None = None, **settings: Any
) -> subprocess.Popen[str]:
    """The driver, started; its output comes with ``communicate``."""
    told = [json.dumps(settings), json.dumps(resources or {})]
    return subprocess.Popen(
        [sys.executable, "-P", __file__, *told, *(str(run.path) for run in runs)],
        env={**os.environ, **OPEN},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_node(*options: str) -> subprocess.Popen[str]:
    """``ray start``, which stays as long as its node does; the node is there.

    On a busy machine Ray may lose patience with its own processes: then it is started again.
    """
    common = ("--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1")
    store = "--object-store-memory=80000000"
    for _ in range(4):
        node = subprocess.Popen(
            [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", *options, *common, store],
            env={**os.environ, **OPEN, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert node.stdout is not None
        if any("Ray runtime started" in line for line in node.stdout):
            return node
        node.wait()
    raise AssertionError("Ray did not start")


def is_there(address: str) -> bool:
    """Whether a cluster answers."""
    host, port = address.split(":")
    with socket.socket() as caller:
        return caller.connect_ex((host, int(port))) == 0


def main() -> None:
    from fewstep.sweeps.definition.resources import Resources
    from fewstep.sweeps.launcher import Event, LaunchRequest, launcher

    def on_event(event: Event, working: Sequence[RunDirectory]) -> None:
        if event.run is not None:
            failure = event.run.failure() if event.kind in ("again", "failed") else None
            why = [failure["class"]] if failure else []
            print(event.kind, event.run.key, *why, flush=True)
            if failure is not None:
                print(failure["message"], failure["traceback"], sep="\n", flush=True)

    settings, asked = (json.loads(told) for told in sys.argv[1:3])
    runs = [RunDirectory(Path(path)) for path in sys.argv[3:]]
    resources = {run.key: Resources(**asked) for run in runs} if asked else None
    request = LaunchRequest.of(runs, resources)
    outcome = launcher("ray", settings).launch(request, on_event)
    print(outcome)


if __name__ == "__main__":
    main()
