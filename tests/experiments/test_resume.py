"""Killed at any moment and run again, a run ends with the bits of one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import warm
from helpers.tiny import checkpoint_steps, last_tensors, taught, tiny

from fewstep.experiments.run import prepare, run
from fewstep.experiments.rundir import RunDirectory
from fewstep.experiments.worker import INTERRUPTED
from fewstep.objectives import OBJECTIVES, Progress

STEPS = 150
EVERY = 10
PATIENCE = 120  # seconds for a step of the story, on a machine with other work

# all that could carry something over from step to step is switched on
SETTINGS = (
    ("training.steps", STEPS),
    ("training.checkpoint_every", EVERY),
    "training.log_every=7",
    "training.validate_every=35",
    "training.schedule=cosine",
    "training.warmup=5",
    "training.label_dropout=0.1",
    "training.weight_decay=0.01",
    "training.ema=0.95",
    "training.lr=0.005",
)


def start(directory: RunDirectory) -> BaseProcess:
    worker, here, log = "fewstep.experiments.worker", Path.cwd(), directory.log
    return warm.start(worker, directory.path, cwd=here, environment=os.environ, out=log, err=log)


def end(process: BaseProcess, how: signal.Signals) -> int | None:
    """Its exit code after that signal."""
    assert process.pid is not None
    os.kill(process.pid, how)
    process.join(PATIENCE)
    return process.exitcode


@pytest.fixture
def directories(tmp_path: Path, request: pytest.FixtureRequest) -> list[RunDirectory]:
    """The same run twice, under two run roots."""
    objective = taught(tmp_path, request.param)
    configs = [tiny(tmp_path / root, *objective, *SETTINGS) for root in "ab"]
    assert configs[0].key == configs[1].key
    return [prepare(config) for config in configs]


def wait_for_step(directory: RunDirectory, process: BaseProcess, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while max(checkpoint_steps(directory), default=0) < step:
        assert process.is_alive(), directory.log.read_text()
        assert time.monotonic() < deadline, directory.log.read_text()
        time.sleep(0.002)


def assert_equal(a: RunDirectory, b: RunDirectory) -> None:
    """The same weights, averages, learned parts, optimiser and curves, to the last bit."""
    left, right = last_tensors(a), last_tensors(b)
    assert left.keys() == right.keys()
    for part in ("net.", "ema.", "optimiser.exp_avg.", "optimiser.exp_avg_sq.", "optimiser.step."):
        assert any(name.startswith(part) for name in left)
    differing = [name for name in left if not torch.equal(left[name], right[name])]
    assert not differing
    assert without_seconds(a.metrics()) == without_seconds(b.metrics())
    steps = [row["step"] for row in b.metrics()]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS
    results = a.result(), b.result()
    for name in ("loss", "validation_loss", "steps", "images_seen", "parameters"):
        assert results[0][name] == results[1][name]  # type: ignore[index]


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


# every kind of state: none, EMA targets, learned parts, a former self, stored pairs, a teacher
KINDS = [
    "flow_matching",
    "shortcut",
    "scm",
    "progressive_distillation",
    "reflow",
    "consistency_distillation",
    "alpha_flow",
]


@pytest.mark.parametrize(
    ("directories", "kills"),
    [(kind, (0.2, 0.5) if kind == "scm" else (0.4,)) for kind in KINDS],
    indirect=["directories"],
)
def test_killed_a_run_ends_with_the_same_bits(
    directories: list[RunDirectory], kills: tuple[float, ...]
) -> None:
    whole, killed = directories
    run(whole)
    for share in kills:
        before = max(checkpoint_steps(killed), default=0)
        process = start(killed)
        try:
            wait_for_step(killed, process, max(int(share * STEPS), before + EVERY))
            time.sleep(random.uniform(0, 0.06))  # in the middle of anything
        finally:
            code = end(process, signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert killed.result() is None
        assert checkpoint_steps(killed)[-1] < STEPS
    run(killed)  # in this process: neither does it matter where
    assert_equal(whole, killed)
    spec = killed.spec()
    assert spec is not None
    if OBJECTIVES[spec["config"]["objective"]["name"]].learned_parts() is not None:
        assert any(name.startswith("learned.") for name in last_tensors(killed))
    former = any(name.startswith("former.") for name in last_tensors(killed))
    objective = OBJECTIVES[spec["config"]["objective"]["name"]]
    assert former == any(objective.freezes(Progress(step, STEPS)) for step in range(STEPS))


@pytest.mark.parametrize("directories", ["consistency"], indirect=True)
def test_asked_to_stop_a_run_saves_and_goes_on_later(directories: list[RunDirectory]) -> None:
    whole, stopped = directories
    run(whole)
    process = start(stopped)
    wait_for_step(stopped, process, EVERY)
    assert end(process, signal.SIGTERM) == INTERRUPTED == 75
    assert stopped.failure() is None
    assert stopped.status() == "running"
    reached = checkpoint_steps(stopped)[-1]
    assert EVERY <= reached < STEPS
    assert f"stopped at step {reached} of {STEPS}" in stopped.log.read_text()
    run(stopped)
    assert_equal(whole, stopped)


@pytest.mark.parametrize("directories", ["flow_matching"], indirect=True)
def test_a_damaged_checkpoint_costs_time_and_nothing_else(
    directories: list[RunDirectory], caplog: pytest.LogCaptureFixture
) -> None:
    whole, damaged = directories
    run(whole)
    run(damaged)
    (damaged.path / "result.json").unlink()
    (damaged.checkpoints / f"step-{STEPS:08d}" / "tensors.safetensors").write_bytes(b"torn")
    run(damaged)
    assert f"step-{STEPS:08d} is damaged" in caplog.text
    assert_equal(whole, damaged)
