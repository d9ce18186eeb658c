"""``sync`` mirrors run directories exactly, whatever happens on the way (a real sqlite store)."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from helpers import tracking as fake
from helpers.tracking import clean_cwd  # noqa: F401  (used by all tests here)

from fewstep.errors import UserError
from fewstep.experiments.store.json_files import write_json
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.experiments.tracking import store, sweep_sync
from fewstep.experiments.tracking.mlflow_private import held_by_sqlite
from fewstep.experiments.tracking.run_record import flatten, metric_name, read_record, variant
from fewstep.experiments.tracking.sync import sync

KEYS = ["1a2b3c4d5e", "2b3c4d5e6f"]


def runs_of(sweep: SweepDirectory) -> tuple[RunDirectory, RunDirectory]:
    first, second = sweep.runs()
    return first, second


def points(told: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {key: entry["points"] for key, entry in told.items()}


def test_a_finished_run_is_told_in_full(client: Any, root: Path, sweep: SweepDirectory) -> None:
    first, _ = runs_of(sweep)
    fake.complete(first)
    fake.evaluate(first, 1, 300.0, weights="raw")
    fake.evaluate(first, 4, 20.0, guidance=1.5, sample_set=2)
    (sweep.report / "figures").mkdir(parents=True)
    (sweep.report / "figures" / "fd.svg").write_text("<svg/>")
    (sweep.report / "samples.npz").write_bytes(b"large")
    seen: list[tuple[str, int, int]] = []
    report = sync([sweep], root, on_progress=lambda *a: seen.append(a))
    assert fake.counts(report) == (1, 0, 0, 1)
    assert seen == [(sweep.name, 2, 2)]

    told = fake.recorded(client, sweep.name)
    assert set(told) == {"", KEYS[0]}
    run, parent = told[KEYS[0]], told[""]
    assert run["points"]["loss"] == [(step, 1 / (1 + step)) for step in range(40)]
    assert run["points"]["fd_vs_nfe"] == [(1, 100.0), (2, 50.0), (4, 25.0)]
    assert run["points"]["fd_nfe_4"] == [(0, 25.0)]
    assert run["points"]["fd_nfe_1_raw"] == [(0, 300.0)]
    assert run["points"]["fd_vs_nfe_cfg1.5_set2"] == [(4, 20.0)]
    assert run["points"]["steps_per_second"] == [(0, 4.0)]
    info, params = run["info"], run["run"].data.params
    assert (info.run_name, info.status) == ("scm-s0-1a2b3c", "FINISHED")
    assert info.end_time - info.start_time == 100_000
    history = client.get_metric_history(info.run_id, "loss")
    assert {m.timestamp - info.start_time - 250 * m.step for m in history} == {0}
    assert params["training.betas"] == "[0.9, 0.999]"
    assert params["backbone.width"] == "64"
    assert len(params["data.note"]) == 500
    assert run["tags"]["fewstep.objective"] == run["tags"]["fewstep.axis.objective"] == "scm"
    assert run["tags"]["mlflow.parentRunId"] == parent["info"].run_id
    assert run["run"].inputs.dataset_inputs[0].dataset.name == "digits"
    assert parent["tags"]["mlflow.note.content"] == r"About a\_finished\_run\_is\_told\_in\_full."
    assert parent["tags"]["fewstep.status"] == "1 done, 1 new"
    assert parent["info"].status == "SCHEDULED"
    listed = [a.path for a in client.list_artifacts(parent["info"].run_id, "report")]
    assert listed == ["report/figures"]
    artifact = root / "mlartifacts" / sweep.name / parent["info"].run_id
    assert (artifact / "artifacts/report/figures/fd.svg").read_text() == "<svg/>"


def test_again_writes_nothing(client: Any, root: Path, sweep: SweepDirectory) -> None:
    for run in sweep.runs():
        fake.complete(run)
    assert fake.counts(sync([sweep], root)) == (2, 0, 0, 0)
    database = (root / "mlflow.db").read_bytes()
    assert fake.counts(sync([sweep], root)) == (0, 0, 2, 0)
    assert (root / "mlflow.db").read_bytes() == database
    # Copied elsewhere and back the files are younger: looked at again, and nothing doubled.
    before = points(fake.recorded(client, sweep.name))
    for file in sweep.path.rglob("*.json*"):
        os.utime(file)
    assert fake.counts(sync([sweep], root)) == (0, 2, 0, 0)
    assert points(fake.recorded(client, sweep.name)) == before


def test_that_nothing_changed_is_known_without_mlflow(
    client: Any, root: Path, sweep: SweepDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing it takes three seconds, and listing thousands of runs more."""
    run, other = runs_of(sweep)
    fake.complete(run)
    fake.complete(other)
    opened: list[str] = []

    def open_store(uri: str) -> Any:
        opened.append(uri)
        return store.open_store(uri)

    monkeypatch.setattr("fewstep.experiments.tracking.sync.open_store", open_store)

    def again(*expected: int, problems: tuple[str, ...] = ()) -> bool:
        """Whether MLflow was opened for what a new process syncs."""
        opened.clear()
        report = sync([sweep], root)
        assert fake.counts(report) == expected
        assert report.problems == problems
        assert sweep.name in report.experiments
        return bool(opened)

    assert again(2, 0, 0, 0)
    assert not again(0, 0, 2, 0)
    run_id = fake.recorded(client, sweep.name)[run.key]["run"].info.run_id
    client.delete_run(run_id)  # in the browser
    assert again(1, 0, 1, 0)
    assert not again(0, 0, 2, 0)
    client.restore_run(run_id)  # there are two of it now
    assert again(0, 0, 2, 0)
    assert not again(0, 0, 2, 0)
    sweep.report.mkdir()
    (sweep.report / "table.md").write_text("a table")
    assert again(0, 0, 2, 0)
    assert not again(0, 0, 2, 0)
    run.metrics_file.unlink()
    lost = (f"{run.metrics_file.absolute()} cannot be read (No such file or directory)",)
    assert again(0, 1, 1, 0, problems=lost)
    assert not again(0, 0, 2, 0, problems=lost)
    monkeypatch.setattr(sweep_sync, "held_by_sqlite", lambda file, name: None)
    assert again(0, 0, 2, 0, problems=lost)  # as long as it is so, each sync says so
    monkeypatch.undo()
    fake.train(run, range(40))
    assert sync([sweep], root).problems == ()
    assert "fewstep.problem" not in fake.recorded(client, sweep.name)[run.key]["tags"]


