"""Where ``sync`` writes: a fresh sqlite, a real MLflow server on loopback, bad addresses."""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewstep.errors import UserError
from fewstep.experiments.tracking import sync, tracking_uri, ui_command

sys.path.append(str(Path(__file__).parent))
import tracking_helpers as fake
from tracking_helpers import clean_cwd  # noqa: F401  (used by all tests here)

KEYS = ["1a2b3c4d5e", "2b3c4d5e6f"]


def test_two_at_once_create_one_database(tmp_path: Path) -> None:
    root = tmp_path / "fresh"
    sweep = fake.make_sweep(root, "race", KEYS)
    for run in sweep.runs():
        fake.complete(run)
    both = [fake.start(root, sweep, Path.cwd()) for _ in range(2)]
    told = sorted(process.communicate(timeout=60) for process in both)
    assert told == [(b"0 0 2\n", b""), (b"2 0 0\n", b"")]  # and not a word on stderr
    from mlflow import MlflowClient

    record = fake.recorded(MlflowClient(tracking_uri(root)), "race")
    assert {len(record[key]["points"]["loss"]) for key in KEYS} == {40}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server with a database and an artifact store of its own."""
    home = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(sys.executable).with_name("mlflow")
    store = ["--backend-store-uri", f"sqlite:///{home}/db", "--artifacts-destination", str(home)]
    command = [str(script), "server", *store, "--port", str(port), "--workers", "1"]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=home, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (home / "log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # the server and its worker, ours alone
        process.wait(20)


def test_a_server(server: str, tmp_path: Path) -> None:
    root = tmp_path / "run root"
    sweep = fake.make_sweep(root, "served", KEYS)
    run, other = sweep.runs()
    fake.complete(run)
    fake.train(other, range(5), {"loss": math.nan})
    sweep.report.mkdir()
    (sweep.report / "table.md").write_text("| FD |")
    assert fake.counts(sync([sweep], root, server)) == (2, 0, 0, 0)
    assert fake.counts(sync([sweep], root, server)) == (0, 0, 2, 0)
    fake.complete(other)  # from the start again
    assert fake.counts(sync([sweep], root, server)) == (0, 1, 1, 0)
    from mlflow import MlflowClient

    client = MlflowClient(server)
    told = fake.recorded(client, sweep.name)
    assert [step for step, _ in told[KEYS[1]]["points"]["loss"]] == list(range(40))
    assert told[KEYS[0]]["points"]["fd_vs_nfe"] == [(1, 100.0), (2, 50.0), (4, 25.0)]
    parent = told[""]["info"]
    assert [a.path for a in client.list_artifacts(parent.run_id, "report")] == ["report/table.md"]
    assert not (root / "mlartifacts" / sweep.name).exists()


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
def test_a_bad_uri_is_told_in_one_line(tmp_path: Path, uri: str, told: str) -> None:
    (tmp_path / "text").write_text("no database " * 100)
    began = time.perf_counter()
    with pytest.raises(UserError) as caught:
        sync([], tmp_path / "root", uri.format(text=tmp_path / "text"))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - began < 5
    shutil.rmtree(tmp_path / "root", ignore_errors=True)


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot sync the run root"):
        sync([], tmp_path / "file")
