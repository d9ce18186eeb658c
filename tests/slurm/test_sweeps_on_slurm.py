"""Sweeps on a real SLURM cluster: what a user does, and what a cluster does to him."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers.commands import TINY, environment, finish, tree, wait_for
from helpers.slurm import Box, lacking
from safetensors.torch import load_file
from torch import Tensor

from fewstep.experiments.rundir import RunDirectory, SweepDirectory

pytestmark = pytest.mark.xdist_group("slurm")  # one cluster, in one process

BASE = (
    "base: {evaluation.steps: [1], training.log_every: 20, training.checkpoint_every: 20,"
    " evaluation.samples: 100}\n"
    "resources: {cpus: 2, memory_gb: 1}\n"
    "slurm: {partition: low, save_seconds: 20, hours: 1}\n"
)
LONG, SHORT = 300, 20
NAP = 0.04  # seconds a step of the long run takes on the cluster

# a run that lasts, leaves the processors to others, and waits for the test where it must
SLOW = """
import os, time
from dataclasses import dataclass
from pathlib import Path
from fewstep.objectives import FlowMatching

@dataclass(frozen=True)
class Slow(FlowMatching):
    def loss(self, nets, batch, progress, g):
        time.sleep(float(os.environ.get("NAP", 0)))
        held = Path(os.environ.get("HELD", ""), f"steps-{progress.total}")
        while progress.step >= 100 and held.exists():
            time.sleep(0.02)
        return super().loss(nets, batch, progress, g)
"""
FLAKY = """
from dataclasses import dataclass
from fewstep.objectives import FlowMatching

@dataclass(frozen=True)
class Flaky(FlowMatching):
    def loss(self, nets, batch, progress, g):
        if progress.step == 3:
            {fault}
        return super().loss(nets, batch, progress, g)
"""


def third_party(folder: Path, name: str, code: str) -> None:
    """An installed package with an objective ``name``, the last class of ``code``."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}_mod.py").write_text(code)
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    last = code.rsplit("class ", 1)[1].split("(")[0]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[fewstep.objectives]\n{name} = {name}_mod:{last}\n")


