"""Failures as data: a class, a line a person understands, and what is worth trying again."""

from __future__ import annotations

import errno
import math
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fewstep.experiments.provenance import now
from fewstep.experiments.rundir import Json, RunDirectory

LOG_TAIL_LINES = 20
FULL = (errno.ENOSPC, errno.EDQUOT)


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
    "bad_data": FailureClass(0, True),  # settings or data that do not fit
    "bug": FailureClass(0, True),  # an exception
    "killed": FailureClass(1, True),  # the process was killed from outside
    "lost_node": FailureClass(math.inf, True),  # the machine was lost
    "preempted": FailureClass(math.inf, True),  # another job took the machine
    "timeout": FailureClass(math.inf, True),  # the job's time ran out
    "cancelled": FailureClass(0, True, retried=False),  # somebody cancelled it
    "no_teacher": FailureClass(0, True),  # its teacher failed or was lost: it could not begin
}


def failure_class(error: BaseException) -> str:
    """nan | oom | disk_full | lost_node | bad_data | bug, of an exception."""
    import torch  # status and reports read failures without it

    from fewstep.errors import UserError
    from fewstep.experiments.distributed import is_loss

    if isinstance(error, FloatingPointError):
        return "nan"
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "oom"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return "oom"  # what torch's CPU allocator says
    if _is_full(error):
        return "disk_full"
    if is_loss(error):
        return "lost_node"
    return "bad_data" if isinstance(error, UserError) else "bug"


def _is_full(error: BaseException) -> bool:
    """Whether the system had no room to write; safetensors tells its error number in words."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)


def of_error(run: RunDirectory, error: BaseException) -> Json:
    """failure.json for an exception."""
    return record(
        run,
        failure_class(error),
        (str(error).strip() or type(error).__name__).splitlines()[0],
        "".join(traceback.format_exception(error)),
        getattr(error, "step", None),
    )


def record(
    run: RunDirectory, kind: str, message: str, trace: str = "", step: int | None = None
) -> Json:
    """failure.json: its class, one line, the traceback if there is one, the end of the log."""
    assert kind in CLASSES, kind
    progress = run.progress() or {}
    if step is None and progress.get("phase") == "train":
        step = max(progress["done"], run.last_step())  # saved as it was stopped
    return {
        "key": run.key,
        "class": kind,
        "message": message,
        "traceback": trace,
        "log_tail": log_tail(run.log),
        "step": step,
        "finished": now(),
    }


def log_tail(log: Path, lines: int = LOG_TAIL_LINES) -> list[str]:
    """The last ``lines`` of a log; none where there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 64 * 1024))  # a log may be long
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []


STUCK = 3  # attempts that kept nothing, after which a run that is lost again is left


def comes_again(run: RunDirectory) -> bool:
    """Whether a launcher tries the run again by itself when its jobs are over: it was lost.

    Lost for ever it may be only if it gets on: one whose last attempts all began where it is now,
    with no step, pair or cell more, is left to a person.
    """
    failure = run.failure()
    if run.result() is not None or not (run.attempts() or failure):
        return False
    if failure is not None and CLASSES[failure["class"]].retries != math.inf:
        return False
    last, kept = run.attempts()[-STUCK:], run.kept()
    return len(last) < STUCK or any(
        attempt.get(what) != number for attempt in last for what, number in kept.items()
    )


def resumed(run: RunDirectory, asked: Iterable[str] = ()) -> bool:
    """Whether launching the sweep tries the run again; ``asked``: classes asked for by name."""
    failure = run.failure()
    if failure is None or run.spec() is None:  # of one that has lost its spec.json, nothing holds
        return True
    return failure["class"] in asked or CLASSES[failure["class"]].resumed
