"""What users do with a real SLURM cluster, and what goes wrong between."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import TINY, finish, tree, wait_for
from helpers.slurm import PORT, Box, lacking
from helpers.slurm_sweep import SHORT, Sweep, long, same
from helpers.third_party import FLAKY, third_party

from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps.slurm.settings import SlurmSettings
from fewstep.sweeps.slurm.submission import Slurm

pytestmark = pytest.mark.xdist_group("slurm")  # one cluster, in one process


def test_from_submission_to_table(tmp_path: Path, box: Box) -> None:
    cases = "".join(f"  - {{label: c{i}, training.steps: {SHORT + i}}}\n" for i in range(4))
    cases += "  - {label: teacher, training.steps: 30}\n"
    cases += "  - {label: student, objective: scd, teacher: teacher, training.steps: 31}\n"
    sweep = Sweep(tmp_path, box, cases)
    planned = sweep.command("sweep", "mine.yaml", *TINY, "--launcher", "slurm", "--plan")
    assert planned.returncode == 0, planned.stderr
    assert "#SBATCH --partition=low" in planned.stdout
    assert "#SBATCH --dependency=afterok:" in planned.stdout
    assert not (tmp_path / "runs").exists()

    told = sweep.submit("slurm.max_parallel=2")  # arrays here have at most 3 tasks
    assert told.count("submitted job") == 4  # 3 + 1 of the cases, the teacher, the student
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
    assert "6 created" in sweep.log()
    cached = sweep.submit()
    assert "6 cached" in cached
    assert "submitted" not in cached
    shown = sweep.command("logs", sweep.runs["c0"].key)
    assert shown.returncode == 0


def test_packs_share_a_job_and_what_fails_there_need_not_wait_for_its_end(
    tmp_path: Path, box: Box
) -> None:
    third_party(tmp_path / "packages", "raising", FLAKY.format(fault='raise ValueError("why")'))
    cases = f"  - {long('a')}\n  - {{label: b, objective: raising}}\n"
    sweep = Sweep(tmp_path, box, f"{cases}  - {{label: c, training.steps: {SHORT}}}\n")
    sweep.environment["PYTHONPATH"] += f":{tmp_path / 'packages'}"
    words = [
        "slurm.runs_per_job=3",
        "slurm.at_a_time=2",
        "resources.cpus=1",
        "slurm.finalize=false",
    ]
    with sweep.held():
        assert "1 task, 3 runs" in sweep.submit(*words)
        ended = {"a": "running", "b": "failed", "c": "done"}
        wait_for(lambda: sweep.states == ended, "one to fail, another to end")
        assert len({run.attempts()[0]["job"]["id"] for run in sweep.runs.values()}) == 1
        told = sweep.command("status", "mine").stdout
        assert "3 runs: 1 done, 1 running, 1 failed" in told, told
        assert "bug: why" in told
        assert "1 task, 1 run" in sweep.submit(*words)
        wait_for(lambda: len(sweep.runs["b"].attempts()) == 2, "the run to be tried again")
        first, second = (attempt["job"]["id"] for attempt in sweep.runs["b"].attempts())
        assert first == sweep.job("a")["id"] != second
    sweep.wait()
    assert sweep.states == {**ended, "a": "done"}, sweep.log()


def test_cancelled_jobs_are_told_and_can_be_continued(
    tmp_path: Path, box: Box, undisturbed: RunDirectory
) -> None:
    sweep = Sweep(tmp_path, box, f"  - {long('a')}\n  - {{label: b, training.steps: {SHORT}}}\n")
    sweep.submit("slurm.finalize=false", "slurm.max_parallel=1")
    wait_for(sweep.training("a"), "a run at work")
    box.run("scancel", sweep.job("a")["id"].split("_")[0])
    sweep.wait()
    shown = sweep.command("status", "mine").stdout
    assert "2 runs: 2 cancelled" in shown, shown + sweep.log()
    assert "cancelled before it began" in shown
    assert sweep.runs["a"].failure()["class"] == "cancelled"
    assert list(sweep.runs["a"].checkpoints.glob("step-*"))
    with sweep.held():
        sweep.submit("slurm.finalize=false")
        wait_for(sweep.training("a", 80), "the run at work again")
        done = sweep.command("cancel", "mine")  # and by our own command
    assert done.returncode == 0, done.stderr
    sweep.wait()
    sweep.command("status", "mine")  # on a busy machine it may be killed before it says so itself
    assert {run.failure()["class"] for run in sweep.runs.values() if run.failure()} == {"cancelled"}
    sweep.submit("slurm.finalize=false")
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
    sweep.submit("slurm.finalize=false", f"training.steps={SHORT}")
    sweep.wait()
    found = {case: (run.failure() or {}).get("class") for case, run in sweep.runs.items()}
    assert found == {"bug": "bug", "oom": "oom", "nan": "nan", "well": None}, sweep.log()
    assert sweep.states["well"] == "done"
    failure = sweep.runs["bug"].failure()
    assert failure["message"] == "what is this?"
    assert "ValueError" in failure["traceback"]
    assert "MemoryError" in sweep.runs["oom"].failure()["traceback"]
    # a second launch tries the bug again, and leaves what would only fail again
    told = sweep.submit("slurm.finalize=false", f"training.steps={SHORT}")
    assert "not retried: 2 failed runs (1 nan, 1 oom)" in told
    assert "1 task, 1 run" in told
    sweep.wait()
    asked = sweep.command("retry", "mine", "--class", "oom")
    assert "retrying 1 failed run (slurm)" in asked.stdout, asked.stderr
    sweep.wait()
    assert len(sweep.runs["oom"].attempts()) == 2
    assert len(sweep.runs["nan"].attempts()) == 1


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
    again = sweep.submit("slurm.finalize=false")
    assert "submitted" not in again, again
    sweep.wait()
    assert sweep.states == {"a": "done", "b": "done"}, sweep.log()
    assert [len(run.attempts()) for run in sweep.runs.values()] == [1, 1]


def test_two_people_submit_the_same_sweep_at_once(tmp_path: Path, box: Box) -> None:
    cases = "".join(f"  - {{label: c{i}, training.steps: {SHORT + i}}}\n" for i in range(3))
    folder = tmp_path / "50% of it"  # where SLURM would read more than there is
    folder.mkdir()
    sweep = Sweep(folder, box, cases)
    words = ["sweep", "mine.yaml", *TINY, "--launcher", "slurm", "slurm.finalize=false"]
    words.append("resources.cpus=1")
    sweep.environment.pop("OMP_NUM_THREADS")
    both = [finish(p) for p in [sweep.start(*words), sweep.start(*words)]]
    assert [done.returncode for done in both] == [0, 0], both
    assert sum("submitted job" in done.stdout for done in both) == 1
    sweep.wait()
    assert set(sweep.states.values()) == {"done"}, sweep.log()
    assert [len(run.attempts()) for run in sweep.runs.values()] == [1, 1, 1]
    [made] = Slurm(SweepDirectory(folder / "runs/mine"), SlurmSettings()).submissions()
    assert all("1 run" in made.log(i).read_text() for i in range(3))
    # of the cores that this cluster, as many, shows to each of its jobs, they take what is theirs
    assert {run.result()["provenance"]["threads"] for run in sweep.runs.values()} == {1}


def test_without_accounting(tmp_path: Path, undisturbed: RunDirectory) -> None:
    """No slurmdbd, no sacct: as on many small clusters."""
    if why := lacking():
        pytest.skip(why)
    state = Path(tempfile.mkdtemp(prefix="fsbox", dir="/tmp"))
    bare = Box(state, accounting=0, port=PORT + 500, nodes=2)
    try:
        bare.up()
        cases = f"  - {{label: a, training.steps: {SHORT}}}\n  - {long('b')}\n"
        sweep = Sweep(tmp_path, bare, cases)
        with sweep.held():
            sweep.submit("slurm.finalize=false")
            wait_for(sweep.training("b"), "a run at work")
            assert "submitted" not in sweep.submit()
            bare.run("scancel", sweep.job("b")["id"])
        sweep.wait()
        assert "1 done, 1 cancelled" in sweep.command("status", "mine").stdout, sweep.log()
        assert "1 task, 1 run" in sweep.submit("slurm.finalize=false")
        sweep.wait()
        assert sweep.states == {"a": "done", "b": "done"}, sweep.log()
        same(sweep.runs["b"], undisturbed)
    finally:
        bare.down()
        shutil.rmtree(state, ignore_errors=True)


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
    told = sweep.submit("slurm.finalize=false")
    assert "1 task, 1 run" in told
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
