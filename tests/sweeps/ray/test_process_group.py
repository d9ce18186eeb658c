"""Runs of several processes on real Ray: two GPUs of one machine, and a cluster of two."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from helpers.commands import TINY, wait_for
from helpers.ranks import free_port
from helpers.ray_driver import start_driver, start_node
from helpers.tiny import last_tensors

from fewstep.errors import UserError
from fewstep.experiments import worker
from fewstep.experiments.config.run_config import compose
from fewstep.experiments.run import prepare, run
from fewstep.experiments.store.lease import live_lease
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.definition.resources import Resources
from fewstep.sweeps.ray.placement import ResourceRequest, refuse_rungs
from fewstep.sweeps.ray.process_group import MachineLost, threads, verdict

pytestmark = pytest.mark.xdist_group("ray")

STEPS, SAVED = 300, 20
PATIENCE = 600.0  # seconds: a cluster comes late on a busy machine


def made(root: Path) -> RunDirectory:
    every = (f"training.checkpoint_every={SAVED}", "evaluation.steps=[]", f"training.steps={STEPS}")
    return prepare(compose([*TINY, *every, ("runs", str(root))]))


def ranks(run: RunDirectory) -> list[psutil.Process]:
    """The processes at work on a run: the first is first."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "fewstep.sweeps.local.fork_server" in (process.info["cmdline"] or []):
            with suppress(psutil.NoSuchProcess):
                if any(file.path == str(run.log) for file in process.open_files()):
                    found.append(process)
    attempt = live_lease(run)
    first = None if attempt is None else attempt.pid
    return sorted(found, key=lambda process: process.pid != first)


def training(run: RunDirectory) -> list[psutil.Process]:
    """Its two processes, once they have saved twice since."""
    begun = run.last_step()
    wait_for(lambda: live_lease(run) and len(ranks(run)) == 2, "two processes", PATIENCE)
    found = ranks(run)
    wait_for(lambda: run.last_step() >= begun + 2 * SAVED, "their steps", PATIENCE)
    return found


@contextmanager
def held(process: psutil.Process) -> Iterator[None]:
    """Stands still, and with it all who work with it, until it has a reason to save and leave."""
    parent = process.ppid()
    process.suspend()
    yield
    wait_for(lambda: terminating(process) or process.ppid() != parent, "a reason", PATIENCE)
    process.resume()


