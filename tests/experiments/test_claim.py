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
from helpers.tiny import tiny

from fewstep.experiments import claim as claims
from fewstep.experiments import failures
from fewstep.experiments.claim import Attempt, Busy, Claim, Superseded, at_work, holder
from fewstep.experiments.run import Interrupted, RunFailed, prepare, run
from fewstep.experiments.rundir import RunDirectory, write_json


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.path.mkdir()
    return made


def held_by(directory: RunDirectory, attempt: Attempt, silent_for: float = 0.0) -> None:
    """As that attempt leaves it, its last touch ``silent_for`` seconds ago."""
    write_json(directory.claim, asdict(attempt))
    then = time.time() - silent_for
    os.utime(directory.claim, (then, then))


def elsewhere() -> Attempt:
    return replace(Attempt.mine(), machine="another boot", host="far", pid=1)


def test_it_is_held_while_it_lasts(directory: RunDirectory) -> None:
    assert at_work(directory) is None
    with Claim(directory) as claim:
        assert at_work(directory) == claim.attempt == holder(directory)
        with pytest.raises(Busy, match="another process"), Claim(directory):
            pass
        assert holder(directory) == claim.attempt
    assert at_work(directory) is None
    assert not directory.claim.exists()


def test_the_dead_hold_nothing(directory: RunDirectory) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    born = psutil.Process(process.pid).create_time()
    held_by(directory, replace(Attempt.mine(), pid=process.pid, born=born))
    assert at_work(directory) is not None
    process.kill()
    process.wait()
    assert at_work(directory) is None
    with Claim(directory):
        pass


def test_a_process_id_used_again_is_another_process(directory: RunDirectory) -> None:
    held_by(directory, replace(Attempt.mine(), born=Attempt.mine().born - 100))
    assert at_work(directory) is None


def test_on_another_machine_who_is_silent_is_dead(directory: RunDirectory) -> None:
    held_by(directory, elsewhere(), silent_for=claims.STALE_SECONDS / 2)
    assert at_work(directory) is not None
    with pytest.raises(Busy), Claim(directory):
        pass
    held_by(directory, elsewhere(), silent_for=claims.STALE_SECONDS * 2)
    assert at_work(directory) is None
    with Claim(directory):
        pass


@pytest.mark.parametrize("content", ['{"token": ', "{}", ""])
def test_a_damaged_claim_is_somebodys_until_it_is_stale(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv(claims.SUPERSEDES, "")  # as a launcher that knows of nobody
    with Claim(directory) as claim:
        directory.claim.write_text(content)
        assert at_work(directory) is not None
        with pytest.raises(Busy), Claim(directory):
            pass
        with pytest.raises(Superseded):  # whose it was leaves
            claim.check(at_once=True)
    then = time.time() - claims.STALE_SECONDS * 2
    os.utime(directory.claim, (then, then))
    assert at_work(directory) is None
    with Claim(directory) as newer:
        assert holder(directory) == newer.attempt


@pytest.mark.parametrize("wrong", [-3600.0, 3600.0])
def test_a_clock_that_is_wrong_kills_nobody_and_raises_nobody(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    right = time.time
    held_by(directory, elsewhere(), silent_for=claims.STALE_SECONDS / 2)
    monkeypatch.setattr(claims.time, "time", lambda: right() + wrong)
    assert at_work(directory) is not None
    assert os.listdir(directory.path) == [directory.claim.name]  # looking leaves nothing behind
    then = right() - claims.STALE_SECONDS * 2
    os.utime(directory.claim, (then, then))
    assert at_work(directory) is None


def test_who_may_not_write_looks_at_his_own_clock(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**where: object) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr(claims.tempfile, "TemporaryFile", refused)
    for silent, lives in [(claims.STALE_SECONDS / 2, True), (claims.STALE_SECONDS * 2, False)]:
        held_by(directory, elsewhere(), silent_for=silent)
        assert (at_work(directory) is not None) is lives


def test_whom_a_launcher_knows_to_be_over_is_superseded(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Claim(directory) as ghost:
        monkeypatch.setenv(claims.SUPERSEDES, "somebody else")
        with pytest.raises(Busy), Claim(directory):
            pass
        ghost.check(at_once=True)
        monkeypatch.setenv(claims.SUPERSEDES, ghost.attempt.token)
        with Claim(directory) as newer:
            ghost.check()  # it looks once a second
            with pytest.raises(Superseded):
                ghost.check(at_once=True)
            ghost.__exit__(None, None, None)  # and takes nothing with it when it leaves
            assert holder(directory) == newer.attempt


def test_it_shows_that_it_lives(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.05)
    with Claim(directory):
        os.utime(directory.claim, (0, 0))
        end = time.monotonic() + 5
        while directory.claim.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert directory.claim.stat().st_mtime > time.time() - 60


def test_what_the_launcher_says_of_itself_is_kept(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(claims.JOB, json.dumps({"launcher": "slurm", "id": "7_1"}))
    with Claim(directory) as claim:
        assert claim.attempt.job == {"launcher": "slurm", "id": "7_1"}


def test_an_attempt_that_is_superseded_leaves_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.0)
    directory = prepare(tiny(tmp_path, "training.steps=50"))

    def usurp(phase: str, done: int, total: int, rate: float) -> None:
        if done == 3:
            held_by(directory, elsewhere())

    with pytest.raises(Superseded):
        run(directory, on_progress=usurp)
    assert holder(directory) == replace(elsewhere(), token=holder(directory).token)  # type: ignore[union-attr]
    assert directory.failure() is None
    assert directory.result() is None


def test_an_error_of_one_that_is_superseded_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = prepare(tiny(tmp_path))

    def usurp(phase: str, done: int, total: int, rate: float) -> None:
        held_by(directory, elsewhere())
        raise ValueError("of a ghost")

    with pytest.raises(Superseded):
        run(directory, on_progress=usurp)
    assert directory.failure() is None


def test_cancelled_it_saves_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.0)
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
        directory.note(str(i), begun="then", **directory.kept())


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
    assert failures.comes_again(directory) is again


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
        for i in range(failures.STUCK):
            directory.note(f"{what} {i}", begun="then", **directory.kept())
            keep(i)
        assert failures.comes_again(directory), what
    for i in range(failures.STUCK):
        assert failures.comes_again(directory)
        directory.note(f"nothing {i}", begun="then", **directory.kept())
    assert not failures.comes_again(directory)
    keep(failures.STUCK)  # the last attempt counts by what it has kept, too
    assert failures.comes_again(directory)


def test_stopped_between_cells_it_gets_on(tmp_path: Path) -> None:
    directory = prepare(tiny(tmp_path, "training.steps=2", "evaluation.steps=[1,2,3,4,5]"))
    for cells in range(1, failures.STUCK + 2):
        with pytest.raises(Interrupted):
            run(directory, stop=lambda: bool(directory.cells()))
        assert len(directory.cells()) == cells
        assert failures.comes_again(directory)
    began = [(attempt["step"], attempt["cells"]) for attempt in directory.attempts()]
    assert began == [(0, 0), (2, 1), (2, 2), (2, 3)]


def test_what_launching_again_tries_again(directory: RunDirectory) -> None:
    directory.write("spec", {"key": directory.key})

    def resumed(kind: str, *asked: str) -> bool:
        directory.write("failure", failures.record(directory, kind, "why"))
        return failures.resumed(directory, asked)

    left = {kind for kind in failures.CLASSES if not resumed(kind)}
    assert left == {"nan", "oom", "disk_full"}
    assert resumed("oom", "oom")
    assert not resumed("nan", "oom")


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
