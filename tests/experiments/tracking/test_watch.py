"""``watch``: curves grow while a sweep runs, and nothing but its end ends it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import tracking as fake
from helpers.commands import wait_for
from helpers.tracking import clean_cwd  # noqa: F401  (used by all tests here)

from fewstep.errors import UserError
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.experiments.tracking.sync import sync, tracking_uri
from fewstep.experiments.tracking.watch import watch

KEYS = ["1a2b3c4d5e", "2b3c4d5e6f"]
OFTEN = 0.01


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    sync([], root)  # creates the database
    return root


def test_curves_grow_until_the_last_run_has_ended(
    client: Any, root: Path, sweep: SweepDirectory, tmp_path: Path
) -> None:
    first, second = sweep.runs()
    passes = watch(lambda: [sweep], root, every=OFTEN)
    this = next(passes)
    assert (this.states, fake.counts(this.report)) == ({"new": 2}, (0, 0, 0, 2))
    for before, reached in ((0, 3), (3, 7), (7, 12)):
        fake.train(first, range(before, reached))
        assert next(passes).report.problems == ()
        told = fake.recorded(client, sweep.name)[KEYS[0]]
        assert [step for step, _ in told["points"]["loss"]] == list(range(reached))
        assert told["info"].status == "RUNNING"
        assert fake.counts(next(passes).report) == (0, 0, 1, 1)
    fake.complete(second)
    fake.train(first, range(8, 40))  # resumed from a checkpoint: steps 8 to 11 again
    next(passes)
    first.metrics_file.unlink()
    fake.complete(first)
    this = next(passes)
    assert this.states == {"done": 2}
    assert list(passes) == []
    fake.assert_mirrored(client, sweep, tmp_path / "artifacts")


def test_a_pass_over_what_has_not_changed_asks_nobody(
    root: Path, sweep: SweepDirectory, tmp_path: Path
) -> None:
    """It looks at files alone: without its database it is as well."""
    for run in sweep.runs():
        fake.train(run, range(20))
    own = tmp_path / "own"
    shutil.copytree(root, own)
    sweep = SweepDirectory(own / sweep.name)
    passes = watch(lambda: [sweep], own, f"sqlite:///{own}/other.db", every=OFTEN)
    assert fake.counts(next(passes).report) == (2, 0, 0, 0)
    (own / "other.db").rename(own / "away.db")
    assert fake.counts(next(passes).report) == (0, 0, 2, 0)
    assert not (own / "other.db").exists()


def test_unchanged_runs_are_listed_and_not_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of --watch over 1,000 runs takes 0.06 s on 2 cores."""
    sweep = fake.make_sweep(root, "thousand", [f"{i:010x}" for i in range(10)])
    for run in sweep.runs():
        fake.train(run, range(1))
    from fewstep.experiments.tracking.sweep_sync import SweepSync

    mirror = SweepSync(sweep, root, tracking_uri(root))
    mirror.seen = mirror.snapshot().states
    with monkeypatch.context() as reading:
        for name in ("spec", "result", "failure", "progress", "metrics", "cells"):
            reading.setattr(RunDirectory, name, None)
        assert mirror.snapshot().states == mirror.seen
    fake.train(sweep.runs()[5], range(1, 2))
    assert mirror.snapshot().states != mirror.seen


def test_trouble_before_the_first_pass_is_told_and_later_is_waited_for(
    root: Path, sweep: SweepDirectory
) -> None:
    fake.train(sweep.runs()[0], range(3))
    with pytest.raises(UserError, match=r"unsupported tracking\.uri"):
        next(watch(lambda: [sweep], root, "./mlruns"))
    away = next(watch(lambda: [sweep], root, "http://127.0.0.1:9"))
    assert (away.report, away.ended) == (None, False)
    assert "no MLflow server answers" in str(away.trouble)
    passes = watch(lambda: [sweep], root, every=OFTEN)
    next(passes)
    plan = (sweep.path / "sweep.json").read_text()
    (sweep.path / "sweep.json").write_text("{")
    assert "is not valid JSON" in str(next(passes).trouble)
    (sweep.path / "sweep.json").write_text(plan)
    for run in sweep.runs():
        fake.complete(run)
    assert next(passes).ended


def start(sweep: SweepDirectory, root: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "fewstep", "sync", sweep.name, "--runs", str(root)]
    return subprocess.Popen(
        [*command, "--watch", *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def without_waiting(text: str) -> list[str]:
    """The lines but those that tell of the other watch, which may have held the lock for long."""
    return [line for line in text.splitlines() if "waiting for another process" not in line]


def test_the_command_ends_by_itself_and_at_ctrl_c(
    client: Any, root: Path, sweep: SweepDirectory, tmp_path: Path
) -> None:
    first, second = sweep.runs()
    fake.complete(first)
    fake.train(second, range(5))
    both = [start(sweep, root, "--every", "0.2") for _ in range(2)]
    assert both[0].stdout is not None
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.extend(both[0].stdout or ()))
    listener.start()
    wait_for(lambda: any("1 done, 1 running" in line for line in heard), "the first pass")
    both[0].send_signal(signal.SIGINT)
    listener.join(20)
    assert both[0].wait(20) == 130
    assert both[0].stderr is not None
    assert without_waiting(both[0].stderr.read()) == [
        "stopped watching; the same command continues"
    ]
    second.metrics_file.unlink()
    fake.complete(second)
    out, err = both[1].communicate(timeout=60)
    assert (both[1].returncode, without_waiting(err)) == (0, [])
    assert out.splitlines()[-1] == "all runs are done or failed, and in MLflow"
    fake.assert_mirrored(client, sweep, tmp_path / "artifacts")
