"""Runs that share a job: which of them it has yet to bring to an end; no cluster is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.slurm_commands import Commands, sweep_of

from fewstep.cli.commands.cancel import cancel
from fewstep.cli.commands.status import queued_runs
from fewstep.experiments.store import failures
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps.definition.resources import Resources
from fewstep.sweeps.launcher import Event, OnEvent, Outcome
from fewstep.sweeps.local.worker_pool import WorkerPool
from fewstep.sweeps.slurm import submission
from fewstep.sweeps.slurm.array_task import ArrayTask, ArrayTaskFailed, passed_file
from fewstep.sweeps.slurm.settings import SlurmSettings
from fewstep.sweeps.slurm.submission import Slurm, Submission
from fewstep.sweeps.status import sweep_status


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path / "bin", monkeypatch)


@pytest.fixture
def sweep(tmp_path: Path, commands: Commands) -> SweepDirectory:
    """With three runs in one job, 100, which is at work."""
    made = sweep_of(tmp_path, a=None, b=None, c=None)
    submit(made)
    commands.says("100", "RUNNING")
    return made


def submit(sweep: SweepDirectory, *keys: str) -> list[Submission]:
    runs = [run for run in sweep.runs() if not keys or run.key in keys]
    made = Slurm(sweep, SlurmSettings(finalize=False, runs_per_job=3))
    return made.submit(runs, {run.key: Resources() for run in runs})


def job_of(sweep: SweepDirectory) -> dict[str, str]:
    """In which job each run is pending."""
    return {key: job.id for key, job in Slurm(sweep, SlurmSettings()).queued().items()}


def states(sweep: SweepDirectory) -> list[str]:
    return [run.state for run in sweep_status(sweep, queued_runs(sweep))]


def work(
    sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch, restart: int = 0, launch: object = None
) -> None:
    """Do on the node what job 100 does; ``launch`` in the place of its launcher's."""
    with monkeypatch.context() as there:
        for name, value in {"JOB_ID": "100", "RESTART_COUNT": str(restart)}.items():
            there.setenv(f"SLURM_{name}", value)
        there.setenv("SUBMITIT_EXECUTOR", "slurm")
        if launch is not None:
            there.setattr(WorkerPool, "launch", launch)
        [first, *_] = Slurm(sweep, SlurmSettings()).submissions()
        with pytest.raises(ArrayTaskFailed):
            ArrayTask(str(first.folder), 0)()


def fail(run: RunDirectory, kind: str) -> None:
    run.write("failure", failures.record(run, kind, "its own word"))


def a_fails_and_b_will_be_tried_again(
    launcher: WorkerPool, runs: Sequence[RunDirectory], on_event: OnEvent
) -> Outcome:
    for run, kind in zip(runs, ("failed", "again", "started"), strict=True):
        if kind != "started":
            fail(run, "killed")
        on_event(Event(kind, run), [])
    on_event(Event("tick"), [])
    return Outcome()


def test_a_run_that_its_job_has_passed_has_failed_and_may_be_submitted_anew(
    sweep: SweepDirectory, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert states(sweep) == ["queued"] * 3
    work(sweep, monkeypatch, launch=a_fails_and_b_will_be_tried_again)
    assert states(sweep) == ["failed", "queued", "queued"]
    assert job_of(sweep) == {"b": "100", "c": "100"}
    [made] = submit(sweep)
    assert made.tasks == (("a",),)
    assert job_of(sweep) == {"a": "101", "b": "100", "c": "100"}
    assert states(sweep) == ["queued"] * 3
    assert submit(sweep) == []  # it is in the new job
    commands.says("101", "FAILED")
    assert job_of(sweep) == {"b": "100", "c": "100"}


def test_a_job_that_is_queued_again_comes_to_all_of_its_runs(
    sweep: SweepDirectory, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(sweep, monkeypatch, launch=a_fails_and_b_will_be_tried_again)
    for state in ("PENDING", "RUNNING"):
        commands.says("100", state, restarts=1)
        assert set(job_of(sweep)) == {"a", "b", "c"}
    assert submit(sweep) == []
    work(sweep, monkeypatch, restart=1, launch=a_fails_and_b_will_be_tried_again)
    assert set(job_of(sweep)) == {"b", "c"}


def test_a_finished_run_that_lacks_cells_is_not_left_to_a_job_that_has_passed_it(
    sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(launcher: WorkerPool, runs: Sequence[RunDirectory], on_event: OnEvent) -> Outcome:
        runs[0].write("result", {"provenance": {}})
        on_event(Event("done", runs[0]), [])
        return Outcome()

    work(sweep, monkeypatch, launch=launch)
    monkeypatch.setattr(submission, "is_complete", lambda run: False)
    assert [made.tasks for made in submit(sweep)] == [(("a",),)]


def test_one_that_was_cancelled_in_a_shared_job_is_told_and_taken_up_where_it_is_not_too_late(
    sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel("mine", ["a"], runs=str(sweep.path.parent))
    assert states(sweep) == ["cancelled", "queued", "queued"]
    (sweep.path / "a/cancel").unlink()  # as a sweep that asks for it again does
    assert submit(sweep) == []  # the job has yet to come to it
    assert states(sweep) == ["queued"] * 3
    for run in sweep.runs():  # with the launcher itself, which has nothing to start
        run.cancel.touch()
    work(sweep, monkeypatch)
    assert states(sweep) == ["cancelled"] * 3
    (sweep.path / "a/cancel").unlink()
    assert [made.tasks for made in submit(sweep, "a")] == [(("a",),)]


def test_what_another_task_has_passed_is_its_own_affair(sweep: SweepDirectory) -> None:
    [made] = Slurm(sweep, SlurmSettings()).submissions()
    passed_file(made.folder, 1, 0).write_text("a\n")  # of another task of the array
    assert set(job_of(sweep)) == {"a", "b", "c"}
