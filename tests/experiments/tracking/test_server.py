"""``sync`` over HTTP to a real MLflow server on a real PostgreSQL, killed at the worst moments."""

from __future__ import annotations

import http.client
import itertools
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers import tracking as fake
from helpers import tracking_server as real
from helpers.browser import browser, lacking
from helpers.commands import wait_for
from helpers.tracking import clean_cwd  # noqa: F401  (used by all tests here)

from fewstep.experiments.store.json_files import write_json
from fewstep.experiments.store.run_directory import SweepDirectory
from fewstep.experiments.tracking.charts import RUNS
from fewstep.experiments.tracking.mlflow_private import view_address
from fewstep.experiments.tracking.sync import StoreUnavailable, Syncer, charts, sync

BINARIES = real.postgres_binaries()
pytestmark = [
    pytest.mark.xdist_group("mlflow server"),  # one server for all of them
    pytest.mark.skipif(
        BINARIES is None, reason="no PostgreSQL here: enable with `apt-get install postgresql`"
    ),
    pytest.mark.skipif(
        find_spec("psycopg") is None, reason="no psycopg: enable with pip install -e '.[dev]'"
    ),
]
KEYS = ["1a2b3c4d5e", "2b3c4d5e6f"]
WRITTEN = """<script>alert(1)</script> & &lt;b&gt; of *this* and _that_, `x`, ~~y~~
a|b, [c](d), @e \\_
# one
===
- two
  - three
    1. four
> five"""  # what a browser shows of it must be the same


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[real.Server, real.Postgres]]:
    assert BINARIES is not None
    with real.server_on_postgres(BINARIES) as both:
        yield both


@pytest.fixture(scope="module")
def server(store: tuple[real.Server, real.Postgres]) -> str:
    return store[0].uri


