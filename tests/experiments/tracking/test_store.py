"""Where ``sync`` writes: a fresh sqlite, by many at once and in few transactions; bad addresses."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import tracking as fake
from helpers import warm
from helpers.tracking import clean_cwd  # noqa: F401  (used by all tests here)

from fewstep.errors import UserError
from fewstep.experiments.tracking import sync as syncing
from fewstep.experiments.tracking.sync import sync, tracking_uri, ui_command

KEYS = ["1a2b3c4d5e", "2b3c4d5e6f"]


@pytest.mark.slow
def test_eight_at_once_into_a_database_that_is_not_there_yet(tmp_path: Path) -> None:
    """Seven sweeps, and the last of them by two."""
    root = tmp_path / "fresh"
    sweeps = [fake.make_sweep(root, f"sweep{i}", KEYS) for i in range(7)]
    for sweep in sweeps:
        for run in sweep.runs():
            fake.complete(run)
    said = [(tmp_path / f"out{i}", tmp_path / f"err{i}") for i in range(8)]
    here = {"cwd": Path.cwd(), "environment": os.environ}
    all_of_them = [
        warm.start("helpers.sync_once", root, sweep.path, **here, out=out, err=err)
        for sweep, (out, err) in zip((*sweeps, sweeps[-1]), said, strict=True)
    ]
    for process in all_of_them:
        process.join(120)
    told = sorted(out.read_text() for out, _ in said)
    assert told == ["0 0 2\n", *["2 0 0\n"] * 7]
    lines = [line for _, err in said for line in err.read_text().splitlines()]
    assert all(line.startswith("waiting for another process") for line in lines), lines
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(root))
    for sweep in sweeps:
        fake.assert_mirrored(client, sweep, tmp_path / "artifacts" / sweep.name)


def test_a_run_costs_a_fraction_of_a_transaction(tmp_path: Path) -> None:
    """150 lines of 6 metrics and 6 cells a run; what takes time is waiting for the disk at the end
    of each transaction. The rate is in docs/benchmarks.md: seconds would fail by the weather.
    """
    root = tmp_path / "runs"
    sync([], root)  # creates the database
    sweep = fake.make_sweep(root, "many", [f"{i:010x}" for i in range(60)])
    for run in sweep.runs():
        fake.train(run, range(150), {"validation_loss": 0.5})
        for nfe in (1, 2, 4, 8, 32, 128):
            fake.evaluate(run, nfe, 100.0 / nfe)
        fake.finish(run)
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    written: list[int] = []
    before: dict[Any, int] = {}

    def begun(connection: Any) -> None:
        database = connection.connection.driver_connection
        before[database] = database.total_changes

    def committed(connection: Any) -> None:
        database = connection.connection.driver_connection
        written.append(database.total_changes - before[database])

    event.listen(Engine, "begin", begun)
    event.listen(Engine, "commit", committed)
    try:
        assert fake.counts(sync([sweep], root)) == (60, 0, 0, 0)
    finally:
        event.remove(Engine, "begin", begun)
        event.remove(Engine, "commit", committed)
    large = [rows for rows in written if rows > 900]  # 25 runs, 25 runs, 10 runs
    assert len(large) == 3
    assert len([rows for rows in written if rows]) <= 12  # the experiment, its tags, the parent
    assert sum(large) > 60 * 900


def test_where_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "run root"
    assert tracking_uri(root) == f"sqlite:///{root}/mlflow.db"
    assert tracking_uri(root, "sqlite:///a.db") == f"sqlite:///{Path.cwd()}/a.db"
    with pytest.raises(UserError, match="no '\\?' in it"):
        tracking_uri(root / "what?")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking_uri(root) == "http://host:5000"
    assert tracking_uri(root, "postgresql+psycopg2://u:p@h/db") == "postgresql+psycopg2://u:p@h/db"
    command = ui_command(f"sqlite:///{root}/mlflow.db")
    assert f"--backend-store-uri 'sqlite:///{root}/mlflow.db'" in command
    assert Path(command.split()[0]).parent == Path(sys.executable).parent


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("./mlruns", "unsupported tracking.uri './mlruns' (choices: sqlite"),
        ("file:///tmp/mlruns", "unsupported tracking.uri"),
        ("sqlite://", "names no file"),
        ("http://127.0.0.1:9", "no MLflow server answers at http://127.0.0.1:9"),
        ("http://u:secret@127.0.0.1:9", r"http://u:***@127.0.0.1:9"),
        ("sqlite:////proc/no/mlflow.db", "cannot open the MLflow database /proc/no/mlflow.db"),
        ("sqlite:///{text}", "file is not a database"),
    ],
)
def test_a_bad_uri_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, told: str
) -> None:
    """Before MLflow is imported, which takes seconds, and would try a server for minutes."""
    (tmp_path / "text").write_text("no database " * 100)
    monkeypatch.setattr(syncing, "open_store", None)
    with pytest.raises(UserError) as caught:
        sync([], tmp_path / "root", uri.format(text=tmp_path / "text"))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    shutil.rmtree(tmp_path / "root", ignore_errors=True)


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot sync the run root"):
        sync([], tmp_path / "file")
