"""Following runs that nobody is at work on, and where they are told to be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.commands import TINY
from helpers.slurm_commands import sweep_of

from fewstep.cli.commands import logs as command
from fewstep.cli.commands import status
from fewstep.cli.commands.cancel import cancel
from fewstep.cli.commands.sweep import launch, retry
from fewstep.cli.views.status_table import digits
from fewstep.errors import UserError
from fewstep.experiments.config.run_config import compose
from fewstep.experiments.early_stopping import mark_stopped
from fewstep.experiments.run import prepare
from fewstep.experiments.store import failures
from fewstep.experiments.store.json_files import write_json
from fewstep.experiments.store.lease import RunLease
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps.launch_record import failed
from fewstep.sweeps.launcher import LaunchRequest, Outcome, launcher
from fewstep.sweeps.slurm.submission import Slurm, Submitted
from fewstep.sweeps.status import run_status


@pytest.fixture
def begun(tmp_path: Path) -> RunDirectory:
    """A run that saved step 120 as it was told to leave; progress.json is a little older."""
    run = prepare(compose([*TINY, "training.steps=500", ("runs", str(tmp_path / "runs"))]))
    (run.checkpoints / "step-00000120").mkdir(parents=True)
    run.write("progress", {"phase": "train", "done": 100, "total": 500, "rate": 9.0, "time": 0})
    run.log.write_text("a line\n")
    members = [{"key": run.key, "seed": 0, "title": "one", "choices": {}}]
    write_json(run.path.parent / "sweep.json", {"name": "train", "axes": [], "runs": members})
    return run


def test_the_step_of_a_run_that_left_is_the_one_it_saved(begun):
    assert (run_status(begun).state, run_status(begun).step) == ("interrupted", 120)
    record = failures.record(begun, "cancelled", "cancelled before it ended")
    assert record["step"] == 120
    begun.write("failure", {**record, "step": 100})  # as of versions before
    assert (run_status(begun).state, run_status(begun).step) == ("cancelled", 120)
    begun.write("failure", failures.record(begun, "nan", "not finite", step=130))
    assert run_status(begun).step == 130  # beyond what was saved


def test_the_time_left_is_that_of_the_phase_and_steps_a_second_are_of_training(begun):
    with RunLease(begun):
        now = run_status(begun)
        assert (now.phase, now.rate, now.left) == ("train", 9, pytest.approx(400 / 9))
        told = {"phase": "evaluate", "done": 2000, "total": 8000, "rate": 50.0, "time": 0}
        begun.write("progress", told)
        now = run_status(begun)
        assert (now.phase, now.step, now.rate, now.left) == ("evaluate", 500, None, 120)
    assert run_status(begun).left is None


def test_what_is_evaluated_after_the_result_is_no_restart(begun):
    assert run_status(begun).restarts == 0
    begun.record_attempt("killed", begun="1")
    assert run_status(begun).restarts == 0
    begun.record_attempt("whole", begun="2")
    assert run_status(begun).restarts == 1
    begun.record_attempt("whole", ended="done")
    for token, how in (("more cells", "done"), ("a bad file", "bad_data"), ("again", "done")):
        begun.record_attempt(token, begun="3")
        assert run_status(begun).restarts == 1
        begun.record_attempt(token, ended=how)
        assert run_status(begun).restarts == 1


def test_following_ends_where_nobody_is_at_work(begun, monkeypatch, capsys):
    monkeypatch.setattr(command, "START_SECONDS", -1.0)
    command.logs(begun.key, follow=True, runs=str(begun.path.parent.parent))
    assert capsys.readouterr().out.splitlines() == [
        "a line",
        f"run {begun.key}: interrupted at step 120 of 500; no process has it",
    ]
    monkeypatch.setattr(command, "START_SECONDS", float("inf"))
    mark_stopped(begun, "asha", 120)  # nothing to wait for
    command.logs(begun.key, follow=True, runs=str(begun.path.parent.parent))
    assert "stopped at step 120 of 500; no process" in capsys.readouterr().out


def test_following_waits_for_who_is_queued(begun, monkeypatch, capsys):
    monkeypatch.setattr(command, "START_SECONDS", -1.0)
    reasons = [{begun.key: "job 7: pending"}, {begun.key: "job 7: pending"}, {}]
    monkeypatch.setattr(status, "queued_runs", lambda sweep: reasons.pop(0))
    monkeypatch.setattr(command, "POLL_SECONDS", 0.0)
    command.logs(begun.key, follow=True, runs=str(begun.path.parent.parent))
    assert reasons == []


def test_a_run_that_is_not_there_is_not_tried_again(begun):
    root, wrong = str(begun.path.parent.parent), begun.key[:5] + "x"
    for function in (retry, cancel):
        with pytest.raises(UserError, match=f"no run '{wrong}'; did you mean '{begun.key}'"):
            function("train", run=[wrong], runs=root)
    assert retry("train", run=[begun.key[:5]], runs=root) == 0  # there, and not failed


def test_what_somebody_cancelled_is_tried_again_only_if_asked_for(tmp_path, capsys):
    sweep = sweep_of(tmp_path, a=None, b=None, c=None)
    bug, cancelled, _ = sweep.runs()
    for run, kind in ((bug, "bug"), (cancelled, "cancelled")):
        run.write("failure", failures.record(run, kind, "why"))
    assert failed(sweep, [], []) == ([bug], [])
    assert failed(sweep, ["cancelled"], []) == failed(sweep, [], ["b"]) == ([cancelled], [])
    assert failed(sweep, ["bug"], ["b"]) == ([], [])
    assert failures.retried_on_launch(cancelled)  # by launching the sweep
    bug.remove("failure")
    assert retry("mine", runs=str(tmp_path)) == 0
    hint = "1 cancelled run: --class cancelled"
    assert capsys.readouterr().out == f"no failed runs in sweep mine; {hint}\n"


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0057, "0.00570"), (12.345, "12.3"), (987.6, "988"), (0, "0.00"), (1e7, "1e+07")],
)
def test_distances_in_status_have_three_digits(value, told):
    assert digits(value) == told
    assert digits(-value) == (told if value == 0 else f"-{told}")
    assert digits(float("nan")) == "nan"


def test_where_nothing_is_submitted_nothing_is_to_be_followed(begun, monkeypatch):
    monkeypatch.setattr(Slurm, "submit", lambda self, runs, resources: Submitted())
    slurm, sweep = launcher("slurm"), SweepDirectory(begun.path.parent)
    outcome = slurm.launch(LaunchRequest(sweep, {}), lambda event, running: None)
    assert (outcome.detached, outcome.notes) == (True, ["nothing is left to submit"])
    outcome = slurm.launch(LaunchRequest.of([begun]), lambda event, running: None)
    assert outcome.notes[-1] == "to follow it: fewstep status train --watch"


def test_a_launcher_that_leaves_runs_out_is_no_success(begun, monkeypatch, capsys):
    monkeypatch.setattr("fewstep.cli.commands.report.report_each", lambda sweeps: None)
    request = LaunchRequest.of([begun])
    for outcome, code in ((Outcome(), 1), (Outcome(done=[begun.key]), 0)):
        used = SimpleNamespace(launch=lambda request, view, outcome=outcome: outcome)
        assert launch(used, request, {begun.key: "one"}, {"enabled": False}) == code
        said = f"the launcher did not run {begun.key}" in capsys.readouterr().err
        assert said == (code == 1)
