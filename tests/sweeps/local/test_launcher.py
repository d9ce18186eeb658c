"""The local launcher with real processes: failures, kills, Ctrl-C, a dead driver, two drivers."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from helpers.commands import TINY, fewstep, finish, start, succeed, tree, wait_for
from helpers.slurm_commands import began, sweep_of
from helpers.third_party import SLOW, held, third_party

from fewstep.experiments.store import failures
from fewstep.experiments.store.lease import RunLease
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps import cpu_threads as threads
from fewstep.sweeps.cpu_threads import cores
from fewstep.sweeps.launcher import is_cancelled
from fewstep.sweeps.local.worker_pool import slots

BASE = "base: {evaluation.steps: [], tracking.enabled: false, training.log_every: 20}\n"
OVERRIDES = (*TINY, "--workers", 2)


ROWS = [*range(20, 141, 20)]  # of the curves of runs of 150 and 151 steps, but the last


def slow(folder: Path) -> dict[str, str]:
    """The environment in which there is the slow objective, which ``held(folder)`` holds."""
    third_party(folder / "slow", "slow", SLOW)
    return {"PYTHONPATH": str(folder / "slow"), "HELD": str(folder)}


def runs(folder: Path) -> dict[str, RunDirectory]:
    """The members of ``runs/mine`` by the label of their case."""
    sweep = SweepDirectory(folder / "runs/mine")
    plan = sweep.plan()
    assert plan is not None
    return {m["choices"]["case"]: RunDirectory(sweep.path / m["key"]) for m in plan["runs"]}


def begun(folder: Path) -> list[int]:
    """Process ids of the runs that are training now."""
    if not (folder / "runs/mine/sweep.json").exists():
        return []
    told = [run.progress() for run in runs(folder).values() if run.status() == "running"]
    return [p["pid"] for p in told if p and p["done"] and psutil.pid_exists(p["pid"])]


def told_in_status(folder: Path) -> list[str]:
    """The state of each run, as ``fewstep status`` shows it."""
    lines = succeed("status", "mine", cwd=folder).splitlines()
    states = ("done", "running", "interrupted", "failed", "cancelled", "new")
    rows = [line.split() for line in lines[1 : 1 + len(runs(folder))]]
    return [word for row in rows for word in row[1:] if word in states]


def test_nan_and_killed_runs_leave_the_others_alone(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        BASE + "axes:\n  case:\n"
        "  - {label: bad, training.lr: 1e30}\n"
        "  - {label: victim, objective: slow, training.steps: 150, training.checkpoint_every: 20}\n"
        "  - {label: first, training.steps: 20}\n"
        "  - {label: second, training.steps: 30}\n"
    )
    more = slow(tmp_path)
    with held(tmp_path, 150):
        driver = start("sweep", "mine.yaml", *OVERRIDES, cwd=tmp_path, **more)
        wait_for(lambda: (tmp_path / "runs/mine/sweep.json").exists(), "the plan")
        found = runs(tmp_path)
        victim = found["victim"]
        wait_for(lambda: list(victim.checkpoints.glob("step-*100")), "a checkpoint")
        first_step = victim.metrics_file.read_text().splitlines()[0]
        os.kill(victim.progress()["pid"], signal.SIGKILL)
    done = finish(driver)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr

    assert {name: run.status() for name, run in found.items()} == {
        "bad": "failed",
        "victim": "done",
        "first": "done",
        "second": "done",
    }
    bad = found["bad"].failure()
    assert (bad["class"], bad["step"]) == ("nan", 2)
    assert "NotFinite" in bad["traceback"]
    assert any("is not finite at step 2" in line for line in bad["log_tail"] + [bad["message"]])
    assert f"failed case=bad seed=0 ({found['bad'].key}): nan: " in done.stdout
    # who was killed is tried once more, from its checkpoint: the first line is the killed one's own
    assert f"again case=victim seed=0 ({victim.key}): killed: killed by SIGKILL" in done.stdout
    assert victim.failure() is None
    assert [row["step"] for row in victim.metrics()] == [*ROWS, 150]
    assert victim.metrics_file.read_text().splitlines()[0] == first_step
    killed, second = victim.attempts()
    assert "ended" not in killed
    assert second["ended"] == "done"
    assert sorted(told_in_status(tmp_path)) == ["done", "done", "done", "failed"]
    assert "failed" in (tmp_path / "runs/mine/report/runs.csv").read_text()

    before = {name: tree(run.path) for name, run in found.items()}
    again = fewstep("sweep", "mine.yaml", *OVERRIDES, cwd=tmp_path, **more)
    assert again.returncode == 1
    assert "not retried: 1 failed run (1 nan); fewstep retry mine" in again.stdout
    assert {name: tree(found[name].path) for name in before} == before
    retried = fewstep("retry", "mine", "--class", "nan", cwd=tmp_path, **more)
    assert retried.returncode == 1
    assert "started case=bad" in retried.stdout
    assert found["bad"].failure()["finished"] >= bad["finished"]
    assert len(found["bad"].attempts()) == 2
    assert "no failed runs of class oom" in succeed("retry", "mine", "--class", "oom", cwd=tmp_path)


def test_cancelled_runs_save_and_are_continued(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        BASE + "axes:\n  case:\n"
        "  - {label: a, training.steps: 100000}\n  - {label: b, training.steps: 100001}\n"
        "  - {label: c, training.steps: 100002}\n"
    )
    driver = start("sweep", "mine.yaml", *TINY, "--workers", 1, cwd=tmp_path)
    wait_for(lambda: begun(tmp_path), "a run at work")
    found = runs(tmp_path)
    wrong = fewstep("cancel", "mine", "--run", "nothing", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "cancelling 1 run of mine" in succeed(
        "cancel", "mine", "--run", found["a"].key, cwd=tmp_path
    )
    wait_for(lambda: found["a"].status() == "failed", "the run to stop")
    assert found["a"].failure()["class"] == "cancelled"
    assert list(found["a"].checkpoints.glob("step-*"))
    wait_for(lambda: begun(tmp_path), "the other run at work")
    succeed("cancel", "mine", cwd=tmp_path)
    assert finish(driver).returncode == 1
    assert told_in_status(tmp_path) == ["cancelled"] * 3
    assert found["c"].failure()["message"] == "cancelled before it began"
    assert not found["c"].attempts()
    saved = found["a"].failure()["step"]
    driver = start("sweep", "mine.yaml", *TINY, "--workers", 1, cwd=tmp_path)
    wait_for(lambda: (found["a"].progress() or {}).get("done", 0) > saved, "it to go on")
    driver.send_signal(signal.SIGTERM)
    finish(driver)


@pytest.fixture
def long_sweep(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(
        BASE + "axes:\n  case:\n"
        "  - {label: a, objective: slow, training.steps: 150}\n"
        "  - {label: b, objective: slow, training.steps: 151}\n"
        "  - {label: c, training.steps: 10}\n"
    )
    return tmp_path


def workers_of(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """The driver's processes, those that have only just started included."""
    return psutil.Process(driver.pid).children(recursive=True)


