"""Killed at any moment and run again, a run ends with the bits of one that was left alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import warm
from helpers.tiny import checkpoint_steps, last_tensors, taught, tiny

from fewstep.experiments.run import prepare, run
from fewstep.experiments.store.run_directory import RunDirectory
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
    "training.ema=[0.95,0.5]",
    "training.posthoc_ema=[0.1]",
    "training.posthoc_every=20",
    "training.clip=1.0",
    "training.lr=0.005",
)


MORE = {
    "scd": ("training.init=teacher", "training.auxiliary_lr=0.02"),
    "consistency_distillation": ("objective.target_decay=0.8",),
    "progressive_distillation": ("training.optimiser=adam",),
    "flow_matching": ("training.optimiser=radam", "training.schedule=linear"),
    "alpha_flow": ("training.optimiser=muon",),
    "sid": ("training.optimiser=radam", "training.schedule=linear", "training.companion_lr=0.01"),
    "imm": ("training.class_rows=8",),
}


def signalled(directory: RunDirectory, moment: str, n: int, name: str) -> int | None:
    """The exit code of a worker that signals itself when it comes to a moment the n-th time."""
    given = (moment, n, name, "fewstep.experiments.worker", directory.path)
    here, log = Path.cwd(), directory.log
    process = warm.start(
        "helpers.killed", *given, cwd=here, environment=os.environ, out=log, err=log
    )
    process.join(PATIENCE)
    return process.exitcode


@pytest.fixture
def directories(tmp_path: Path, request: pytest.FixtureRequest) -> list[RunDirectory]:
    """The same run twice, under two run roots."""
    objective = taught(tmp_path, request.param)
    more = MORE.get(request.param, ())
    configs = [tiny(tmp_path / root, *objective, *SETTINGS, *more) for root in "ab"]
    assert configs[0].key == configs[1].key
    return [prepare(config) for config in configs]


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
    kept = [{p.name: p.read_bytes() for p in run.averages.iterdir()} for run in (a, b)]
    assert kept[0] == kept[1]
    assert len(kept[0]) == STEPS // 20 + 1
    results = a.result(), b.result()
    for name in ("loss", "validation_loss", "steps", "images_seen", "parameters"):
        assert results[0][name] == results[1][name]  # type: ignore[index]


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


# every kind of state (none, EMA targets, a learned module, weights of a teacher on another path, a
# snapshot, stored pairs, a target of its own decay, a companion, batches by class),
# and every kind of moment
KILLS: dict[str, list[tuple[str, int]]] = {
    "sid": [("update", 37)],
    "shortcut": [("checkpoint", 4)],
    "scd": [("log", 33), ("update", 71), ("rename", 9)],
    "progressive_distillation": [("update", 61)],
    "reflow": [("checkpoint", 6)],
    "consistency_distillation": [("log", 77)],
    "alpha_flow": [("update", 52)],
    "imm": [("update", 64)],
}


@pytest.mark.parametrize(
    ("directories", "kills"), KILLS.items(), ids=list(KILLS), indirect=["directories"]
)
def test_killed_a_run_ends_with_the_same_bits(
    directories: list[RunDirectory], kills: list[tuple[str, int]]
) -> None:
    whole, killed = directories
    run(whole)
    for moment, n in kills:
        assert signalled(killed, moment, n, "SIGKILL") == -signal.SIGKILL, killed.log.read_text()
        assert killed.result() is None
        assert checkpoint_steps(killed)[-1] < STEPS
    run(killed)  # in this process: neither does it matter where
    assert_equal(whole, killed)
    spec = killed.spec()
    assert spec is not None
    if OBJECTIVES[spec["config"]["objective"]["name"]].auxiliary_module() is not None:
        assert any(name.startswith("auxiliary.") for name in last_tensors(killed))
    apart = any(name.startswith("target.") for name in last_tensors(killed))
    assert apart == ("target_decay" in str(MORE.get(spec["config"]["objective"]["name"])))
    muon = any(name.startswith("optimiser.momentum.") for name in last_tensors(killed))
    assert muon == ("muon" in str(MORE.get(spec["config"]["objective"]["name"])))
    companion = any(name.startswith("optimiser.step.companion.") for name in last_tensors(killed))
    assert companion == (spec["config"]["objective"]["name"] == "sid")
    former = any(name.startswith("snapshot.") for name in last_tensors(killed))
    objective = OBJECTIVES[spec["config"]["objective"]["name"]]
    assert former == any(objective.takes_snapshot(Progress(step, STEPS)) for step in range(STEPS))


@pytest.mark.parametrize("directories", ["consistency"], indirect=True)
def test_asked_to_stop_a_run_saves_and_goes_on_later(directories: list[RunDirectory]) -> None:
    whole, stopped = directories
    run(whole)
    assert signalled(stopped, "update", 34, "SIGTERM") == INTERRUPTED == 75
    assert stopped.failure() is None
    assert stopped.status() == "running"
    assert checkpoint_steps(stopped)[-1] == 34
    assert f"stopped at step 34 of {STEPS}" in stopped.log.read_text()
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
