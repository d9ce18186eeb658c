"""A fork server: its children, signals between the fork and a run's handlers, its own end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from helpers.tiny import tiny

from fewstep.experiments.run import prepare
from fewstep.experiments.worker import INTERRUPTED
from fewstep.sweeps.local.fork_client import GONE, ForkServerClient


def test_asked_to_stop_before_it_began_a_run_leaves_in_order(tmp_path: Path) -> None:
    run = prepare(tiny(tmp_path, "training.steps=100000"))
    server = ForkServerClient(1, imports=())
    child = server.start({"run": str(run.path), "environment": {}})
    child.stop()  # it is sent as soon as there is a child to send it to
    end = time.monotonic() + 120
    code = None
    while code is None and time.monotonic() < end:
        said = child.next(1) or {}
        if "pid" in said:  # a scheduler's signal reaches the server, too, and does not end it
            os.kill(server.process.pid, signal.SIGTERM)
        code = said.get("code")
    assert code == INTERRUPTED
    assert server.alive
    server.close()
    assert server.process.wait(60) == 0


def test_its_children_are_told_apart_and_leave_in_order_when_it_is_killed(tmp_path: Path) -> None:
    first, second = (
        prepare(tiny(tmp_path, f"training.steps={10**6 + i}", "evaluation.steps=[]"))
        for i in range(2)
    )
    server = ForkServerClient(1, imports=())
    one, other = (server.start({"run": str(r.path), "environment": {}}) for r in (first, second))
    for child in (one, other):
        assert "pid" in (child.next(120) or {})
    one.stop()
    assert (one.next(120) or {}).get("code") == INTERRUPTED
    assert other.next(0) is None
    server.process.kill()
    assert (other.next(120) or {}).get("code") == GONE
    # it is told only once the child has saved and left
    assert [run.attempts()[-1]["ended"] for run in (first, second)] == ["interrupted"] * 2
    late = server.start({"run": str(first.path), "environment": {}})
    assert late.next(120) == {"code": GONE}


def test_what_a_server_says_as_it_fails_is_in_the_log_of_its_runs(tmp_path: Path) -> None:
    run = prepare(tiny(tmp_path))
    child = ForkServerClient(1, imports=("no_such_module",)).start(
        {"run": str(run.path), "environment": {}}
    )
    assert (child.next(120) or {})["code"] == 1
    assert "No module named 'no_such_module'" in run.log.read_text()


def test_a_run_whose_log_cannot_be_opened_says_so(tmp_path: Path) -> None:
    run = prepare(tiny(tmp_path))
    run.log.mkdir()
    server = ForkServerClient(1, imports=())
    child = server.start({"run": str(run.path), "environment": {}})
    assert "pid" in (child.next(120) or {})
    assert child.next(120) == {"child": 0, "code": 1}
    server.close()
    failure = run.failure() or {}
    assert (failure["class"], failure["log_tail"]) == ("bad_data", [])
    assert f"Is a directory: '{run.log}'" in failure["message"]
