"""A whole small sweep through the real command line: run, record, report, and again."""

from __future__ import annotations

import re
import shutil
import sqlite3
from pathlib import Path

import pytest
from helpers.commands import TINY_DIT, succeed, tree

from fewstep.experiments.store.lease import RunLease
from fewstep.experiments.store.run_directory import RunDirectory

SWEEP = """
name: small
description: two objectives, two seeds
base:
  training.steps: 8
  evaluation.steps: [1, 2]
  evaluation.extractor: raw
axes:
  objective: [flow_matching, shortcut]
seeds: 2
"""
COMMAND = ("sweep", "small.yaml", *TINY_DIT)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a finished sweep, and what it said."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "small.yaml").write_text(SWEEP)
    planned = succeed(*COMMAND, "--plan", cwd=folder)
    assert planned.startswith("sweep small: 4 runs (4 new, 0 interrupted, 0 failed, 0 cells")
    assert planned.endswith("run directories: runs/small\nnothing was started\n")
    assert len(re.findall(r"^[0-9a-f]{12}  new    objective=", planned, re.M)) == 4
    assert [p.name for p in folder.iterdir()] == ["small.yaml"]
    return folder, succeed(*COMMAND, cwd=folder)


def test_tells_progress_table_files_and_the_way_to_mlflow(done):
    folder, said = done
    assert "\x1b" not in said
    assert len(re.findall(r"^started objective=", said, re.M)) == 4
    assert len(re.findall(r"^done objective=", said, re.M)) == 4
    assert "Flow matching" in said
    assert "Shortcut" in said
    named = re.findall(r"^  (runs/small/report/.*)$", said, re.M)
    names = {Path(name).name for name in named}
    assert {"table.md", "table.csv", "table.tex", "fd_vs_nfe.png", "fd_vs_nfe.pdf"} <= names
    assert any(name.startswith("samples") or "grid" in name for name in names)
    assert all((folder / name).stat().st_size for name in named)
    assert "MLflow at sqlite:///" in said
    assert re.search(r"to look at it:\n  .*mlflow.* ui --backend-store-uri ", said)
    (database,) = (folder / "runs").rglob("*.db")
    with sqlite3.connect(database) as connection:
        (count,) = connection.execute("SELECT COUNT(*) FROM runs").fetchone()
        metrics = {row[0] for row in connection.execute("SELECT DISTINCT key FROM metrics")}
    assert count == 5  # a parent and four children
    assert "loss" in metrics
    assert {"fd_nfe_1", "fd_nfe_2"} <= metrics


def test_again_retrains_nothing(done):
    folder, _ = done
    runs = {p.parent: tree(p.parent) for p in folder.glob("runs/small/*/spec.json")}
    assert len(runs) == 4
    said = succeed(*COMMAND, cwd=folder)
    assert said.startswith("sweep small: 4 runs (0 new, 0 interrupted, 0 failed, 0 cells, 0 stale,")
    assert "4 cached)" in said
    assert "started" not in said
    assert "0 created, 0 updated, " in said
    assert {run: tree(run) for run in runs} == runs


def test_status_sync_and_report_of_it(done, tmp_path):
    folder, _ = done
    lines = succeed("status", cwd=folder).splitlines()
    assert lines[0].split() == ["sweep", "runs", "done", "running", "interrupted", "failed", "new"]
    assert lines[1].split() == ["small", "4", "4", "0", "0", "0", "0"]
    *rows, data = succeed("status", "small", cwd=folder).splitlines()[1:-1]
    assert re.fullmatch(r"data \S+ \w{12} \(.* train and .* held-out examples.*\)", data.rstrip())
    assert [row.split()[1:5] for row in rows] == [
        ["flow_matching", "0", "done", "8/8"],
        ["flow_matching", "1", "done", "8/8"],
        ["shortcut", "0", "done", "8/8"],
        ["shortcut", "1", "done", "8/8"],
    ]
    assert all(re.search(r" 1: [\d.]+  2: [\d.]+ +\S+$", row.rstrip()) for row in rows)

    before = tree(folder / "runs/small")
    said = succeed("report", "small", "--out", tmp_path / "paper", cwd=folder)
    assert "Flow matching" in said
    assert (tmp_path / "paper/table.tex").stat().st_size
    assert tree(folder / "runs/small") == before
    elsewhere = f"tracking.uri=sqlite:///{tmp_path}/other.db"
    assert "4 created, 0 updated" in succeed("sync", "small", elsewhere, cwd=folder)
    assert (tmp_path / "other.db").stat().st_size