def test_interrupted_sweeps_leave_no_process_and_go_on(long_sweep):
    command = ("sweep", "mine.yaml", *OVERRIDES)
    more = slow(long_sweep)
    with held(long_sweep, 150, 151):
        # the driver is killed: its workers notice, save and leave
        driver = start(*command, cwd=long_sweep, **more)
        wait_for(lambda: begun(long_sweep), "a run at work")
        workers = workers_of(driver)
        assert workers
        driver.kill()
        finish(driver)
        wait_for(lambda: not any(w.is_running() for w in workers), "the orphans to leave")
        states = told_in_status(long_sweep)
        assert "interrupted" in states
        assert not {"running", "failed", "done"} & set(states)

        # Ctrl-C: the runs save and leave, the driver says how to go on
        driver = start(*command, cwd=long_sweep, **more)
        wait_for(lambda: begun(long_sweep), "a run at work again")
        workers = workers_of(driver)
        driver.send_signal(signal.SIGINT)
        done = finish(driver)
        assert done.returncode == 130, done.stdout + done.stderr
        assert done.stderr == "interrupted: 3 runs; the same command resumes the sweep\n"
        assert not any(w.is_running() for w in workers)
        states = told_in_status(long_sweep)
        assert "interrupted" in states
        assert not {"running", "failed", "done"} & set(states)
        assert not (long_sweep / "runs/mine/report").exists()
        left = [r for r in runs(long_sweep).values() if r.status() == "running"]
        assert all(list(run.checkpoints.glob("step-*")) for run in left)

        # two drivers share what is left
        first = start(*command, cwd=long_sweep, **more)
        wait_for(lambda: len(begun(long_sweep)) == 2, "both runs at work once more")
        second = start(*command, cwd=long_sweep, **more)
        assert second.stdout is not None
        assert any(
            line.startswith("waiting for case=") for line in iter(second.stdout.readline, "")
        )
    for ended in (finish(first), finish(second)):
        assert ended.returncode == 0, ended.stdout + ended.stderr
    for name, last in (("a", [*ROWS, 150]), ("b", [*ROWS, 151]), ("c", [10])):
        run = runs(long_sweep)[name]
        assert run.status() == "done"
        assert run.failure() is None
        assert [row["step"] for row in run.metrics()] == last
        assert "failed" not in run.log.read_text()


