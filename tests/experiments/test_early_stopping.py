"""Rungs: a run is looked at while it trains, and does not notice; it may be ended early."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers.tiny import checkpoint_steps, last_tensors, tiny

from fewstep.experiments.early_stopping import Rungs, continue_stopped, mark_stopped
from fewstep.experiments.run import Interrupted, prepare, run
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.status import run_status


def made(root: Path, *overrides: str) -> RunDirectory:
    return prepare(tiny(root, "training.steps=8", "evaluation.steps=[1]", *overrides))


def same_bits(a: RunDirectory, b: RunDirectory) -> bool:
    left, right = last_tensors(a), last_tensors(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("objective", ["flow_matching", "scm"])
def test_looking_at_a_run_changes_no_bit_of_it(tmp_path, objective):
    alone, watched = (made(tmp_path / place, f"objective={objective}") for place in "ab")
    asked = []

    def decide(step, score, stop):
        asked.append((step, score))
        return True

    run(alone)
    run(watched, rungs=Rungs((2, 5, 8, 20), 1, decide))
    assert same_bits(alone, watched)
    assert watched.metrics()[-1]["loss"] == alone.metrics()[-1]["loss"]
    # the last step is no rung: it is evaluated as ever
    assert [step for step, _ in asked] == [2, 5]
    assert {s: r["value"] for s, r in watched.rungs().items()} == dict(asked)
    assert list(watched.cells()) == list(alone.cells())
    record = watched.rungs()[2]
    assert record["training_step"] == 2
    assert record["images_seen"] == 32
    assert record["metric"] == next(iter(alone.cells().values()))["metric"]


def test_the_score_at_a_rung_is_what_training_to_there_gives(tmp_path):
    watched = made(tmp_path / "a")
    run(watched, rungs=Rungs((4,), 1, lambda step, score, stop: True))
    short = prepare(tiny(tmp_path / "b", "training.steps=4", "evaluation.steps=[1]"))
    run(short)  # its schedule is constant, so its first 4 steps are the same
    (cell,) = short.cells().values()
    assert watched.rungs()[4]["value"] == cell["value"]


def test_a_run_ended_early_is_neither_done_nor_failed_and_goes_on_when_asked(tmp_path):
    alone, ended = made(tmp_path / "a"), made(tmp_path / "b")
    run(alone)

    def decide(step, score, stop):
        mark_stopped(ended, "asha", step)
        return False

    with pytest.raises(Interrupted):
        run(ended, rungs=Rungs((3,), 1, decide))
    assert ended.status() == "stopped"
    mark = ended.stopped()
    assert (mark["class"], mark["by"], mark["step"]) == ("early_stopped", "asha", 3)
    assert mark["scores"] == {"3": ended.rungs()[3]["value"]}
    assert checkpoint_steps(ended) == [3]
    assert (run_status(ended).state, run_status(ended).step) == ("stopped", 3)
    assert ended.failure() is None
    assert ended.result() is None

    assert continue_stopped([alone, ended]) == [ended]
    assert ended.status() == "running"
    run(ended, rungs=Rungs((3, 6), 1, lambda step, score, stop: step == 6))  # 3 is not asked again
    assert ended.status() == "done"
    assert same_bits(alone, ended)
    assert [row["step"] for row in ended.metrics()] == [row["step"] for row in alone.metrics()]


def test_another_cell_at_a_rung_is_another_score(tmp_path):
    watched = made(tmp_path)

    def first(step, score, stop):
        raise KeyboardInterrupt  # as a kill would, after the score was written

    with pytest.raises(KeyboardInterrupt):
        run(watched, rungs=Rungs((3,), 1, first))
    before = watched.rungs()[3]
    assert checkpoint_steps(watched) == [3]
    for checkpoint in watched.checkpoints.glob("step-*"):  # lost: the steps are made again
        checkpoint.rename(tmp_path / checkpoint.name)
    asked = []
    run(watched, rungs=Rungs((3,), 2, lambda step, score, stop: not asked.append(score)))
    assert len(asked) == 1
    assert watched.rungs()[3]["cell"]["steps"] == 2
    assert before["value"] != asked[0]


def test_samples_that_are_not_finite_are_as_bad_as_can_be(tmp_path, monkeypatch):
    def draw(*arguments):
        raise FloatingPointError("samples at 1 steps are not finite")

    monkeypatch.setattr("fewstep.experiments.early_stopping.draw", draw)
    watched, asked = made(tmp_path), []
    run(watched, rungs=Rungs((3,), 1, lambda step, score, stop: not asked.append(score)))
    assert asked == [math.inf]
    assert watched.status() == "done"


def test_time_spent_looking_is_not_training_time(tmp_path, monkeypatch):
    clock = [0.0]
    watched = made(tmp_path, "training.log_every=1")

    def decide(step, score, stop):
        clock[0] += 1000.0
        return True

    real = __import__("time").perf_counter
    monkeypatch.setattr("time.perf_counter", lambda: real() + clock[0])
    run(watched, rungs=Rungs((3,), 1, decide))
    assert watched.result()["train_seconds"] < 500
