"""A fork server beside an actor, as the actor has it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from typing import Any

from fewstep.experiments.claim import JOB
from fewstep.sweeps.ray.forkserver import Order

GONE = -int(signal.SIGKILL)  # exit code where the fork server is not there to tell one


class Fork:
    """A fork server, and what it says; one run at a time."""

    def __init__(self, threads: int) -> None:
        self.pid: int | None = None  # of the child at work
        self.asked: int | None = None  # the signal that is meant for it
        self.heard: queue.Queue[dict[str, Any]] = queue.Queue()
        # -P: the folder we are in must not shadow a package (it may hold its own analysis/)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fewstep.sweeps.ray.forkserver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"}
            | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, order: Order) -> None:
        """Have a run started; its claim names this machine."""
        job = json.dumps({"launcher": "ray", "node": os.uname().nodename})
        order = {**order, "environment": {**order["environment"], JOB: job}}
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
        self.heard.put({"code": GONE})
