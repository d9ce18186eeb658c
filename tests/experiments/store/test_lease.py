"""Who has a run: the living, the dead, the one on another machine, the ghost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.commands import wait_for
from helpers.tiny import tiny

from fewstep.experiments.run import Interrupted, RunFailed, prepare, run
from fewstep.experiments.store import failures, lease
from fewstep.experiments.store.json_files import write_json
from fewstep.experiments.store.lease import (
    Attempt,
    LeaseLost,
    RunLease,
    RunLocked,
    holder,
    live_lease,
)
from fewstep.experiments.store.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.path.mkdir()
    return made


def held_by(directory: RunDirectory, attempt: Attempt, silent_for: float = 0.0) -> None:
    """As that attempt leaves it, its last touch ``silent_for`` seconds ago."""
    write_json(directory.lease, asdict(attempt))
    then = time.time() - silent_for
    os.utime(directory.lease, (then, then))


def elsewhere() -> Attempt:
    return replace(Attempt.mine(), machine="another boot", host="far", pid=1)


def test_it_is_held_while_it_lasts(directory: RunDirectory) -> None:
    assert live_lease(directory) is None
    with RunLease(directory) as claim:
        assert live_lease(directory) == claim.attempt == holder(directory)
        with pytest.raises(RunLocked, match="another process"), RunLease(directory):
            pass
        assert holder(directory) == claim.attempt
    assert live_lease(directory) is None
    assert not directory.lease.exists()


def test_the_dead_hold_nothing(directory: RunDirectory) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    born = psutil.Process(process.pid).create_time()
    held_by(directory, replace(Attempt.mine(), pid=process.pid, born=born))
    assert live_lease(directory) is not None
    process.kill()
    process.wait()
    assert live_lease(directory) is None
    with RunLease(directory):
        pass


def test_a_process_id_used_again_is_another_process(directory: RunDirectory) -> None:
    held_by(directory, replace(Attempt.mine(), born=Attempt.mine().born - 100))
    assert live_lease(directory) is None


def test_on_another_machine_who_is_silent_is_dead(directory: RunDirectory) -> None:
    held_by(directory, elsewhere(), silent_for=lease.STALE_SECONDS / 2)
    assert live_lease(directory) is not None
    with pytest.raises(RunLocked), RunLease(directory):
        pass
    held_by(directory, elsewhere(), silent_for=lease.STALE_SECONDS * 2)
    assert live_lease(directory) is None
    with RunLease(directory):
        pass


@pytest.mark.parametrize("content", ['{"token": ', "{}", ""])
def test_a_damaged_claim_is_somebodys_until_it_is_stale(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv(lease.SUPERSEDED_TOKEN, "")  # as a launcher that knows of nobody
    with RunLease(directory) as claim:
        directory.lease.write_text(content)
        assert live_lease(directory) is not None
        with pytest.raises(RunLocked), RunLease(directory):
            pass
        with pytest.raises(LeaseLost):  # whose it was leaves
            claim.check(at_once=True)
    then = time.time() - lease.STALE_SECONDS * 2
    os.utime(directory.lease, (then, then))
    assert live_lease(directory) is None
    with RunLease(directory) as newer:
        assert holder(directory) == newer.attempt


@pytest.mark.parametrize("wrong", [-3600.0, 3600.0])
def test_a_clock_that_is_wrong_kills_nobody_and_raises_nobody(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    right = time.time
    held_by(directory, elsewhere(), silent_for=lease.STALE_SECONDS / 2)
    monkeypatch.setattr(lease.time, "time", lambda: right() + wrong)
    assert live_lease(directory) is not None
    assert os.listdir(directory.path) == [directory.lease.name]  # looking leaves nothing behind
    then = right() - lease.STALE_SECONDS * 2
    os.utime(directory.lease, (then, then))
    assert live_lease(directory) is None


def test_who_may_not_write_looks_at_his_own_clock(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**where: object) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr(lease.tempfile, "TemporaryFile", refused)
    for silent, lives in [(lease.STALE_SECONDS / 2, True), (lease.STALE_SECONDS * 2, False)]:
        held_by(directory, elsewhere(), silent_for=silent)
        assert (live_lease(directory) is not None) is lives


def test_whom_a_launcher_knows_to_be_over_is_superseded(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LOOK_SECONDS", 3600.0)
    with RunLease(directory) as ghost:
        monkeypatch.setenv(lease.SUPERSEDED_TOKEN, "somebody else")
        with pytest.raises(RunLocked), RunLease(directory):
            pass
        ghost.check(at_once=True)
        monkeypatch.setenv(lease.SUPERSEDED_TOKEN, ghost.attempt.token)
        with RunLease(directory) as newer:
            ghost.check()  # it has looked not long ago
            with pytest.raises(LeaseLost):
                ghost.check(at_once=True)
            ghost.__exit__(None, None, None)  # and takes nothing with it when it leaves
            assert holder(directory) == newer.attempt


def test_it_shows_that_it_lives(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    with RunLease(directory):
        os.utime(directory.lease, (0, 0))
        wait_for(lambda: directory.lease.stat().st_mtime > 0, "a heartbeat")


def test_what_the_launcher_says_of_itself_is_kept(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(lease.JOB, json.dumps({"launcher": "slurm", "id": "7_1"}))
    with RunLease(directory) as claim:
        assert claim.attempt.job == {"launcher": "slurm", "id": "7_1"}


def test_an_attempt_that_is_superseded_leaves_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.0)
    directory = prepare(tiny(tmp_path, "training.steps=50"))

    other = elsewhere()

    def usurp(phase: str, done: int, total: int, rate: float) -> None:
        if done == 3:
            held_by(directory, other)

    with pytest.raises(LeaseLost):
        run(directory, on_progress=usurp)
    assert holder(directory) == other
    assert directory.failure() is None
    assert directory.result() is None


def test_an_error_of_one_that_is_superseded_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = prepare(tiny(tmp_path))

    def usurp(phase: str, done: int, total: int, rate: float) -> None:
        held_by(directory, elsewhere())
        raise ValueError("of a ghost")

    with pytest.raises(LeaseLost):
        run(directory, on_progress=usurp)
    assert directory.failure() is None


def test_cancelled_it_saves_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.0)
    directory = prepare(tiny(tmp_path, "training.steps=50"))

    def cancel(phase: str, done: int, total: int, rate: float) -> None:
        if done == 4:
            directory.cancel.touch()

    with pytest.raises(RunFailed, match="cancelled: cancelled: stopped at step 4 of 50"):
        run(directory, on_progress=cancel)
    failure = directory.failure()
    assert failure is not None
    assert failure["class"] == "cancelled"
    assert directory.last_step() == 4
    directory.cancel.unlink()
    assert run(directory)["steps"] == 50
    assert [a["ended"] for a in directory.attempts()] == ["cancelled", "done"]
    assert [a["step"] for a in directory.attempts()] == [0, 4]


# ----------------------------------------------------------------------------- failures as data


def kept(directory: RunDirectory, steps: int) -> None:
    """A checkpoint after so many steps, if any."""
    if steps:
        (directory.checkpoints / f"step-{steps:08d}").mkdir(parents=True)


def noted(directory: RunDirectory, *steps: int) -> None:
    """Attempts that began at these checkpoints."""
    for i, step in enumerate(steps):
        if step > directory.last_step():
            kept(directory, step)
        directory.record_attempt(str(i), begun="then", **directory.saved_work())


@pytest.mark.parametrize(
    ("kind", "steps", "again"),
    [
        ("lost_node", [0], True),
        ("preempted", [0, 100, 200, 300], True),
        ("timeout", [0, 0], True),
        ("lost_node", [0, 100, 100, 100], False),  # it does not get on
        (None, [0, 50], True),  # killed before it could say why
        (None, [], False),  # never begun, and nobody knows of a job
        ("lost_node", [], True),  # lost before it could begin
        ("nan", [0], False),
        ("oom", [0], False),
        ("bug", [0], False),
        ("cancelled", [0], False),
    ],
)
def test_what_is_tried_again_when_all_jobs_are_over(
    directory: RunDirectory, kind: str | None, steps: list[int], again: bool
) -> None:
    noted(directory, *steps)
    if kind is not None:
        directory.write("failure", failures.record(directory, kind, "why"))
    assert failures.retried_by_launcher(directory) is again


def test_lost_for_ever_it_may_be_if_each_attempt_keeps_something(directory: RunDirectory) -> None:
    directory.write("failure", failures.record(directory, "preempted", "why"))
    ways = {
        "a checkpoint": lambda i: kept(directory, 100 * (i + 1)),
        "pairs": lambda i: (directory.pairs / f"{i:05d}.safetensors").touch(),
        "a cell": lambda i: write_json(directory.cell_file(f"cell{i}"), {}),
        "a rung": lambda i: write_json(directory.rung_file(i), {}),
    }
    directory.pairs.mkdir()
    for what, keep in ways.items():
        for i in range(failures.MAX_FRUITLESS_ATTEMPTS):
            directory.record_attempt(f"{what} {i}", begun="then", **directory.saved_work())
            keep(i)
        assert failures.retried_by_launcher(directory), what
    for i in range(failures.MAX_FRUITLESS_ATTEMPTS):
        assert failures.retried_by_launcher(directory)
        directory.record_attempt(f"nothing {i}", begun="then", **directory.saved_work())
    assert not failures.retried_by_launcher(directory)
    keep(failures.MAX_FRUITLESS_ATTEMPTS)  # the last attempt counts by what it has kept, too
    assert failures.retried_by_launcher(directory)


def test_stopped_between_cells_it_gets_on(tmp_path: Path) -> None:
    directory = prepare(tiny(tmp_path, "training.steps=2", "evaluation.steps=[1,2,3,4,5]"))
    for cells in range(1, failures.MAX_FRUITLESS_ATTEMPTS + 2):
        with pytest.raises(Interrupted):
            run(directory, stop=lambda: bool(directory.cells()))
        assert len(directory.cells()) == cells
        assert failures.retried_by_launcher(directory)
    began = [(attempt["step"], attempt["cells"]) for attempt in directory.attempts()]
    assert began == [(0, 0), (2, 1), (2, 2), (2, 3)]


def test_what_launching_again_tries_again(directory: RunDirectory) -> None:
    directory.write("spec", {"key": directory.key})

    def retried_on_launch(kind: str, *asked: str) -> bool:
        directory.write("failure", failures.record(directory, kind, "why"))
        return failures.retried_on_launch(directory, asked)

    left = {kind for kind in failures.CLASSES if not retried_on_launch(kind)}
    assert left == {"nan", "oom", "disk_full"}
    assert retried_on_launch("oom", "oom")
    assert not retried_on_launch("nan", "oom")


def test_a_failure_has_the_end_of_the_log(directory: RunDirectory) -> None:
    directory.log.write_text("".join(f"line {i}\n" for i in range(10_000)))
    told = failures.record(directory, "bug", "why")
    assert told["log_tail"] == [f"line {i}" for i in range(9980, 10_000)]
    assert failures.log_tail(directory.path / "none") == []


def test_curves_that_two_attempts_wrote_for_a_moment_are_one(directory: RunDirectory) -> None:
    rows: list[dict[str, Any]] = [{"step": s, "loss": s / 10} for s in (1, 2, 3, 2, 3, 4)]
    text = "\n".join(json.dumps(row) for row in rows) + '\n{"step": 5, "lo'
    directory.metrics_file.write_text(text)
    assert [row["step"] for row in directory.metrics()] == [1, 2, 3, 4]
