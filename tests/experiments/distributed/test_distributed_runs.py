"""Whole runs by several processes: started, stopped, killed; and how a process learns its place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from helpers.ranks import Exhausts, ends, start
from helpers.tiny import checkpoint_steps, registered, tiny

from fewstep.errors import UserError
from fewstep.experiments.distributed.process_group import (
    SINGLE,
    init_process_group,
    is_loss,
    ranks,
    rendezvous_variables,
)
from fewstep.experiments.run import prepare, run
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.worker import BUSY, FAILED, INTERRUPTED

SOON = 300  # seconds, for what takes a few on a machine at rest
WORKER = ("-P", "-m", "fewstep.experiments.worker")
ENDLESS = ("training.steps=100000", "training.checkpoint_every=20")


def wait_for_checkpoints(
    directory: RunDirectory, processes: list[subprocess.Popen[str]], at_least: int
) -> None:
    end = time.monotonic() + SOON
    while max(checkpoint_steps(directory), default=0) < at_least:
        assert time.monotonic() < end
        assert all(p.poll() is None for p in processes), ends(processes, SOON)
        time.sleep(0.02)


def records(directory: RunDirectory) -> dict[str, Any]:
    return {name: cell["value"] for name, cell in directory.cells().items()}


def test_stopped_by_one_and_gone_on_under_torchrun_a_run_ends_as_alone(tmp_path: Path) -> None:
    settings = (
        "objective=shortcut",
        "training.steps=150",
        "training.checkpoint_every=20",
        "training.batch_size=15",
        "evaluation.steps=[1,3]",
        "evaluation.batch_size=100",
    )
    one = prepare(tiny(tmp_path / "one", *settings))
    two = prepare(tiny(tmp_path / "two", *settings, "training.parallel=fsdp"))
    assert one.key == two.key  # how many work on a run, and how, is no part of what it is
    processes = start(2, *WORKER, two.path)
    wait_for_checkpoints(two, processes, 20)
    processes[1].send_signal(signal.SIGTERM)  # not to the one that writes
    for status, out in ends(processes, SOON):
        assert status == INTERRUPTED, out
        assert f"stopped at step {checkpoint_steps(two)[-1]} of 150" in out
    assert two.failure() is None
    assert 20 <= checkpoint_steps(two)[-1] < 150

    torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "-m", "fewstep.experiments.worker", str(two.path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=2 * SOON,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected, result = run(one), two.result()
    assert result is not None
    assert result["provenance"]["processes"] == 2
    assert expected["provenance"]["processes"] == 1
    assert result["parameters"] == expected["parameters"]
    assert result["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-3)
    assert records(two) == pytest.approx(records(one), rel=1e-3)
    assert len(records(two)) == 2
    assert [row["step"] for row in two.metrics()] == [row["step"] for row in one.metrics()]
    left = {p.name for p in two.path.rglob("*") if p.is_file()}
    assert left - {"progress.json"} == {p.name for p in one.path.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("way", "victim"), [("ddp", 0), ("fsdp", 1)])
def test_killed_one_process_takes_the_others_with_it(tmp_path: Path, way: str, victim: int) -> None:
    directory = prepare(tiny(tmp_path, *ENDLESS, f"training.parallel={way}"))
    processes = start(2, *WORKER, directory.path)
    wait_for_checkpoints(directory, processes, 20)
    processes[victim].send_signal(signal.SIGKILL)
    found = ends(processes, SOON)
    assert found[victim][0] == -signal.SIGKILL
    assert found[1 - victim][0] == FAILED, found[1 - victim][1]
    failure = directory.failure()
    if victim == 0:  # nobody is left to write; whoever started them sees it by the exit status
        assert failure is None
    else:
        assert failure is not None
        assert failure["class"] == "lost_node"
        assert failure["message"].startswith("another of the 2 processes of this run is gone")
    assert directory.status() == ("running" if victim == 0 else "failed")


def test_a_process_that_waits_for_others_leaves_when_it_is_asked_to(tmp_path: Path) -> None:
    directory = prepare(tiny(tmp_path))
    waiting, other = processes = start(2, *WORKER, directory.path)
    other.kill()  # long before they could have met
    end = time.monotonic() + SOON
    while not psutil.Process(waiting.pid).net_connections():
        assert time.monotonic() < end
        time.sleep(0.02)
    waiting.terminate()
    assert ends(processes, SOON)[0][0] == INTERRUPTED


def test_what_befell_another_process_is_what_is_recorded(tmp_path: Path) -> None:
    with registered("objective", "exhausts", Exhausts()):
        directory = prepare(tiny(tmp_path, "objective=exhausts"))
        for status, out in ends(start(2, "-m", "helpers.ranks", directory.path), SOON):
            assert status == FAILED, out
    failure = directory.failure()
    assert failure is not None
    assert (failure["class"], failure["rank"]) == ("oom", 1)
    assert failure["message"] == "rank 1 has no memory left"
    assert "MemoryError" in failure["traceback"]


def test_a_run_that_is_busy_is_left_alone_by_all(tmp_path: Path) -> None:
    directory = prepare(tiny(tmp_path))
    with FileLock(directory.lock):
        for status, out in ends(start(2, *WORKER, directory.path), SOON):
            assert status == BUSY, out
    assert directory.status() == "new"


# ------------------------------------------------------------------------------ a process' place

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29400",
}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "41234",
    "MASTER_ADDR": "node7",
}


def test_a_place_is_read_from_what_started_the_process() -> None:
    assert rendezvous_variables(TORCHRUN) == TORCHRUN
    assert rendezvous_variables({**TORCHRUN, **SLURM, "SLURM_PROCID": "0"}) == TORCHRUN
    assert rendezvous_variables({**SLURM, "MASTER_PORT": "29400"}) == TORCHRUN
    assert rendezvous_variables(SLURM) == {**TORCHRUN, "MASTER_PORT": "21234"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"},
        {k: v for k, v in SLURM.items() if k != "MASTER_ADDR"},  # an allocation, not a run's step
        {**SLURM, "SLURM_NTASKS": "1"},
    ],
)
def test_a_process_that_nobody_gave_a_place_is_alone(environment: dict[str, str]) -> None:
    assert rendezvous_variables(environment) is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is not set"),
        ({"RANK": "4"}, "RANK 4 must be below WORLD_SIZE 4"),
        ({"LOCAL_RANK": "-1"}, "expected whole numbers, got {'LOCAL_RANK': '-1'}"),
        ({"WORLD_SIZE": "many"}, "expected whole numbers, got {'WORLD_SIZE': 'many'}"),
    ],
)
def test_a_place_that_cannot_be_is_told(wrong: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        rendezvous_variables({**TORCHRUN, **wrong})
    without = {k: v for k, v in TORCHRUN.items() if k != "WORLD_SIZE"}
    with pytest.raises(UserError, match="WORLD_SIZE is not set"):
        rendezvous_variables(without)


def test_this_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert init_process_group() == SINGLE == ranks()
    assert SINGLE.any_true(True)
    assert not SINGLE.any_true(False)
    assert SINGLE.broadcast("x") == "x"
    assert SINGLE.all_gather("x") == ["x"]


def test_a_loss_of_others_is_told_from_other_errors() -> None:
    assert is_loss(RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read"))
    assert not is_loss(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_loss(ValueError("gloo/"))
    outer = ValueError("in the backward pass")
    outer.__cause__ = RuntimeError("NCCL communicator was aborted")
    assert is_loss(outer)