def test_a_run_that_another_process_has_is_waited_for(long_sweep):
    more = slow(long_sweep)
    succeed("sweep", "mine.yaml", *OVERRIDES, "case=c", cwd=long_sweep, **more)
    done = runs(long_sweep)["c"]
    (done.path / "result.json").unlink()
    with RunLease(done):  # as a worker of another driver holds it
        driver = start("sweep", "mine.yaml", *OVERRIDES, "case=c", cwd=long_sweep, **more)
        assert driver.stdout is not None
        told = [driver.stdout.readline() for _ in range(2)]
        assert told[1] == f"waiting for case=c seed=0 ({done.key}): another process has it\n"
        assert told_in_status(long_sweep) == ["running"]
        assert not done.failure()
    ended = finish(driver)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"started case=c seed=0 ({done.key})\ndone case=c")
    assert done.status() == "done"


def test_what_a_cancelled_run_says_itself_stands(tmp_path):
    new, older, stopped = sweep_of(tmp_path, new=None, older=None, stopped=None).runs()
    assert not is_cancelled(stopped)
    for run, kind in ((older, "bug"), (stopped, "cancelled")):
        began(run, None)
        run.write("failure", failures.record(run, kind, "its own word"))
    for run in (new, older, stopped):
        run.cancel.touch()
        assert is_cancelled(run)
    told = [run.failure()["message"] for run in (new, older, stopped)]
    assert told == ["cancelled before it began", "cancelled before it resumed", "its own word"]


def test_cores_are_divided_among_the_workers(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [slot.threads for slot in slots(8, 1)] == [cores()]
    assert [slot.threads for slot in slots(8, cores())] == [1] * cores()
    assert len(slots(1, 4)) == 1  # not more workers than runs
    assert all(slot.threads == 1 for slot in slots(64, 2 * cores()))


def test_a_process_has_the_threads_of_its_share_and_no_more_than_it_may(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 40)
    for share, told, number in [
        (8, None, 8), (2.5, None, 2), (0.5, None, 1), (64, None, 40),
        (8, "3", 3), (8, "3,1", 3), (8, "32", 8), (8, "many", 8), (8, "0", 1),
    ]:  # fmt: skip
        monkeypatch.setenv("OMP_NUM_THREADS", told or "")
        assert threads.threads(share) == number
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [slot.threads for slot in slots(3, 2, cpus=5)] == [5, 5]  # not the machine's
