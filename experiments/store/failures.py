"""Failures as data: a class, one line, and whether to try again."""

import contextlib
import math
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.provenance import now
from fewstep.experiments.store.run_directory import RunDirectory, failure_record
from fewstep.files import io_error_class

LOG_TAIL_LINES = 20
MAX_FRUITLESS_ATTEMPTS = 3  # that kept nothing, after which a run that is lost again is left


@dataclass(frozen=True)
class FailureClass:
    """``retries``: how often a launcher tries again by itself. ``resumed``: whether launching the
    sweep another time does; else only ``fewstep retry``. ``retried``: whether that does where
    neither class nor run is named.
    """

    retries: float
    resumed: bool
    retried: bool = True


CLASSES = {
    "nan": FailureClass(0, False),  # a loss, a gradient or a sample is not finite
    "oom": FailureClass(0, False),  # out of memory
    "disk_full": FailureClass(0, False),  # no space left to write to, or a quota is used up
    "io_error": FailureClass(3, True),  # the file system was away, longer than a run waits for it
    "bad_data": FailureClass(0, True),  # settings or data that do not fit
    "bug": FailureClass(0, True),  # an exception
    "killed": FailureClass(1, True),  # the process was killed from outside
    "lost_node": FailureClass(math.inf, True),  # the machine was lost
    "preempted": FailureClass(math.inf, True),  # another job took the machine
    "timeout": FailureClass(math.inf, True),  # the job's time ran out
    "cancelled": FailureClass(0, True, retried=False),  # somebody cancelled it
    "no_teacher": FailureClass(0, True),  # its teacher failed or was lost: it could not begin
}


def rules(name: str) -> FailureClass:
    """Of the class; of one that a later version has written, those of a bug."""
    return CLASSES.get(name, CLASSES["bug"])


def error_record(run: RunDirectory, error: BaseException) -> Json:
    """failure.json for an exception."""
    # torch, which it imports, takes seconds: status and reports read failures without it
    from fewstep.experiments.store.classify_error import failure_class

    message = (str(error).strip() or type(error).__name__).splitlines()[0]
    trace = "".join(traceback.format_exception(error))
    return record(run, failure_class(error), message, trace, getattr(error, "step", None))


def record(
    run: RunDirectory, kind: str, message: str, trace: str = "", step: int | None = None
) -> Json:
    """failure.json: its class, one line, the traceback if there is one, the end of the log."""
    assert kind in CLASSES, kind
    progress = run.progress() or {}
    if step is None and progress.get("phase") == "train":
        step = max(progress["done"], run.last_step())  # saved as it was stopped
    more: Json = {"traceback": trace, "step": step}
    with contextlib.suppress(OSError):  # the log may be what cannot be read
        more["log_tail"] = log_tail(run.log)
    return failure_record(run.key, kind, message, now(), **more)


def unreadable(run: RunDirectory, error: Exception) -> Json:
    """A failure record of a run that has a file which cannot be read; nothing of it is read."""
    return failure_record(run.key, io_error_class(error) or "bad_data", str(error), now())


def log_tail(log: Path, lines: int = LOG_TAIL_LINES) -> list[str]:
    """The last ``lines`` of a log; none where there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 64 * 1024))  # a log may be long
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []


def retried_by_launcher(run: RunDirectory) -> bool:
    """Whether a launcher tries the run again by itself when its jobs are over: it was lost.

    Not one whose last attempts all began where it is now, with no step, pair or cell more.
    """
    failure = run.failure()
    if run.result() is not None or not (run.attempts() or failure):
        return False
    if failure is not None and rules(failure["class"]).retries <= 1:
        return False
    last, kept = run.attempts()[-MAX_FRUITLESS_ATTEMPTS:], run.saved_work()
    return len(last) < MAX_FRUITLESS_ATTEMPTS or any(
        attempt.get(what) != number for attempt in last for what, number in kept.items()
    )


def retried_on_launch(run: RunDirectory, classes: Iterable[str] = ()) -> bool:
    """Whether launching the sweep tries the run again; ``asked``: classes asked for by name."""
    failure = run.failure()
    if failure is None or run.spec() is None:  # of one that has lost its spec.json, nothing holds
        return True
    return failure["class"] in classes or rules(failure["class"]).resumed