class Sweep:
    """A sweep file in a folder of its own, and the commands on it."""

    def __init__(self, folder: Path, box: Box, cases: str, base: str = BASE) -> None:
        self.folder, self.box = folder, box
        third_party(folder / "slow", "slow", SLOW)
        slow = {"PYTHONPATH": f"{folder}/slow", "NAP": str(NAP), "HELD": str(folder)}
        self.environment = {**box.environment, **slow}
        (folder / "mine.yaml").write_text(f"{base}axes:\n  case:\n{cases}")

    def command(self, *words: object) -> subprocess.CompletedProcess[str]:
        return finish(self.start(*words))

    def start(self, *words: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "fewstep", *map(str, words)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def submit(self, *words: object) -> str:
        done = self.command("sweep", "mine.yaml", *TINY, "--launcher", "slurm", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def runs(self) -> dict[str, RunDirectory]:
        sweep = SweepDirectory(self.folder / "runs/mine")
        plan = sweep.plan()
        assert plan is not None
        return {m["choices"]["case"]: RunDirectory(sweep.path / m["key"]) for m in plan["runs"]}

    @property
    def states(self) -> dict[str, str]:
        return {case: run.status() for case, run in self.runs.items()}

    def job(self, case: str) -> dict[str, str]:
        """What the attempt that has the run says of its job."""
        claim = json.loads(self.runs[case].claim.read_text())
        return claim["job"]

    def training(self, case: str, step: int = 40) -> Callable[[], bool]:
        """Whether the run has come to ``step``, and is at work."""

        def holds() -> bool:
            run = self.runs[case]
            progress = run.progress()
            return bool(progress and progress["done"] >= step and run.claim.exists())

        return holds

    @contextmanager
    def held(self, steps: int = LONG) -> Iterator[None]:
        """Meanwhile no run of so many steps gets beyond its hundredth."""
        hold = self.folder / f"steps-{steps}"
        hold.touch()
        try:
            yield
        finally:
            hold.unlink(missing_ok=True)

    def wait(self, seconds: float = 300) -> None:
        """Until every job is over."""
        wait_for(lambda: not self.box.run("squeue", "-h").strip(), "the queue to be empty", seconds)

    def log(self) -> str:
        """Everything the jobs printed."""
        logs = sorted((self.folder / "runs/mine/_slurm").glob("*/*.out"))
        return "\n".join(f"--- {f.name}\n{f.read_text()}" for f in logs)


def weights(run: RunDirectory) -> dict[str, Tensor]:
    return load_file(sorted(run.checkpoints.glob("step-*"))[-1] / "tensors.safetensors")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The long run, done on this machine without interruption."""
    folder = tmp_path_factory.mktemp("undisturbed")
    third_party(folder / "slow", "slow", SLOW)
    (folder / "mine.yaml").write_text(f"{BASE}axes:\n  case:\n  - {long('a')}\n")
    words = ["sweep", "mine.yaml", *TINY, "tracking.enabled=false"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fewstep", *words],
        cwd=folder,
        env={**environment(), "PYTHONPATH": f"{folder}/slow"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [run] = SweepDirectory(folder / "runs/mine").runs()
    return run


def long(case: str) -> str:
    return f"{{label: {case}, objective: slow, training.steps: {LONG}}}"


def same(run: RunDirectory, reference: RunDirectory) -> None:
    """Bit-identical: weights, optimiser, curves, the evaluated cell."""
    assert run.status() == "done"
    mine, theirs = weights(run), weights(reference)
    assert mine.keys() == theirs.keys()
    assert all(mine[name].equal(theirs[name]) for name in mine)

    def curve(r: RunDirectory) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in r.metrics()]

    assert curve(run) == curve(reference)
    assert [c["value"] for c in run.cells().values()] == [
        c["value"] for c in reference.cells().values()
    ]


# ------------------------------------------------------------------------- what a user does


def test_from_submission_to_table(tmp_path: Path, box: Box) -> None:
    cases = "".join(f"  - {{label: c{i}, training.steps: {SHORT + i}}}\n" for i in range(6))
    cases += "  - {label: teacher, training.steps: 30}\n"
    cases += "  - {label: student, objective: scd, teacher: teacher, training.steps: 31}\n"
    sweep = Sweep(tmp_path, box, cases)
    planned = sweep.command("sweep", "mine.yaml", *TINY, "--launcher", "slurm", "--plan")
    assert planned.returncode == 0, planned.stderr
    assert "#SBATCH --partition=low" in planned.stdout
    assert "#SBATCH --dependency=afterok:" in planned.stdout
    assert not (tmp_path / "runs").exists()

    told = sweep.submit("slurm.max_parallel=3")  # arrays here have at most 5 tasks
    assert told.count("submitted job") == 4  # 5 + 1 of the cases, the teacher, the student
    queued = sweep.command("status", "mine")
    assert " queued " in queued.stdout or " running " in queued.stdout, queued.stdout
    again = sweep.submit()
    assert "submitted" not in again
    sweep.wait()
    assert set(sweep.states.values()) == {"done"}, sweep.log()
    assert all(len(run.attempts()) == 1 for run in sweep.runs.values())
    teacher, student = sweep.runs["teacher"].attempts()[0], sweep.runs["student"].attempts()[0]
    assert student["begun"] >= teacher["begun"]
    # the collector, after all others
    assert (tmp_path / "runs/mine/report/table.md").exists(), sweep.log()
    assert "8 created" in sweep.log()
    cached = sweep.submit()
    assert "8 cached" in cached
    assert "submitted" not in cached
    shown = sweep.command("logs", sweep.runs["c0"].key)
    assert shown.returncode == 0


def test_packs_share_a_job(tmp_path: Path, box: Box) -> None:
    cases = "".join(f"  - {{label: c{i}, training.steps: {SHORT + i}}}\n" for i in range(3))
    sweep = Sweep(tmp_path, box, cases)
    packed = ["slurm.runs_per_job=3", "slurm.at_a_time=2", "resources.cpus=1"]
    told = sweep.submit(*packed, "slurm.collect=false")
    assert "1 tasks, 3 runs" in told
    sweep.wait()
    assert set(sweep.states.values()) == {"done"}, sweep.log()
    assert len({run.attempts()[0]["job"]["id"] for run in sweep.runs.values()}) == 1


# ------------------------------------------------------------------------- what a cluster does


def test_preempted_it_saves_and_goes_on(
    tmp_path: Path, box: Box, undisturbed: RunDirectory
) -> None:
    sweep = Sweep(tmp_path, box, f"  - {long('a')}\n")
    sweep.submit("slurm.collect=false")
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
    sweep.submit("slurm.collect=false", f"slurm.python={slow}")
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
    sweep.submit("slurm.collect=false", "slurm.hours=0.016", "slurm.save_seconds=52")
    sweep.wait()
    same(sweep.runs["a"], undisturbed)
    attempts = sweep.runs["a"].attempts()
    assert len(attempts) > 1
    assert {a["ended"] for a in attempts[:-1]} == {"interrupted"}


def test_a_lost_node_costs_no_run(tmp_path: Path, box: Box, undisturbed: RunDirectory) -> None:
    sweep = Sweep(tmp_path, box, f"  - {long('a')}\n")
    sweep.submit("slurm.collect=false")
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
    sweep.submit("slurm.collect=false")
    wait_for(sweep.training("a"), "a run at work")
    node = sweep.job("a")["node"]
    ghost = json.loads(sweep.runs["a"].claim.read_text())
    box.node("drop", node, "now")  # its tasks go on
    assert Path(f"/proc/{ghost['pid']}").exists()
    sweep.wait()
    same(sweep.runs["a"], undisturbed)
    first, second = sweep.runs["a"].attempts()
    assert first["token"] == ghost["token"]
    assert first["ended"].startswith("a newer attempt has")
    assert second["job"]["restart"] == 1
    wait_for(lambda: not Path(f"/proc/{ghost['pid']}").exists(), "the ghost to leave")
    assert sweep.runs["a"].failure() is None


def test_cancelled_jobs_are_told_and_can_be_continued(
    tmp_path: Path, box: Box, undisturbed: RunDirectory
) -> None:
    sweep = Sweep(tmp_path, box, f"  - {long('a')}\n  - {{label: b, training.steps: {SHORT}}}\n")
    sweep.submit("slurm.collect=false", "slurm.max_parallel=1")
    wait_for(sweep.training("a"), "a run at work")
    box.run("scancel", sweep.job("a")["id"].split("_")[0])
    sweep.wait()
    shown = sweep.command("status", "mine").stdout
    assert "2 runs: 2 cancelled" in shown, shown + sweep.log()
    assert "cancelled before it began" in shown
    assert sweep.runs["a"].failure()["class"] == "cancelled"
    assert list(sweep.runs["a"].checkpoints.glob("step-*"))
    with sweep.held():
        sweep.submit("slurm.collect=false")
        wait_for(sweep.training("a", 80), "the run at work again")
        done = sweep.command("cancel", "mine")  # and by our own command
    assert done.returncode == 0, done.stderr
    sweep.wait()
    sweep.command("status", "mine")  # on a busy machine it may be killed before it says so itself
    assert {run.failure()["class"] for run in sweep.runs.values() if run.failure()} == {"cancelled"}
    sweep.submit("slurm.collect=false")
    sweep.wait()
    same(sweep.runs["a"], undisturbed)
    assert sweep.states == {"a": "done", "b": "done"}


def test_failures_have_classes_and_leave_the_others_alone(tmp_path: Path, box: Box) -> None:
    packages = tmp_path / "packages"
    third_party(packages, "raising", FLAKY.format(fault='raise ValueError("what is this?")'))
    third_party(packages, "greedy", FLAKY.format(fault="bytearray(2**62)"))
    cases = (
        "  - {label: bug, objective: raising}\n  - {label: oom, objective: greedy}\n"
        "  - {label: nan, training.lr: 1e30}\n  - {label: well}\n"
    )
    sweep = Sweep(tmp_path, box, cases)
    sweep.environment["PYTHONPATH"] += f":{packages}"
    sweep.submit("slurm.collect=false", f"training.steps={SHORT}")
    sweep.wait()
    found = {case: (run.failure() or {}).get("class") for case, run in sweep.runs.items()}
    assert found == {"bug": "bug", "oom": "oom", "nan": "nan", "well": None}, sweep.log()
    assert sweep.states["well"] == "done"
    failure = sweep.runs["bug"].failure()
    assert failure["message"] == "what is this?"
    assert "ValueError" in failure["traceback"]
    assert "MemoryError" in sweep.runs["oom"].failure()["traceback"]
    # a second launch tries the bug again, and leaves what would only fail again
    told = sweep.submit("slurm.collect=false", f"training.steps={SHORT}")
    assert "2 failed runs are left as they are (1 nan, 1 oom)" in told
    assert "1 tasks, 1 runs" in told
    sweep.wait()
    asked = sweep.command("retry", "mine", "--class", "oom")
    assert "1 failed runs are tried again (slurm)" in asked.stdout, asked.stderr
    sweep.wait()
    assert len(sweep.runs["oom"].attempts()) == 2
    assert len(sweep.runs["nan"].attempts()) == 1


# ------------------------------------------------------------------------- what goes wrong between


def test_a_submitter_that_dies_after_sbatch_leaves_no_orphan(tmp_path: Path, box: Box) -> None:
    sweep = Sweep(tmp_path, box, f"  - {{label: a, training.steps: {SHORT}}}\n  - {long('b')}\n")
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True).stdout.strip()
    wrapper = tmp_path / "bin/sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\n{real} "$@" > /dev/null\nkill -9 $PPID\n')
    wrapper.chmod(0o755)
    before = dict(sweep.environment)
    sweep.environment["PATH"] = f"{wrapper.parent}:{before['PATH']}"
    killed = sweep.command("sweep", "mine.yaml", *TINY, "--launcher", "slurm")
    assert killed.returncode == -9
    sweep.environment = before
    again = sweep.submit("slurm.collect=false")
    assert "submitted" not in again, again
    sweep.wait()
    assert sweep.states == {"a": "done", "b": "done"}, sweep.log()
    assert [len(run.attempts()) for run in sweep.runs.values()] == [1, 1]


def test_two_people_submit_the_same_sweep_at_once(tmp_path: Path, box: Box) -> None:
    cases = "".join(f"  - {{label: c{i}, training.steps: {SHORT + i}}}\n" for i in range(3))
    sweep = Sweep(tmp_path, box, cases)
    words = ["sweep", "mine.yaml", *TINY, "--launcher", "slurm", "slurm.collect=false"]
    both = [finish(p) for p in [sweep.start(*words), sweep.start(*words)]]
    assert [done.returncode for done in both] == [0, 0], both
    assert sum("submitted job" in done.stdout for done in both) == 1
    sweep.wait()
    assert set(sweep.states.values()) == {"done"}, sweep.log()
    assert [len(run.attempts()) for run in sweep.runs.values()] == [1, 1, 1]


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


def test_without_accounting(tmp_path: Path, undisturbed: RunDirectory) -> None:
    """No slurmdbd, no sacct: as on many small clusters."""
    if why := lacking():
        pytest.skip(why)
    state = Path(tempfile.mkdtemp(prefix="fsbox", dir="/tmp"))
    bare = Box(state, accounting=0, port=18817, nodes=2)
    try:
        bare.up()
        cases = f"  - {{label: a, training.steps: {SHORT}}}\n  - {long('b')}\n"
        sweep = Sweep(tmp_path, bare, cases)
        with sweep.held():
            sweep.submit("slurm.collect=false")
            wait_for(sweep.training("b"), "a run at work")
            assert "submitted" not in sweep.submit()
            bare.run("scancel", sweep.job("b")["id"])
        sweep.wait()
        assert "1 done, 1 cancelled" in sweep.command("status", "mine").stdout, sweep.log()
        assert "1 tasks, 1 runs" in sweep.submit("slurm.collect=false")
        sweep.wait()
        assert sweep.states == {"a": "done", "b": "done"}, sweep.log()
        same(sweep.runs["b"], undisturbed)
    finally:
        bare.down()
        shutil.rmtree(state, ignore_errors=True)


def test_one_run_on_two_nodes(tmp_path: Path, box: Box, undisturbed: RunDirectory) -> None:
    sweep = Sweep(tmp_path, box, f"  - {long('a')}\n")
    sweep.submit("slurm.collect=false", "resources.nodes=2", "resources.cpus=1")
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


def test_one_sweep_on_three_launchers(tmp_path: Path, box: Box, undisturbed: RunDirectory) -> None:
    """Begun here, continued on Ray, ended on SLURM; what is finished is never repeated."""
    cases = f"  - {{label: short, training.steps: {SHORT}}}\n  - {long('a')}\n"
    cases += "  - {label: last, objective: slow, training.steps: 320}\n"
    sweep = Sweep(tmp_path, box, cases)

    def interrupted(launcher: str, at: Callable[[], bool]) -> None:
        words = ["sweep", "mine.yaml", *TINY, "--launcher", launcher, "resources.cpus=1"]
        driver = sweep.start(*words, *(["--workers", "1"] if launcher == "local" else []))
        wait_for(at, f"the moment to interrupt {launcher}", 240)
        driver.send_signal(signal.SIGINT)
        (tmp_path / "steps-320").unlink(missing_ok=True)
        done = finish(driver)
        assert done.returncode == 130, done.stdout + done.stderr

    runs = lambda: sweep.runs if (tmp_path / "runs/mine/sweep.json").exists() else {}  # noqa: E731
    interrupted("local", lambda: bool(runs()) and sweep.training("a")())
    assert sweep.states == {"short": "done", "a": "running", "last": "new"}
    short = tree(sweep.runs["short"].path)
    with sweep.held(320):
        interrupted("ray", lambda: sweep.states["a"] == "done" and sweep.training("last")())
    told = sweep.submit("slurm.collect=false")
    assert "1 tasks, 1 runs" in told
    sweep.wait()
    assert set(sweep.states.values()) == {"done"}, sweep.log()
    same(sweep.runs["a"], undisturbed)
    assert tree(sweep.runs["short"].path) == short
    begun = {
        case: [(a.get("job") or {}).get("launcher", "local") for a in run.attempts()]
        for case, run in sweep.runs.items()
    }
    assert begun["short"] == ["local"]
    assert begun["a"] == ["local", "ray"]
    assert begun["last"] == ["ray", "slurm"]
