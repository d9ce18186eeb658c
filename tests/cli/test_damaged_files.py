"""A disk has damaged one file of one run: the others are shown, stopped and tried again as ever."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import TINY
from helpers.synthetic_runs import Run, write_sweep

from fewstep import files
from fewstep.analysis import load, load_samples
from fewstep.cli.app import main
from fewstep.cli.commands import sweep as launch
from fewstep.experiments.config.run_config import compose
from fewstep.experiments.run import directory_of, prepare
from fewstep.experiments.store import failures, json_files
from fewstep.experiments.store.json_files import write_json
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps.definition import parse as definition
from fewstep.sweeps.definition.member import Member
from fewstep.sweeps.estimate import estimate

TORN = [b'{"a": ', b"", b"\xff\xfe{", b"[1]"]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunDirectory]:
    """Three runs that failed, members of one sweep; we are where its root is."""
    monkeypatch.chdir(tmp_path)
    made = [prepare(compose([*TINY, f"seed={seed}"])) for seed in range(3)]
    for run in made:
        run.write("failure", failures.record(run, "nan", "not finite", step=7))
    members = [
        {"key": run.key, "seed": seed, "title": "", "choices": {"objective": "one"}}
        for seed, run in enumerate(made)
    ]
    plan = {"name": "train", "description": "", "axes": [], "runs": members}
    write_json(made[0].path.parent / "sweep.json", plan)
    return made


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str):
    """(exit code, stdout, stderr) of the command."""
    monkeypatch.setattr("sys.argv", ["fewstep", *command.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return ended.value.code or 0, said.out, said.err


@pytest.mark.parametrize("name", ["spec", "failure", "request", "evaluations/cell"])
@pytest.mark.parametrize("content", TORN)
def test_status_shows_which_run_cannot_be_read_and_all_others(
    runs, monkeypatch, capsys, name, content
):
    file = runs[1].path / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    code, out, err = told(capsys, monkeypatch, "status train")
    assert (code, err) == (0, "")
    states = [line.split()[3] for line in out.splitlines()[1:4]]
    assert states == ["failed", "unreadable", "failed"]
    assert f"{runs[1].key} runs/train/{runs[1].key}/{name}.json " in out
    assert "remove that file, and `fewstep sweep` writes it again" in out
    assert ("the run anew unless it is done" in out) == (name == "spec")
    assert "3 runs: 2 failed, 1 unreadable" in out
    code, out, err = told(capsys, monkeypatch, "status")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].split() == ["train", "3", "0", "0", "0", "2", "0", "1"]


@pytest.mark.parametrize("content", TORN)
@pytest.mark.parametrize("name", ["progress", "claim"])
def test_what_is_of_the_moment_is_as_good_as_not_there(runs, monkeypatch, capsys, name, content):
    (runs[1].path / f"{name}.json").write_bytes(content)
    if name == "claim":  # it may be somebody's: see test_claim.py
        monkeypatch.setattr("fewstep.experiments.store.lease.STALE_SECONDS", -1.0)
    code, out, err = told(capsys, monkeypatch, "status train")
    assert (code, err) == (0, "")
    assert "3 runs: 3 failed" in out


def test_lines_that_are_not_ours_are_passed_over(runs, monkeypatch, capsys):
    runs[0].record_attempt("mine", begun="then")
    for name in ("attempts.jsonl", "metrics.jsonl"):
        with (runs[0].path / name).open("ab") as file:
            file.write(b'{"x": 1}\n[2]\n\xff\n')
    assert [attempt["token"] for attempt in runs[0].attempts()] == ["mine"]
    assert runs[0].metrics() == []
    assert told(capsys, monkeypatch, "status train")[0] == 0


def test_a_damaged_sweep_hides_no_other(runs, monkeypatch, capsys):
    shutil.copytree("runs/train", "runs/other")
    Path("runs/other/sweep.json").write_text('{"name": ')
    code, out, err = told(capsys, monkeypatch, "status")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["sweep", "train"]
    assert err.startswith("runs/other/sweep.json is not valid JSON")


@pytest.mark.parametrize("name", ["spec", "failure", "result"])
def test_cancel_stops_all_others(runs, monkeypatch, capsys, name):
    (runs[1].path / f"{name}.json").write_bytes(TORN[0])
    assert told(capsys, monkeypatch, "cancel train")[0] == 0
    assert all(runs[i].cancel.exists() for i in (0, 2))


@pytest.mark.parametrize("name", ["spec", "failure"])
def test_retry_tries_all_others_and_tells(runs, monkeypatch, capsys, name):
    launched = []
    monkeypatch.setattr(launch, "launch", lambda used, request, *_: launched.extend(request.runs))
    (runs[1].path / f"{name}.json").write_bytes(TORN[0])
    code, out, err = told(capsys, monkeypatch, "retry train")
    assert launched == [runs[0], runs[2]]
    assert "retrying 2 failed runs" in out
    assert f"not retried: runs/train/{runs[1].key}/{name}.json is not valid JSON" in err
    assert code == 2


@pytest.mark.parametrize("name", ["spec", "failure", "result"])
def test_a_report_leaves_out_a_damaged_run_and_says_so(runs, monkeypatch, capsys, name):
    (runs[1].path / f"{name}.json").write_bytes(TORN[0])
    code, _, err = told(capsys, monkeypatch, "report train")
    assert code == 0
    assert f"left out: runs/train/{runs[1].key}/{name}.json is not valid JSON" in err
    assert "remove that file" in err
    frame = load(SweepDirectory(Path("runs/train")))
    assert list(frame["failure_class"]) == ["nan", "unreadable", "nan"]  # it does not vanish


def test_a_report_leaves_out_a_damaged_cell_and_damaged_samples(tmp_path):
    root = write_sweep(tmp_path, [Run("A", seed, {1: 2.0, 2: 1.0}) for seed in range(2)])
    [first, *_] = SweepDirectory(root).runs()
    file, *_ = sorted((first.path / "evaluations").iterdir())
    file.write_bytes(TORN[0])
    with pytest.warns(UserWarning, match=f"left out: .*{file.name} is not valid JSON"):
        frame = load(root)
    assert len(frame) == 3
    samples = first.samples / f"{frame.loc[frame['key'] == first.key, 'cell'].iloc[0]}.npz"
    samples.parent.mkdir(exist_ok=True)
    np.savez_compressed(samples, images=np.zeros((4, 1, 8, 8), np.uint8))
    assert len(load_samples(root, frame)) == 1
    content = samples.read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        samples.write_bytes(content[:size])
        with pytest.warns(UserWarning, match=f"left out: .*{samples.name} holds no samples"):
            assert load_samples(root, frame) == {}


@pytest.mark.parametrize(
    ("name", "content"),
    [("spec", TORN[0]), ("spec", b"{}"), ("result", TORN[2]), ("result", b"{}"), ("data", b"\0")],
)
def test_healthy_runs_of_a_sweep_start_and_all_damaged_files_are_named(
    runs, monkeypatch, capsys, name, content
):
    Path("s.yaml").write_text(
        "name: train\nbase: {data: gaussians, backbone.width: 16, backbone.depth: 1, "
        "training.batch_size: 16, training.validate_every: 0, training.steps: 2, "
        "evaluation.steps: []}\nseeds: 3"
    )
    (sweep,) = (definition.load("s.yaml").with_overrides(["tracking.enabled=false"]),)
    made = [prepare(member.config) for member in sweep.members()]
    for i in (0, 2):
        (made[i].path / f"{name}.json").write_bytes(content)
    command = "sweep s.yaml tracking.enabled=false --workers 1"
    code, out, err = told(capsys, monkeypatch, f"{command} --plan")
    assert [line.split()[1] for line in out.splitlines() if line[:12] in {m.key for m in made}] == [
        "unreadable", "new", "unreadable"
    ]  # fmt: skip
    assert err.count("not run: ") == 2
    launched = []
    monkeypatch.setattr(launch, "launch", lambda used, request, *_: launched.extend(request.runs))
    code, out, err = told(capsys, monkeypatch, command)
    assert (code, launched) == (2, [made[1]])
    assert all(f"{made[i].key}/{name}.json" in err for i in (0, 2))
    assert (made[0].path / f"{name}.json").read_bytes() == content


FILES = ["spec", "request", "result", "failure", "data", "stopped", "evaluations/cell", "rungs/3"]


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, "{}") for name in (*FILES, "../sweep", "../launch")]
    + [(name, '{"key": 1}') for name in ("data", "failure")],
)
def test_json_of_another_form_is_named_and_ends_nothing_in_a_traceback(
    tmp_path, monkeypatch, capsys, name, content
):
    root = write_sweep(tmp_path / "runs", [Run("a", 0, {1: 2.0}), Run("a", 1, {1: 3.0})])
    monkeypatch.chdir(tmp_path)
    file = root / "a-s0" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    if name in ("failure", "stopped", "rungs/3"):  # of runs that are not done
        (root / "a-s0/result.json").unlink()
    for command in ("status demo", "report demo", "retry demo", "cancel demo", "status"):
        code, out, err = told(capsys, monkeypatch, command)
        assert code in (0, 2), command
        if name in ("result", "evaluations/cell", "../sweep") and command == "report demo":
            assert name.removeprefix("../") in out + err


def test_an_estimate_does_without_other_runs_that_cannot_be_read(runs):
    for run in runs:
        run.write("result", {"provenance": {}})
    (runs[0].path / "spec.json").write_bytes(TORN[0])
    (runs[1].path / "result.json").write_bytes(TORN[1])
    (runs[2].path / "result.json").write_bytes(TORN[2])
    new = Member(compose([*TINY, "seed=9"]), {}, 9, "one")
    assert estimate([(new, directory_of(new.config))], Path("runs")).seconds == {}


def test_a_damaged_plan_is_refused_before_anything_is_written(runs, monkeypatch, capsys):
    Path("s.yaml").write_text("name: train\nbase: {data: gaussians}\nseeds: 2")
    (SweepDirectory(Path("runs/train")).path / "sweep.json").write_bytes(TORN[0])
    before = sorted(Path("runs").rglob("*"))
    code, _, err = told(capsys, monkeypatch, "sweep s.yaml tracking.enabled=false")
    assert code == 2
    assert "sweep.json is not valid JSON" in err
    assert sorted(Path("runs").rglob("*")) == before


@pytest.mark.parametrize("number", [errno.ECOMM, errno.ESHUTDOWN, errno.EACCES, errno.EMFILE])
def test_an_error_of_the_operating_system_is_one_line(runs, monkeypatch, capsys, number):
    """ESHUTDOWN, of a network file system, is a BrokenPipeError like that of ``| head``."""

    def away(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(files, "WAITS", ())
    monkeypatch.setattr(json_files, "_content", away)
    code, out, err = told(capsys, monkeypatch, "status train")
    assert (code, out) == (1, "")
    assert err == f"error: runs/train/sweep.json: {os.strerror(number)}\n"
    code, out, err = told(capsys, monkeypatch, "status")  # of all sweeps: others may be readable
    assert code == 0
    assert f"{os.strerror(number)}: 'runs/train/sweep.json'" in " ".join(err.split())


def test_cancel_with_an_unknown_key_cancels_nothing(runs, monkeypatch, capsys):
    code, _, err = told(capsys, monkeypatch, f"cancel train --run {runs[0].key} --run zzz")
    assert code == 2
    assert "has no run 'zzz'" in err
    assert not any(run.cancel.exists() for run in runs)
