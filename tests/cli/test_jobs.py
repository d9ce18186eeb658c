"""Following runs that nobody is at work on, and where they are told to be."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from helpers.commands import TINY
from helpers.slurm_commands import sweep_of

from fewstep.cli import jobs
from fewstep.cli.launch import retry, submit
from fewstep.cli.status import _digits
from fewstep.errors import UserError
from fewstep.experiments import failures
from fewstep.experiments.claim import Claim
from fewstep.experiments.config import compose
from fewstep.experiments.run import prepare
from fewstep.experiments.rundir import RunDirectory, SweepDirectory, write_json
from fewstep.experiments.rungs import mark_stopped
from fewstep.sweeps.launching import failed
from fewstep.sweeps.slurm.submission import Slurm
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
    with Claim(begun):
        now = run_status(begun)
        assert (now.phase, now.rate, now.left) == ("train", 9, pytest.approx(400 / 9))
        told = {"phase": "evaluate", "done": 2000, "total": 8000, "rate": 50.0, "time": 0}
        begun.write("progress", told)
        now = run_status(begun)
        assert (now.phase, now.step, now.rate, now.left) == ("evaluate", 500, None, 120)
    assert run_status(begun).left is None


def test_what_is_evaluated_after_the_result_is_no_restart(begun):
    assert run_status(begun).restarts == 0
    begun.note("killed", begun="1")
    assert run_status(begun).restarts == 0
    begun.note("whole", begun="2")
    assert run_status(begun).restarts == 1
    begun.note("whole", ended="done")
    for token, how in (("more cells", "done"), ("a bad file", "bad_data"), ("again", "done")):
        begun.note(token, begun="3")
        assert run_status(begun).restarts == 1
        begun.note(token, ended=how)
        assert run_status(begun).restarts == 1


def test_following_ends_where_nobody_is_at_work(begun, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "PATIENCE_SECONDS", -1.0)
    jobs.logs(begun.key, begun.path.parent.parent, follow=True)
    assert capsys.readouterr().out.splitlines() == [
        "a line",
        f"run {begun.key}: interrupted at step 120 of 500; nobody is at work on it",
    ]
    monkeypatch.setattr(jobs, "PATIENCE_SECONDS", float("inf"))
    mark_stopped(begun, "asha", 120)  # nothing to wait for
    jobs.logs(begun.key, begun.path.parent.parent, follow=True)
    assert "stopped at step 120 of 500; nobody" in capsys.readouterr().out


def test_following_waits_for_who_is_queued(begun, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "PATIENCE_SECONDS", -1.0)
    reasons = [{begun.key: "job 7: pending"}, {begun.key: "job 7: pending"}, {}]
    monkeypatch.setattr(jobs, "waiting", lambda sweep: reasons.pop(0))
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)
    jobs.logs(begun.key, begun.path.parent.parent, follow=True)
    assert reasons == []


def test_a_run_that_is_not_there_is_not_tried_again(begun):
    root, wrong = begun.path.parent.parent, begun.key[:5] + "x"
    for command in (partial(retry, classes=()), jobs.cancel):
        with pytest.raises(UserError, match=f"no run '{wrong}'; did you mean '{begun.key}'"):
            command("train", root, keys=[wrong])
    assert retry("train", root, (), [begun.key[:5]]) == 0  # there, and not failed


def test_what_somebody_cancelled_is_tried_again_only_if_asked_for(tmp_path, capsys):
    sweep = sweep_of(tmp_path, a=None, b=None, c=None)
    bug, cancelled, _ = sweep.runs()
    for run, kind in ((bug, "bug"), (cancelled, "cancelled")):
        run.write("failure", failures.record(run, kind, "why"))
    assert failed(sweep, [], []) == ([bug], [])
    assert failed(sweep, ["cancelled"], []) == failed(sweep, [], ["b"]) == ([cancelled], [])
    assert failed(sweep, ["bug"], ["b"]) == ([], [])
    assert failures.resumed(cancelled)  # by launching the sweep
    bug.remove("failure")
    assert retry("mine", tmp_path, (), ()) == 0
    hint = "1 cancelled ones go on with --class cancelled"
    assert capsys.readouterr().out == f"no failed runs in sweep mine; {hint}\n"


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0057, "0.00570"), (12.345, "12.3"), (987.6, "988"), (0, "0.00"), (1e7, "1e+07")],
)
def test_distances_in_status_have_three_digits(value, told):
    assert _digits(value) == told
    assert _digits(-value) == (told if value == 0 else f"-{told}")
    assert _digits(float("nan")) == "nan"


def test_where_nothing_is_submitted_nothing_is_to_be_followed(begun, monkeypatch, capsys):
    monkeypatch.setattr(Slurm, "submit", lambda self, runs, wanted: [])
    submit(SweepDirectory(begun.path.parent), [], {}, {})
    assert capsys.readouterr().out == "nothing is left to submit\n"
    submit(SweepDirectory(begun.path.parent), [begun], {}, {})
    assert "to follow it: fewstep status train" in capsys.readouterr().out
