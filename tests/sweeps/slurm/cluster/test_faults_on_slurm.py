"""What a real SLURM cluster does to the runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.commands import wait_for
from helpers.slurm import Box
from helpers.slurm_sweep import SHORT, Sweep, long, same, weights

from fewstep.experiments.store.run_directory import RunDirectory

pytestmark = pytest.mark.xdist_group("slurm faults")  # one cluster, in one process


def test_preempted_it_saves_and_goes_on(
    tmp_path: Path, box: Box, undisturbed: RunDirectory
) -> None:
    sweep = Sweep(tmp_path, box, f"  - {long('a')}\n")
    sweep.submit("slurm.finalize=false")
    wait_for(sweep.training("a"), "a run at work")
    job = sweep.job("a")
    box.run("sbatch", "-p", "high", "-w", job["node"], "-c", "2", "--wrap", "sleep 2", cwd=tmp_path)
    sweep.wait()
    same(sweep.runs["a"], undisturbed)
    first, second = sweep.runs["a"].attempts()
    assert first["ended"] == "interrupted"
    assert (first["job"]["id"], second["job"]["restart"]) == (second["job"]["id"], 1)


def test_preempted_as_it_begins_it_comes_again(tmp_path: Path, box: Box) -> None:
    sweep = Sweep(tmp_path, box, f"  - {{label: a, training.steps: {SHORT}}}\n")
    slow = tmp_path / "python"  # as from a slow disk, the first time
    began = tmp_path / "began"
    slow.write_text(
        f'#!/bin/sh\n[ -e {began} ] || {{ touch {began}; sleep 60; }}\nexec {sys.executable} "$@"\n'
    )
    slow.chmod(0o755)
    sweep.submit("slurm.finalize=false", f"slurm.python={slow}")
    wait_for(began.exists, "a job that begins")
    node = box.run("squeue", "-h", "-o", "%N").strip()
    box.run("sbatch", "-p", "high", "-w", node, "-c", "2", "--wrap", "sleep 2", cwd=tmp_path)
    sweep.wait()
    assert sweep.states == {"a": "done"}, sweep.log()
    assert [a["job"]["restart"] for a in sweep.runs["a"].attempts()] == [1]


def test_at_the_time_limit_it_saves_and_goes_on(
    tmp_path: Path, box: Box, undisturbed: RunDirectory
) -> None:
    sweep = Sweep(tmp_path, box, f"  - {long('a')}\n")
    # one minute, of which SLURM gives the job a few seconds until it tells it to save
    with sweep.held():
        sweep.submit("slurm.finalize=false", "slurm.hours=0.016", "slurm.save_seconds=52")
        wait_for(lambda: [a for a in sweep.runs["a"].attempts() if "ended" in a], "the limit")
    sweep.wait()
    same(sweep.runs["a"], undisturbed)
    attempts = sweep.runs["a"].attempts()
    assert len(attempts) > 1
    assert {a["ended"] for a in attempts[:-1]} == {"interrupted"}


def test_a_lost_node_costs_no_run(tmp_path: Path, box: Box, undisturbed: RunDirectory) -> None:
    sweep = Sweep(tmp_path, box, f"  - {long('a')}\n")
    sweep.submit("slurm.finalize=false")
    wait_for(sweep.training("a"), "a run at work")
    node = sweep.job("a")["node"]
    box.node("kill", node, "now")
    sweep.wait()
    same(sweep.runs["a"], undisturbed)
    first, second = sweep.runs["a"].attempts()
    assert "ended" not in first
    assert second["job"]["node"] != node


def test_a_ghost_on_a_dropped_node_does_not_spoil_the_run(
    tmp_path: Path, box: Box, undisturbed: RunDirectory
) -> None:
    sweep = Sweep(tmp_path, box, f"  - {long('a')}\n")
    with sweep.held():  # else it may be done before the new job takes the run
        sweep.submit("slurm.finalize=false")
        wait_for(sweep.training("a"), "a run at work")
        node = sweep.job("a")["node"]
        ghost = json.loads(sweep.runs["a"].lease.read_text())
        box.node("drop", node, "now")  # its tasks go on
        assert Path(f"/proc/{ghost['pid']}").exists()
        wait_for(lambda: len(sweep.runs["a"].attempts()) == 2, "the new job to take the run")
    sweep.wait()
    same(sweep.runs["a"], undisturbed)
    first, second = sweep.runs["a"].attempts()
    assert first["token"] == ghost["token"]
    assert first["ended"].startswith("a newer attempt has")
    assert second["job"]["restart"] == 1
    wait_for(lambda: not Path(f"/proc/{ghost['pid']}").exists(), "the ghost to leave")
    assert sweep.runs["a"].failure() is None


def test_runs_that_slurm_does_not_queue_again_are_submitted_by_the_collector(
    tmp_path: Path, box: Box, undisturbed: RunDirectory
) -> None:
    sweep = Sweep(tmp_path, box, f"  - {long('a')}\n")
    sweep.submit()
    wait_for(sweep.training("a"), "a run at work")
    job = sweep.job("a")
    box.run("scontrol", "update", f"job={job['id']}", "requeue=0")  # a site may forbid it
    box.node("kill", job["node"], "now")
    wait_for(lambda: sweep.states["a"] == "done", "the run to be done all the same", 300)
    sweep.wait()
    same(sweep.runs["a"], undisturbed)
    first, second = sweep.runs["a"].attempts()
    assert first["job"]["id"] != second["job"]["id"]
    assert "lost runs are submitted again" in sweep.log()
    assert (tmp_path / "runs/mine/report/table.md").exists()


def test_one_run_on_two_nodes(tmp_path: Path, box: Box, undisturbed: RunDirectory) -> None:
    sweep = Sweep(tmp_path, box, f"  - {long('a')}\n")
    sweep.submit("slurm.finalize=false", "resources.nodes=2", "resources.cpus=1")
    wait_for(sweep.training("a"), "a run at work")
    assert len(box.run("squeue", "-h", "-o", "%D").split()) == 1
    assert box.run("squeue", "-h", "-o", "%D").split() == ["2"]
    job = box.run("squeue", "-h", "-o", "%i").strip()
    box.run("scontrol", "requeue", job)  # and on the way it is put back into the queue
    sweep.wait()
    run = sweep.runs["a"]
    assert run.status() == "done", sweep.log() + run.log.read_text()
    assert run.result()["provenance"]["processes"] == 2
    assert len(run.attempts()) == 2
    mine, theirs = weights(run), weights(undisturbed)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-4)
