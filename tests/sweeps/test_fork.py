"""A fork server: no signal is lost between the fork and the handlers of a run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from helpers.tiny import tiny

from fewstep.experiments.run import prepare
from fewstep.experiments.worker import INTERRUPTED
from fewstep.sweeps.fork import Fork


def test_asked_to_stop_before_it_began_a_run_leaves_in_order(tmp_path: Path) -> None:
    run = prepare(tiny(tmp_path, "training.steps=100000"))
    server = Fork(1, imports=(), log=run.log)
    server.start(
        {
            "run": str(run.path), "cwd": str(tmp_path), "threads": 1,
            "environment": {}, "rungs": [], "metric_steps": 0,
        }
    )  # fmt: skip
    server.stop()  # it is sent as soon as there is a child to send it to
    end = time.monotonic() + 120
    code = None
    while code is None and time.monotonic() < end:
        said = server.next(1) or {}
        if "pid" in said:  # a scheduler's signal reaches the server, too, and does not end it
            os.kill(server.process.pid, signal.SIGTERM)
        code = said.get("code")
    assert code == INTERRUPTED
    assert server.alive
    server.close()
    assert server.process.wait(60) == 0
