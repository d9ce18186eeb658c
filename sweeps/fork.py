"""A fork server as its launcher, or an actor, has it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.sweeps.forkserver import Order
from fewstep.sweeps.threads import limits

GONE = -int(signal.SIGKILL)  # exit code where the fork server is not there to tell one
OFTEN = ("sklearn.datasets", "scipy.linalg")  # imported by many runs: worth it before several


class Fork:
    """A fork server, and what it says; one run at a time.

    Attributes:
        threads: cores of a run. environment: of the server and its runs, beside our own.
        imports: modules to import beforehand, beside what all runs need.
        log: what the server itself says is added to it; else it goes where ours goes.
    """

    def __init__(
        self,
        threads: int,
        environment: Mapping[str, str] | None = None,
        imports: tuple[str, ...] = OFTEN,
        log: Path | None = None,
    ) -> None:
        self.pid: int | None = None  # of the child at work
        self.asked: int | None = None  # the signal that is meant for it
        # a signal's handler may read it, too, while it is being read
        self.heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        # -P: the folder we are in must not shadow a package (it may hold its own analysis/)
        with contextlib.nullcontext() if log is None else log.open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fewstep.sweeps.forkserver", *imports],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env={**os.environ, "PYTHONUNBUFFERED": "1"}
                | limits(threads)
                | dict(environment or {}),
                start_new_session=True,  # Ctrl-C is ours to pass on
                preexec_fn=ignore_usr2,
            )
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def start(self, order: Order) -> None:
        """Have a run started."""
        self._write(json.dumps(order).encode() + b"\n")

    def go_on(self) -> None:
        """Let the child leave the rung it waits at."""
        self._write(b"\n")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Have the child save and leave, or end by another signal, once it is there."""
        if self.asked != number:
            self.asked = number
            self._signal()

    def close(self) -> None:
        """End the server; a child that is still there saves and leaves."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def next(self, seconds: float) -> dict[str, Any] | None:
        """What is heard next; None where nothing is for ``seconds``."""
        try:
            said = self.heard.get(timeout=seconds)
        except queue.Empty:
            return None
        if "pid" in said:
            self.pid = said["pid"]
            self._signal()
        if "code" in said:
            self.pid = self.asked = None
        return said

    def _signal(self) -> None:
        if self.pid is not None and self.asked is not None:
            with contextlib.suppress(ProcessLookupError):  # it has seen its mark, and left
                os.kill(self.pid, self.asked)

    def _write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the listener tells

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.heard.put(json.loads(line))
        self.heard.put({"code": self.process.wait() or GONE})


def ignore_usr2() -> None:
    """Until there is a handler: a process must not die of what asks it to save."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
