"""Run directories become a tidy frame from which no run can vanish."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from helpers.synthetic_runs import Run, write_sweep

from fewstep import analysis
from fewstep.analysis.columns import COLUMNS
from fewstep.analysis.frame import load, method_labels
from fewstep.errors import UserError
from fewstep.experiments.store.run_directory import SweepDirectory


def test_one_row_per_run_and_cell_with_costs(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, [Run("sCM", 0, {1: 8.0, 2: 4.0}), Run("sCM", 1, {1: 9.0})])
    frame = load(folder)
    assert list(frame.columns) == list(COLUMNS)
    assert {k: str(v) for k, v in frame.dtypes.items()} == COLUMNS
    assert frame[["seed", "steps", "value"]].values.tolist() == [[0, 1, 8], [0, 2, 4], [1, 1, 9]]
    row = frame.iloc[1]
    assert (row["sweep"], row["key"], row["method"], row["status"]) == (
        "demo", "scm-s0", "sCM", "done")  # fmt: skip
    assert (row["metric"], row["metric_id"]) == ("FD-digits-cnn@597", "a1b2c3d4e5f6")
    assert (row["sampler"], row["times"], row["weights"]) == ("solver=euler", "uniform", "ema")
    assert (row["nfe"], row["samples"], row["reference_samples"]) == (2, 597, 1200)
    assert (row["train_steps"], row["images_seen"], row["train_seconds"]) == (500, 64000, 50.0)
    assert (row["steps_per_second"], row["sample_images_per_second"]) == (10.0, 150.0)
    assert (row["commit"], row["dirty"], row["host"]) == ("c0ffee" * 6, False, "laptop")


def test_failed_and_unbegun_runs_keep_a_row(tmp_path: Path) -> None:
    runs = [Run("A", 0, {1: 1.0}), Run("A", 1, failure="nan"), Run("A", 2, done=False)]
    frame = load(SweepDirectory(write_sweep(tmp_path, runs)))
    assert frame["status"].tolist() == ["done", "failed", "new"]
    assert frame["failure_class"].fillna("-").tolist() == ["-", "nan", "-"]
    assert frame["value"].isna().tolist() == [False, True, True]
    assert frame["method"].tolist() == ["A"] * 3
    assert frame["train_steps"].tolist()[:2] == [500, 200]  # as far as the failed run came
    assert frame["seed"].tolist() == [0, 1, 2]


def test_a_run_ended_early_is_told_apart(tmp_path: Path) -> None:
    frame = load(write_sweep(tmp_path, [Run("A", 0, {1: 1.0}, train_steps=125)]))
    assert frame["failure_class"].tolist() == ["stopped"]


def test_a_run_stopped_by_a_search_has_no_value_unless_asked_for(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, [Run("A", 0, {1: 1.0}), Run("A", 1, rungs={50: 9.0, 100: 7.0})])
    frame = load(folder)
    assert frame["status"].tolist() == ["done", "stopped"]
    assert frame["value"].isna().tolist() == [False, True]
    told = frame.iloc[1]
    assert (told["failure_class"], told["failure_message"]) == (
        "stopped", "ended early by asha at step 100")  # fmt: skip
    assert (told["train_steps"], told["planned_steps"], told["images_seen"]) == (100, 500, 12800)
    asked = load(folder, stopped=True)
    assert asked["value"].tolist() == [1.0, 7.0]
    assert asked["cell"].tolist()[1] == "rung-100"


def test_without_a_plan_all_run_folders_are_read(tmp_path: Path) -> None:
    runs = [Run("B", 0, {1: 2.0}), Run("A", 0, {1: 1.0})]
    frame = load(write_sweep(tmp_path, runs, plan=False))
    assert frame["title"].tolist() == ["A", "B"]
    assert frame["objective"].tolist() == ["a", "b"]


def test_only_the_plans_members_are_read(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, [Run("old", 0, {1: 2.0}), Run("A", 0, {1: 1.0})])
    plan = json.loads((folder / "sweep.json").read_text())
    plan["runs"] = plan["runs"][1:]
    (folder / "sweep.json").write_text(json.dumps(plan))
    assert load(folder)["title"].unique().tolist() == ["A"]


def test_labels_tell_what_varies_and_nothing_else() -> None:
    same = {"objective": "fm", "backbone": "dit"}
    assert method_labels([("FM", same), ("sCM", {**same, "objective": "scm"})]) == ["FM", "sCM"]
    runs = [("Shortcut", {"objective": "sc", "share": s, "backbone": "dit"}) for s in ("1/4", "0")]
    assert method_labels([*runs, ("FM", same)], ["objective", "share"]) == [
        "Shortcut · share=1/4", "Shortcut · share=0", "FM"]  # fmt: skip
    twins = [("FM", {"objective": "fm"}), ("FM", {"objective": "fm_logit"})]
    assert method_labels(twins) == ["FM · objective=fm", "FM · objective=fm_logit"]


def test_an_unknown_sweep_names_the_known(tmp_path: Path) -> None:
    write_sweep(tmp_path, [Run("A", 0, {1: 1.0})], name="digits")
    with pytest.raises(UserError, match=r"unknown sweep 'digit'.*'digits'.*choices: digits"):
        load(tmp_path / "digit")


def test_a_broken_evaluation_is_named(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, [Run("A", 0, {1: 1.0})])
    next(folder.glob("*/evaluations/*.json")).write_text('{"value": 3}')
    with pytest.warns(
        UserWarning, match=r"left out: .*evaluations/steps1.* lacks cell, metric, nfe"
    ):
        load(folder)


def test_reading_changes_no_file(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, [Run("A", 0, {1: 1.0}), Run("B", 0, done=False)])
    before = sorted(tmp_path.rglob("*"))
    assert isinstance(analysis.load(folder), pd.DataFrame)
    assert sorted(tmp_path.rglob("*")) == before