@pytest.fixture(scope="module")
def client(server: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(server)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow sends a request again at once, and once only: the tests need not wait for it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def finished_sweep(root: Path, name: str, runs: int = 2, steps: int = 40) -> SweepDirectory:
    """With a report, and diagnostics of its first run."""
    sweep = fake.make_sweep(root, name, KEYS if runs == 2 else [f"{i:010x}" for i in range(runs)])
    for run in sweep.runs():
        fake.complete(run, steps)
    first = sweep.runs()[0]
    first.diagnostics.mkdir()
    (first.diagnostics / "loss_grid.png").write_bytes(bytes(range(256)) * 40)
    (sweep.report / "figures").mkdir(parents=True)
    (sweep.report / "table.md").write_text("| FD |")
    (sweep.report / "figures" / "fd.svg").write_text("<svg/>")
    return sweep


def test_all_of_it_arrives_once(server: str, client: Any, tmp_path: Path) -> None:
    root = tmp_path / "run root"
    sweep = finished_sweep(root, "served")
    assert fake.counts(sync([sweep], root, server)) == (2, 0, 0, 0)
    fake.assert_mirrored(client, sweep, tmp_path / "first")
    assert fake.counts(sync([sweep], root, server)) == (0, 0, 2, 0)
    for file in sweep.path.rglob("*.json*"):
        os.utime(file)  # as after a copy: looked at again
    assert fake.counts(sync([sweep], root, server)) == (0, 2, 0, 0)
    fake.assert_mirrored(client, sweep, tmp_path / "second")
    assert not (root / "mlartifacts").exists()


def test_a_run_that_grows_is_not_read_back(
    server: str, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a run trains, a look costs a handful of requests, however long its curves are."""
    root = tmp_path / "runs"
    sweep = fake.make_sweep(root, "growing", KEYS)
    run, other = sweep.runs()
    fake.complete(other)
    fake.train(run, range(300), {"loss": math.nan})
    syncer = Syncer(root, server)
    assert fake.counts(syncer([sweep])) == (2, 0, 0, 0)
    asked = requests_sent(monkeypatch)
    assert fake.counts(syncer([sweep])) == (0, 0, 2, 0)
    assert asked == []
    for steps in (range(300, 303), range(303, 310)):
        asked.clear()
        fake.train(run, steps)
        assert fake.counts(syncer([sweep])) == (0, 1, 1, 0)
        assert len(asked) <= 5, asked
        assert not any("get-history" in path for path in asked)
    told = fake.recorded(client, sweep.name)[KEYS[0]]["points"]
    assert [step for step, _ in told["loss"]] == list(range(310))
    run.metrics_file.unlink()
    fake.complete(run, steps=310)
    assert fake.counts(syncer([sweep])) == (0, 1, 1, 0)
    told = fake.recorded(client, sweep.name)[KEYS[0]]["points"]
    assert [step for step, _ in told["seconds"]] == list(range(310))


def requests_sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all requests from now on, as they are sent."""
    from requests import Session

    send, paths = Session.send, []

    def counted(self: Any, request: Any, **options: Any) -> Any:
        paths.append(request.path_url)
        return send(self, request, **options)

    monkeypatch.setattr(Session, "send", counted)
    return paths


class Killed(BaseException):
    """What a SIGKILL is to the code it strikes: nothing handles it."""


def test_death_after_any_request_loses_and_doubles_nothing(
    server: str, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the first request, after the second, ...: the next sync mends it each time."""
    from requests import Session

    send = Session.send
    for last in itertools.count(1):
        sweep = finished_sweep(tmp_path / "runs", f"died_after_{last}", runs=1, steps=5)
        sent = itertools.count(1)

        def one_too_many(
            self: Any, request: Any, sent: Any = sent, last: int = last, **options: Any
        ) -> Any:
            answer = send(self, request, **options)
            if next(sent) == last:
                raise Killed
            return answer

        with monkeypatch.context() as patched:
            patched.setattr(Session, "send", one_too_many)
            try:
                sync([sweep], tmp_path / "runs", server)
            except Killed:
                died = True
            else:
                died = False
        report = sync([sweep], tmp_path / "runs", server)
        assert report.created + report.updated + report.unchanged == 1
        fake.assert_mirrored(client, sweep, tmp_path / f"artifacts{last}")
        if not died:
            break
    assert last > 10, "fewer requests than a sync has"


@contextmanager
def answers_lost(server: str, lost: Callable[[str], bool]) -> Iterator[str]:
    """The address of a proxy to ``server`` that passes requests on, and loses some answers."""
    host = server.removeprefix("http://")

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            there = http.client.HTTPConnection(host, timeout=30)
            there.request(self.command, self.path, body, {**self.headers, "Host": host})
            answer = there.getresponse()
            content = answer.read()
            if lost(self.path):
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


def test_a_lost_answer_makes_no_second_run(server: str, client: Any, tmp_path: Path) -> None:
    """The server has done it and dies before it says so: asked again, it does it again."""
    root = tmp_path / "runs"
    sweep = finished_sweep(root, "unanswered")
    losses: dict[str, int] = {}

    def first_of_each(path: str) -> bool:
        kind = path.partition("?")[0]
        losses[kind] = losses.get(kind, 0) + 1
        return "health" not in kind and losses[kind] == 1

    with answers_lost(server, first_of_each) as uri:
        try:
            sync([sweep], root, uri)
        except StoreUnavailable:
            sync([sweep], root, uri)
    assert losses["/api/2.0/mlflow/runs/create"] > 3, "no request was sent again"
    fake.assert_mirrored(client, sweep, tmp_path / "artifacts")


def test_two_at_once_of_one_sweep(server: str, client: Any, tmp_path: Path) -> None:
    """A collector job and its user: nothing is doubled."""
    root = tmp_path / "runs"
    sweep = finished_sweep(root, "both", runs=6)
    both = [fake.start(root, sweep, Path.cwd(), server) for _ in range(2)]
    told = sorted(process.communicate(timeout=120) for process in both)
    assert [out for out, _ in told] == [b"0 0 6\n", b"6 0 0\n"]
    errors = [line for _, err in told for line in err.splitlines()]
    assert all(b"waiting for another process" in line for line in errors)  # after 5 s
    fake.assert_mirrored(client, sweep, tmp_path / "artifacts")


def test_killed_in_the_middle_and_back_again(
    store: tuple[real.Server, real.Postgres], client: Any, tmp_path: Path
) -> None:
    """The server is killed, then its database, while ``fewstep sync --watch`` is at work."""
    from mlflow.exceptions import MlflowException

    server, database = store
    root = tmp_path / "runs"
    runs = 40
    sweep = finished_sweep(root, "outlived", runs=runs, steps=100)
    unfinished = sweep.runs()[-1]
    unfinished.remove("result")
    log = tmp_path / "said"
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fewstep", "sync", sweep.name, "--watch", "--every", "0.5",
             f"tracking.uri={server.uri}", "--runs", str(root)],
            cwd=Path.cwd(), stdin=subprocess.DEVNULL, stdout=said, stderr=said,
        )  # fmt: skip

    def there() -> int:
        if found := client.get_experiment_by_name(f"fewstep/{sweep.name}"):
            return len(client.search_runs([found.experiment_id], "tags.`fewstep.role` = 'run'"))
        return 0

    try:
        wait_for(lambda: there() > 3, "the first runs")
        server.kill()
        wait_for(lambda: log.read_text().count("; retrying") == 1, "word of the outage")
        server.up()
        reached = there()
        assert 3 < reached < runs, "killed too late to tell anything"
        wait_for(lambda: there() > reached + 3, "more runs")
        database.kill(signal.SIGQUIT)
        with pytest.raises(MlflowException):
            there()
        database.up()
        assert reached < there() < runs, "killed too late to tell anything"
        wait_for(lambda: there() == runs, "all runs")
        assert process.poll() is None, "one run has not ended"
        fake.finish(unfinished)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    # An outage ends with the pass that succeeds: these two may have been one.
    outages = log.read_text().count("; retrying")
    assert outages in (1, 2)
    assert log.read_text().count("MLflow is back") == outages
    assert "Traceback" not in log.read_text()
    fake.assert_mirrored(client, sweep, tmp_path / "artifacts")


def test_its_pages_show_the_charts(server: str, client: Any, tmp_path: Path) -> None:
    """MLflow's own, at the addresses that ``sync`` tells."""
    if why := lacking():
        pytest.skip(why)
    sweep = fake.make_sweep(tmp_path / "runs", "shown", KEYS)
    write_json(sweep.path / "sweep.json", (sweep.plan() or {}) | {"description": WRITTEN})
    for run, lr in zip(sweep.runs(), (0.1, 0.2), strict=True):
        spec = run.spec() or {}
        spec["config"]["training"]["lr"] = lr
        run.write("spec", spec)
        fake.complete(run)
    (sweep.report).mkdir()
    (sweep.report / "table.md").write_text("| Method | 1 step |\n|---|---|\n| sCM | 100 |\n")
    report = sync([sweep], tmp_path / "runs", server)
    methods = charts(report)[sweep.name]
    runs = f"{server}/{view_address(report.experiments[sweep.name], RUNS)}"
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 2000, "height": 1400})
        page.set_default_timeout(60_000)
        for place, drawn in ((methods, ".js-plotly-plot"), (runs, ".parcoords")):
            page.goto(place)
            page.locator(drawn).first.wait_for()
            assert "shared view state" not in page.locator("body").inner_text()  # error loading it
            assert f"averaged over seeds, every run\n\n{WRITTEN}" in described(page)
            for title in ("Quality", "Training", "fd_vs_nfe"):
                assert page.get_by_text(title, exact=True).count(), title
        parent = fake.recorded(client, sweep.name)[""]
        page.goto(
            f"{server}/#/experiments/{report.experiments[sweep.name]}/runs/{parent['info'].run_id}"
        )
        assert WRITTEN in described(page)
        assert parent["tags"]["mlflow.note.content"].endswith("| sCM | 100 |")


def described(page: Any) -> str:
    """The page's text, once it has the description."""
    page.get_by_text("<script>").first.wait_for()
    return str(page.locator("body").inner_text()).replace("\xa0", " ")
