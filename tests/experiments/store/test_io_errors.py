"""A file system that is away for a moment, or full: nothing is lost, and no launcher ends."""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import Timeout
from helpers.tiny import last_tensors, tiny

from fewstep import files
from fewstep.experiments import worker
from fewstep.experiments.run import RunFailed, prepare, run
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.files import append, locked, patiently
from fewstep.sweeps.launcher import Event
from fewstep.sweeps.run_queue import RunQueue, died

SETTINGS = ("training.log_every=1", "training.checkpoint_every=2", "evaluation.steps=[1,2]")
FILES = (
    "claim.json", "spec.json", "request.json", "progress.json", "attempts.jsonl", "metrics.jsonl",
    "state.json", "evaluations/", "samples/", "result.json",
)  # fmt: skip
PASSING = (errno.EIO, errno.ESTALE, errno.ENOSPC, errno.ESHUTDOWN)


class Faulty:
    """Makes opening a file whose path contains ``part`` fail, so many ``times``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.part, self.number, self.times, self.failed = "nothing", errno.EIO, 0, 0
        real = io.open

        def fail_or(path: Any, *arguments: Any, **named: Any) -> Any:
            # a file is written under a name beside its own
            where = str(path).replace("/.", "/")
            if self.part in where and self.times > 0 and not isinstance(path, int):
                self.times -= 1
                self.failed += 1
                raise OSError(self.number, os.strerror(self.number), str(path))
            return real(path, *arguments, **named)

        monkeypatch.setattr(io, "open", fail_or)
        monkeypatch.setattr(builtins, "open", fail_or)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(files, "_in_vain", -files.HOPELESS_SECONDS)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Faulty:
    return Faulty(monkeypatch)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    directory = prepare(tiny(tmp_path_factory.mktemp("well"), *SETTINGS))
    run(directory)
    return last_tensors(directory)


@pytest.mark.parametrize("number", PASSING)
@pytest.mark.parametrize("part", FILES)
def test_errors_that_pass_change_nothing(
    tmp_path: Path, faulty: Faulty, expected: dict[str, torch.Tensor], part: str, number: int
) -> None:
    directory = prepare(tiny(tmp_path, *SETTINGS))
    faulty.part, faulty.number, faulty.times = part, number, 2
    run(directory, on_progress=worker.ProgressFile(directory))
    assert faulty.failed == 2
    assert directory.status() == "done"
    assert len(directory.cells()) == 2
    assert [row["step"] for row in directory.metrics()] == [1, 2, 3, 4, 5, 6]
    tensors = last_tensors(directory)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EIO, "io_error"),
        (errno.ESTALE, "io_error"),
        (errno.EROFS, "io_error"),
        (errno.EACCES, "io_error"),  # a Kerberos ticket ran out
        (errno.ECOMM, "io_error"),
        (errno.ENOSPC, "disk_full"),
        (errno.EDQUOT, "disk_full"),
    ],
)
def test_errors_that_stay_have_a_class_of_their_own(
    tmp_path: Path, faulty: Faulty, number: int, kind: str
) -> None:
    directory = prepare(tiny(tmp_path, *SETTINGS))
    faulty.part, faulty.number, faulty.times = "metrics.jsonl", number, 10_000
    with pytest.raises(RunFailed, match=kind):
        run(directory)
    assert (directory.failure() or {})["class"] == kind
    faulty.times = 0
    run(directory)  # and the run goes on from there
    assert directory.status() == "done"


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_checkpoints_that_cannot_be_read_are_not_begun_anew(
    tmp_path: Path, faulty: Faulty, number: int
) -> None:
    directory = prepare(tiny(tmp_path, *SETTINGS))
    run(directory)
    (directory.path / "result.json").unlink()
    faulty.part, faulty.number, faulty.times = "state.json", number, 10_000
    with pytest.raises(RunFailed, match="io_error"):
        run(directory)
    assert directory.last_step() == 6
    faulty.times = 0
    assert run(directory)["steps"] == 6


def worker_of(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(worker, "StopFlag", lambda parent: lambda: False)
    return worker.main([str(directory.path)])


@pytest.mark.parametrize("room", [True, False])
def test_a_full_disk_is_known_by_the_exit_code_and_ends_no_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    """Not even failure.json can be written: the launcher knows the class all the same.

    ``room``: whether it could begin, and a last line still fits into a block of attempts.jsonl.
    """
    directory = prepare(tiny(tmp_path, *SETTINGS))
    real = files.replacing

    def full(file: Path) -> Any:
        if room and "claim.json" in file.name:
            return real(file)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    for module in ("fewstep.experiments.store.json_files", "fewstep.files"):
        monkeypatch.setattr(f"{module}.replacing", full)
    code = worker_of(directory, monkeypatch)
    assert code == worker.UNRECORDED["disk_full"]
    events: list[Event] = []
    queue = RunQueue([directory], lambda event, running: events.append(event))
    assert queue.next() == directory
    queue.start(directory)
    queue.end(directory, code)
    assert queue.outcome.failed == [directory.key]
    assert (events[-1].reason() or {})["class"] == "disk_full"
    assert directory.status() == ("failed" if room else "new")
    assert (directory.failure() or {}).get("class") == ("disk_full" if room else None)
    for module in ("fewstep.experiments.store.json_files", "fewstep.files"):
        monkeypatch.setattr(f"{module}.replacing", real)
    assert worker_of(directory, monkeypatch) == worker.DONE
    assert (directory.status(), directory.failure()) == ("done", None)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", ["spec.json", "claim.json"])
def test_a_run_that_cannot_be_read_keeps_no_other_from_starting(
    tmp_path: Path, faulty: Faulty, name: str, number: int
) -> None:
    runs = [prepare(tiny(tmp_path, *SETTINGS, f"seed={seed}")) for seed in range(2)]
    events: list[Event] = []
    queue = RunQueue(list(runs), lambda event, running: events.append(event))
    faulty.part, faulty.number, faulty.times = f"{runs[0].key}/{name}", number, 10_000
    assert queue.next() == runs[1]
    assert queue.outcome.failed == [runs[0].key]
    assert (events[0].reason() or {})["class"] == "io_error"
    queue.start(runs[1])
    faulty.part = f"{runs[1].key}/failure.json"
    queue.end(runs[1], worker.FAILED)
    assert queue.outcome.failed == [runs[0].key, runs[1].key]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOSPC])
def test_a_log_that_cannot_be_opened_is_waited_for_and_then_named(
    tmp_path: Path, faulty: Faulty, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    directory = prepare(tiny(tmp_path, *SETTINGS))
    kind = "io_error" if number == errno.ESTALE else "disk_full"
    faulty.part, faulty.number, faulty.times = "log.txt", number, 2
    worker.open_log(directory).close()
    faulty.times = 10_000
    with pytest.raises(worker.NoLog, match=r"log\.txt") as ended:
        worker.open_log(directory)
    assert ended.value.code == worker.FAILED
    failure = directory.failure() or {}
    assert failure["class"] == kind
    assert str(directory.log) in failure["message"]
    faulty.part = directory.key  # nor can failure.json be written
    with pytest.raises(worker.NoLog) as ended:
        worker.open_log(directory)
    assert ended.value.code == worker.UNRECORDED[kind]
    assert died(directory, ended.value.code)["class"] == kind  # and the log need not be read


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []

    def failing(number: int, until: int) -> Callable[[], int]:
        def action() -> int:
            attempts.append(number)
            if len(attempts) <= until:
                raise OSError(number, "x")
            return len(attempts)

        return action

    assert patiently(failing(errno.ESTALE, 2)) == 3
    attempts.clear()
    with pytest.raises(FileNotFoundError):
        patiently(failing(errno.ENOENT, 9))
    assert len(attempts) == 1  # another kind of error is no matter of time
    attempts.clear()
    with pytest.raises(OSError, match="x"):
        patiently(failing(errno.EIO, 99))
    assert len(attempts) == 3
    attempts.clear()
    with pytest.raises(OSError, match="x"):
        patiently(failing(errno.EIO, 99))
    assert len(attempts) == 1  # others have waited in vain a moment ago


def test_who_waits_for_a_lock_says_so_and_an_error_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.lock"
    with locked(file, 10.0):
        pass
    assert not caplog.records
    monkeypatch.setattr(files, "QUIET_SECONDS", 0.01)
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Timeout), locked(file, 0.05):
            pass
    assert caplog.messages == [f"waiting for another process, which has locked {file}"]

    def away(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))  # an NFS without lockd

    monkeypatch.setattr(fcntl, "flock", away)
    with pytest.raises(OSError, match=r"cannot be locked \(No locks available\)") as error:
        locked(file).__enter__()
    assert error.value.filename == str(file)
    assert files.io_error_class(error.value) == "io_error"


def test_a_line_is_added_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.jsonl"
    append(file, "one\n")

    class Half(io.FileIO):
        def write(self, data: Any) -> int:
            if len(data) < 4:
                raise OSError(errno.ENOSPC, "full")
            return super().write(data[:2])

    monkeypatch.setattr(io, "open", lambda path, *a, **k: Half(path, "ab"))
    with pytest.raises(OSError, match="full"):
        append(file, "other\n")
    monkeypatch.undo()
    assert file.read_text() == "one\n"