def test_the_plan_of_more_tells_time_resources_and_where_they_are_from(done):
    folder, _ = done
    before = tree(folder)
    more = (*COMMAND, "seeds=3", "objective=shortcut", "--plan")
    lines = succeed(*more, "resources.cpus=2", "slurm.partition=low", cwd=folder).splitlines()
    assert lines[0].startswith("sweep small: 3 runs (1 new, ")
    assert lines[1].split() == ["key", "state", "run", "time", "left"]
    assert [line.split()[1] for line in lines[2:5]] == ["cached", "cached", "new"]
    assert re.search(r"seed=2 +0:\d\d$", lines[4])
    assert lines[5] == "resources of each run: 2 CPUs"
    assert re.fullmatch(
        r"estimate: [\d.]+ minutes for 1 of 1 run to do, one after another", lines[6]
    )
    assert re.fullmatch(r"  [\d.]+ minutes training, [\d.]+ minutes evaluation", lines[7])
    assert lines[8] == "  1 from 2 finished runs of the same objective, backbone and data"
    assert re.fullmatch(r"disk: [\d.]+ [kM]B, at most [\d.]+ [kM]B a run", lines[9])
    assert lines[11:] == ["run directories: runs/small", "nothing was started"]
    member = RunDirectory(folder / "runs/small" / lines[4].split()[0])
    member.path.mkdir()
    try:
        with RunLease(member):
            assert ", 0 stale, 1 running, 2 cached)" in succeed(*more, cwd=folder)
    finally:
        shutil.rmtree(member.path)
    (folder / "ruled.yaml").write_text(
        SWEEP + "resources: {rules: [{when: {objective: shortcut}, gpus: 1, hours: 3}]}\n"
    )
    try:
        said = succeed("sweep", "ruled.yaml", *TINY_DIT, "seeds=1", "--plan", cwd=folder)
    finally:
        (folder / "ruled.yaml").unlink()
    assert re.search(r"objective=flow_matching seed=0 +1 CPU *$", said, re.M)
    assert re.search(r"objective=shortcut seed=0 +1 GPU, 1 CPU, 3 h *$", said, re.M)
    after = tree(folder)
    touched = (".", "runs/small", "ruled.yaml")  # by this test
    assert {path: after[path] for path in after if path not in touched} == {
        path: before[path] for path in before if path not in touched
    }


def test_choosing_one_objective_reports_all_that_were_planned(done, tmp_path):
    folder, _ = done
    said = succeed(*COMMAND, "objective=shortcut", "tracking.enabled=false", cwd=folder)
    assert "sweep small: 2 runs (" in said
    assert "Flow matching" in said
    assert succeed("status", cwd=folder).splitlines()[1].split()[:3] == ["small", "4", "4"]


def test_what_fits_no_single_table_is_recorded_and_has_tables_of_its_own(tmp_path):
    base = "base: {evaluation.weights: [ema, raw], evaluation.steps: [1], training.steps: 3}\n"
    (tmp_path / "one.yaml").write_text(f"{base}seeds: 1\n")
    said = succeed("sweep", "one.yaml", *TINY_DIT, "evaluation.extractor=raw", cwd=tmp_path)
    assert "1 created" in said
    tables = {p.parent.name for p in (tmp_path / "runs/one/report").glob("*/table.md")}
    assert tables == {"weights-ema", "weights-raw"}
