"""A run in a process of its own: ``python -m fewstep.experiments.worker RUN_DIRECTORY``.

It tells where it is in progress.json, at most once a second, and on SIGTERM or SIGINT (or when the
process that started it is gone) writes a checkpoint and leaves.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fewstep.errors import UserError
from fewstep.experiments.store import failures
from fewstep.experiments.store.run_directory import UNWRITTEN, RunDirectory
from fewstep.files import io_error_class, patiently, write_file

if TYPE_CHECKING:
    from fewstep.experiments.early_stopping import Rungs

LOOK_SECONDS = 0.5
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
DONE, FAILED, BAD_INPUT, INTERRUPTED, BUSY, SUPERSEDED = 0, 1, 2, 75, 76, 77
UNRECORDED = dict(zip(UNWRITTEN, (73, 74), strict=True))  # where failure.json could not be written


class StopFlag:
    """True once a signal came (a second Ctrl-C does not wait), or the named parent died."""

    def __init__(self, parent: int | None = None) -> None:
        self.parent = parent
        self.signalled = False
        # a scheduler that sends USR2 sends it to all processes of a job; it means the same here
        for number in STOPPING:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # one that came before is heard now

    def _on_signal(self, number: int, frame: object) -> None:
        self.signalled = True
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)

    def __call__(self) -> bool:
        return self.signalled or (self.parent is not None and os.getppid() != self.parent)


@contextlib.contextmanager
def leaving_at_once(stop: StopFlag) -> Iterator[None]:
    """A context in which this process ends as soon as it is asked to: it has nothing to save.

    While it waits for the others, in torch's C++, no signal's handler would run.
    """
    waiting, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            ready, _, _ = select.select([waiting], [], [], LOOK_SECONDS)
            if not over.is_set() and (ready or stop()):
                os._exit(INTERRUPTED)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        over.set()
        os.write(wake, b"\0")
        watcher.join()
        os.close(waiting)
        os.close(wake)


class ProgressFile:
    """Writes progress.json at most once a second, and at the end of each phase."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.written = 0.0

    def __call__(self, phase: str, done: int, total: int, rate: float) -> None:
        now = time.time()
        if now - self.written < 1 and done < total:
            return
        self.written = now
        record = {"phase": phase, "done": done, "total": total, "rate": rate, "time": now}
        record |= {"pid": os.getpid(), "host": os.uname().nodename}
        with contextlib.suppress(OSError):  # it is for display alone
            write_file(self.directory.path / "progress.json", json.dumps(record))


class NoLog(Exception):
    """A run cannot begin: its log.txt cannot be opened. ``code``: the exit code that says so."""

    def __init__(self, error: OSError, code: int) -> None:
        super().__init__(str(error))
        self.code = code


def open_log(directory: RunDirectory) -> BinaryIO:
    """log.txt, to add to what earlier attempts printed.

    ``NoLog`` where it cannot be opened; failure.json then says why, if that can be written.
    """
    try:
        return patiently(lambda: directory.log.open("ab"))
    except OSError as error:
        failure = failures.unreadable(directory, error)
        code = FAILED
        try:
            directory.write("failure", failure)
        except OSError:
            code = UNRECORDED.get(failure["class"], FAILED)
        raise NoLog(error, code) from None


def main(arguments: list[str] | None = None, rungs: Rungs | None = None) -> int:
    """Run one directory to its end; returns one of the exit codes above.

    Where its launcher may end it early, ``rungs`` says when and how to ask.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--parent", type=int, default=None, help="stop when this parent is gone")
    options = parser.parse_args(arguments)
    stop = StopFlag(options.parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # these take seconds: after the signals
    from fewstep.experiments.distributed import process_group as distributed
    from fewstep.experiments.run import Interrupted, LeaseLost, RunFailed, RunLocked, run

    directory = RunDirectory(options.directory)
    try:
        several = distributed.rendezvous_variables(os.environ) is not None
        with leaving_at_once(stop) if several else contextlib.nullcontext():
            ranks = distributed.init_process_group()  # under torchrun, srun or Ray; alone otherwise
        progress = ProgressFile(directory) if ranks.is_main else lambda *args: None
        run(directory, stop, progress, rungs)
    except Interrupted as reason:
        logging.info("interrupted: %s", reason)
        status = INTERRUPTED
    except RunLocked as reason:
        logging.info("%s", reason)
        status = BUSY
    except RunFailed as failure:
        kind = failure.record["class"]
        code = FAILED if failure.recorded else UNRECORDED.get(kind, FAILED)
        distributed.abort(code)
        return code
    except OSError as error:  # before it held the run, or after
        if (kind := io_error_class(error)) is None:
            raise
        logging.error("%s", error)
        distributed.abort(UNRECORDED[kind])
        return UNRECORDED[kind]
    except LeaseLost as reason:
        logging.info("%s", reason)
        distributed.abort(SUPERSEDED)
        return SUPERSEDED
    except UserError as error:
        logging.error("%s", error)
        distributed.abort(BAD_INPUT)
        return BAD_INPUT
    else:
        status = DONE
    distributed.destroy_process_group()
    return status


if __name__ == "__main__":
    sys.exit(main())