def terminating(process: psutil.Process) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    waiting = [line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd:")]
    return bool(int(waiting[0], 16) >> (signal.SIGTERM - 1) & 1)


def says(driver: subprocess.Popen[str], run: RunDirectory, *expected: str) -> None:
    """``expected`` are the events of its one run, in their order."""
    out, _ = driver.communicate(timeout=PATIENCE)
    told = [line.split() for line in out.splitlines() if line.split()[1:2] == [run.key]]
    assert [" ".join([kind, *why]) for kind, _, *why in told] == list(expected), out
    assert driver.returncode == 0, out


def is_that_of_one_process(ours: RunDirectory, root: Path) -> None:
    result = ours.result()
    assert result is not None
    assert (result["steps"], result["provenance"]["processes"]) == (STEPS, 2)
    alone = made(root)
    run(alone)
    mine, theirs = last_tensors(ours), last_tensors(alone)
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_two_gpus_of_one_machine(tmp_path):
    """One of the processes is killed, then the driver is stopped; the run goes on each time."""
    there, ours = {"cpus": 2, "gpus": 2}, made(tmp_path / "ours")
    driver = start_driver([ours], there, **there)
    training(ours)[1].kill()
    wait_for(lambda: len(ours.attempts()) == 2, "another try", PATIENCE)
    before = ours.last_step()
    with held(training(ours)[1]):
        driver.send_signal(signal.SIGTERM)
    says(driver, ours, "started", "again killed", "started", "interrupted")
    assert ours.status() == "running"
    assert ours.last_step() > before

    says(start_driver([ours], there, **there), ours, "started", "done")
    attempts = ours.attempts()
    assert [attempt["ended"] for attempt in attempts[1:]] == ["interrupted", "done"]
    assert attempts[0]["job"]["launcher"] == "ray"
    assert 0 < attempts[1]["step"] < attempts[2]["step"] < STEPS
    is_that_of_one_process(ours, tmp_path / "alone")


@pytest.fixture
def two_machines() -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """The address of a cluster, and its machines: its head has no cores, the others two each."""
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        port = address.split(":")[1]
        options = ("--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}")
        nodes = [start_node("--head", f"--port={port}", *options)]
        try:
            nodes += [joined(address), joined(address)]
            yield address, nodes
        finally:
            for node in reversed(nodes):
                node.terminate()
                node.wait()


def joined(address: str) -> subprocess.Popen[str]:
    """One more machine."""
    return start_node(f"--address={address}", "--num-cpus=2")


def test_two_machines_of_which_one_is_lost(tmp_path, two_machines):
    """Each has a process, and cores for both."""
    address, nodes = two_machines
    ours = made(tmp_path / "ours")
    driver = start_driver([ours], {"nodes": 2, "cpus": 1}, address=address)
    found = training(ours)
    homes = [home(process, nodes) for process in found]
    assert sorted(homes) == [1, 2]
    saved = ours.last_step()
    # the trial's own actor may be on either: then the loss of the machine is its loss
    with held(found[1]):  # its machine lives, but is none of Ray's any more
        lost = nodes.pop(homes[1])
        raylet(lost).kill()
        lost.wait()
    nodes.append(joined(address))
    says(driver, ours, "started", "again lost_node", "started", "done")
    assert ours.attempts()[1]["step"] >= saved  # they noticed, and saved
    is_that_of_one_process(ours, tmp_path / "alone")


def home(process: psutil.Process, nodes: list[subprocess.Popen[str]]) -> int:
    """Which of the nodes a process is on."""
    above = {parent.pid for parent in process.parents()}
    return next(i for i, node in enumerate(nodes) if raylet(node).pid in above)


def raylet(node: subprocess.Popen[str]) -> psutil.Process:
    """Ray's own process on a machine."""
    return next(p for p in psutil.Process(node.pid).children() if p.name() == "raylet")


# ------------------------------------------------------------------------------ without Ray


def test_the_end_that_counts_is_the_firsts_unless_another_is_the_cause():
    failed, killed = worker.FAILED, -signal.SIGKILL
    assert verdict({1: 0, 0: 0}, None) == worker.DONE
    assert verdict({1: worker.INTERRUPTED, 0: worker.INTERRUPTED}, None) == worker.INTERRUPTED
    assert verdict({0: failed, 1: failed}, None) == failed
    assert verdict({1: failed, 0: worker.SUPERSEDED}, None) == worker.SUPERSEDED
    assert verdict({2: failed, 1: killed, 0: failed}, None) == killed
    assert verdict({1: worker.BAD_INPUT}, None) == worker.BAD_INPUT  # the first waited in vain
    assert verdict({0: worker.DONE}, RuntimeError("the node has died")) == worker.DONE
    for code in (worker.INTERRUPTED, failed, killed):
        with pytest.raises(MachineLost, match="the node has died"):
            verdict({0: code}, RuntimeError("the node has died"))


def test_each_machine_gives_what_is_asked_of_it_and_its_processes_divide_the_cores():
    here = RunDirectory(Path("runs/mine/0123456789ab"))
    asked = Resources(nodes=2, gpus=4, cpus=12, memory_gb=1)
    machines = ResourceRequest({here.key: asked}, None, [])(here)
    assert machines == [{"CPU": 12, "GPU": 4, "memory": 1e9}] * 2
    assert threads(machines[0], None) == 3
    assert threads(machines[0], 2) == 2  # the user's OMP_NUM_THREADS


def test_more_machines_than_there_are_and_rungs_are_refused():
    here = RunDirectory(Path("runs/mine/0123456789ab"))
    asked = {here.key: Resources(nodes=2, gpus=2)}
    large, small = {"CPU": 4, "GPU": 2}, {"CPU": 4, "GPU": 1}
    ResourceRequest(asked, None, [large, small, large]).check([here])
    with pytest.raises(UserError, match=r"asks for 2 machines, and Ray has 1 like it"):
        ResourceRequest(asked, None, [large, small, small]).check([here])
    with pytest.raises(UserError, match=r"asks for 2 GPU, and Ray has 1 here"):
        ResourceRequest(asked, None, [small, small]).check([here])
    with pytest.raises(UserError, match=r"2 nodes, 2 GPUs, .*early stopping is for runs of one"):
        refuse_rungs([here], asked, None)
    refuse_rungs([here], {here.key: Resources(gpus=1)}, None)