@pytest.mark.parametrize("damage", ["no file", "not a database", "another layout"])
def test_a_database_that_cannot_be_read_is_left_to_mlflow(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "a b?.db"
    if damage == "not a database":
        file.write_text("something else" * 999)
    elif damage == "another layout":
        sqlite3.connect(file).execute("CREATE TABLE runs (id INTEGER)")
    assert held_by_sqlite(file, "fewstep/mine") is None
    assert file.exists() == (damage != "no file")


def test_a_run_grows(client: Any, root: Path, sweep: SweepDirectory) -> None:
    run, _ = runs_of(sweep)
    fake.train(run, range(3))
    sync([sweep], root)
    first = fake.recorded(client, sweep.name)[KEYS[0]]
    assert first["info"].status == "RUNNING"
    with run.metrics_file.open("a") as file:
        file.write('{"step": 3, "lo')  # a line being written
    fake.evaluate(run, 1, 90.0)
    assert fake.counts(sync([sweep], root)) == (0, 1, 0, 1)
    lines = run.metrics_file.read_text().splitlines()[:3]
    run.metrics_file.write_text("\n".join(lines) + "\n")
    fake.train(run, range(2, 5), {"seconds": 99.0})  # resumed: step 2 is written again
    fake.evaluate(run, 2, 45.0)
    fake.evaluate(run, 1, 80.0)  # evaluated anew: a changed value is shown
    fake.finish(run)
    sync([sweep], root)
    last = fake.recorded(client, sweep.name)[KEYS[0]]
    assert last["info"].run_id == first["info"].run_id
    assert last["points"]["loss"] == [(step, 1 / (1 + step)) for step in range(5)]
    assert [step for step, _ in last["points"]["seconds"]] == [0, 1, 2, 3, 4]
    assert last["points"]["fd_vs_nfe"] == [(1, 80.0), (1, 90.0), (2, 45.0)]
    assert last["run"].data.metrics["fd_nfe_1"] == 80.0
    assert (last["info"].status, last["tags"]["fewstep.status"]) == ("FINISHED", "done")


def test_failed_then_done(client: Any, root: Path, sweep: SweepDirectory) -> None:
    run, other = runs_of(sweep)
    fake.train(run, range(2))
    fake.train(run, range(2, 4), {"loss": math.nan, "grad_norm": math.inf})
    fake.fail(run)
    fake.train(other, range(1))
    fake.fail(other, "killed")
    sync([sweep], root)
    told = fake.recorded(client, sweep.name)
    failed = told[KEYS[0]]
    assert [told[key]["info"].status for key in ("", *KEYS)] == ["FAILED", "FAILED", "KILLED"]
    assert failed["tags"]["fewstep.failure.class"] == "nan"
    losses = client.get_metric_history(failed["info"].run_id, "loss")
    assert [math.isnan(m.value) for m in losses] == [False, False, True, True]

    run.remove("failure")  # begun again
    sync([sweep], root)
    assert fake.recorded(client, sweep.name)[KEYS[0]]["info"].status == "RUNNING"
    fake.train(run, range(4, 6))
    fake.finish(run)
    sync([sweep], root)
    done = fake.recorded(client, sweep.name)[KEYS[0]]
    assert done["info"].run_id == failed["info"].run_id
    assert done["info"].status == "FINISHED"
    assert not [tag for tag in done["tags"] if "failure" in tag]
    assert [step for step, _ in done["points"]["grad_norm"]] == [0, 1, 2, 3, 4, 5]


def test_trained_anew_from_other_sources(client: Any, root: Path, sweep: SweepDirectory) -> None:
    run, _ = runs_of(sweep)
    fake.complete(run)
    sync([sweep], root)
    old = fake.recorded(client, sweep.name)[KEYS[0]]["info"].run_id
    run.remove("result")
    run.metrics_file.unlink()
    fake.train(run, range(3), {"loss": 7.0})
    sync([sweep], root)  # looked at on the way
    fake.finish(run, source="cccc")
    sync([sweep], root)
    new = fake.recorded(client, sweep.name)[KEYS[0]]
    assert new["points"]["loss"] == [(0, 7.0), (1, 7.0), (2, 7.0)]
    assert client.get_run(old).info.lifecycle_stage == "deleted"


def test_a_torn_run_hides_no_other(client: Any, root: Path, sweep: SweepDirectory) -> None:
    run, other = runs_of(sweep)
    fake.complete(run)
    fake.complete(other)
    (run.path / "result.json").write_text("{")
    report = sync([sweep], root)
    assert (report.created, len(report.problems)) == (1, 1)
    assert "result.json is not valid JSON" in report.problems[0]


def test_killed_on_the_way(client: Any, root: Path, tmp_path: Path) -> None:
    """SIGKILL between the transactions of a sweep, then again: every point once."""
    keys = [f"{i:010x}" for i in range(60)]
    sweep = fake.make_sweep(root, "killed_on_the_way", keys)
    for run in sweep.runs():
        fake.complete(run, steps=100)
    fake.killed(root, sweep, "transaction", 3)
    told = fake.recorded(client, sweep.name)
    assert len(told) == 51  # two transactions of 25 runs, and the sweep
    assert all(len(run["points"]["loss"]) == 100 for key, run in told.items() if key)
    assert fake.counts(sync([sweep], root)) == (61 - len(told), 0, len(told) - 1, 0)
    fake.assert_mirrored(client, sweep, tmp_path / "artifacts")


def test_a_run_is_called_by_the_label_of_its_objective(sweep: SweepDirectory) -> None:
    run, _ = runs_of(sweep)
    fake.complete(run)
    spec = run.spec() or {}
    called = read_record(run, spec, {"objective": "no jumps", "backbone.width": "32"}, {}).name
    assert called == f"no jumps-s0-{run.key[:6]}"
    assert read_record(run, spec, {"backbone.width": "32"}, {}).name == f"scm-s0-{run.key[:6]}"
    assert len(read_record(run, spec, {"objective": 300 * "long"}, {}).name) < 250


def test_a_run_that_mlflow_refuses_hides_no_other(
    client: Any, root: Path, sweep: SweepDirectory
) -> None:
    first, second = runs_of(sweep)
    for run in (first, second):
        fake.train(run, range(3))
    assert fake.counts(sync([sweep], root)) == (2, 0, 0, 0)
    fake.complete(second)
    plan = json.loads((sweep.path / "sweep.json").read_text())
    choices = plan["runs"][0]["choices"]
    plan["runs"][0]["choices"] = {"a" * 240: "scm"}  # too long a name for a tag of MLflow's
    write_json(sweep.path / "sweep.json", plan)
    report = sync([sweep], root)
    assert (report.updated, len(report.problems)) == (1, 1)
    assert str(first.path) in report.problems[0]
    assert fake.recorded(client, sweep.name)[KEYS[1]]["points"]["fd_nfe_4"] == [(0, 25.0)]
    plan["runs"][0]["choices"] = choices
    write_json(sweep.path / "sweep.json", plan)
    report = sync([sweep], root)
    assert (fake.counts(report), report.problems) == ((0, 0, 2, 0), ())


def test_a_database_half_created_is_begun_anew(tmp_path: Path) -> None:
    """Killed while its tables are made, a database does not yet bear its name."""
    root = tmp_path / "run root"
    sweep = fake.make_sweep(root, "begun", KEYS)
    for run in sweep.runs():
        fake.complete(run)
    fake.killed(root, sweep, "rename", 1)
    new = root / ".mlflow.db.new"
    assert new.stat().st_size > 20_000
    assert (root / "mlflow.db").stat().st_size == 0
    assert fake.counts(sync([sweep], root)) == (2, 0, 0, 0)
    assert not new.exists()


def test_names() -> None:
    assert metric_name("/../loss@t<0.5/") == "loss_t_0.5"
    assert metric_name("a" * 300) == "a" * 250
    assert dict(flatten({"a": {"b": None, "c": {}}, "d": "x"})) == {
        "a.b": "null", "a.c": "{}", "d": "x",
    }  # fmt: skip
    own = {"objective": {"name": "flow", "solver": "heun"}}
    assert variant({"sampler": {"solver": "heun"}}, own) == ""
    assert variant({"sampler": {"solver": "euler"}}, own) == "_euler"
    assert variant({"sampler": {}, "times": [1, 0.7, 0]}, {}) == "_times1-0.7-0"


def test_a_copied_run_root_does_not_write_into_the_old_one(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    sweep = fake.make_sweep(old, "moved", ["aaaa00000001"])
    fake.complete(sweep.runs()[0], 2)
    sync([sweep], old)
    shutil.copytree(old, new)
    with pytest.raises(UserError, match="moved or copied"):
        sync([SweepDirectory(new / "moved")], new)
    shutil.copytree(old / "moved", tmp_path / "bare" / "moved")  # as told: without the database
    report = sync([SweepDirectory(tmp_path / "bare" / "moved")], tmp_path / "bare")
    assert fake.counts(report)[0] == 1
