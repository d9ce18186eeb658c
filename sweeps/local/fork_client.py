"""The client of a fork server: a launcher, or an actor of Ray."""

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.cpu_threads import limits
from fewstep.sweeps.local.fork_server import Order

GONE = -int(signal.SIGKILL)  # exit code if the fork server has died
COMPILER = ("torch._dynamo",)  # two seconds for each run that takes tangents: for many runs


class Child:
    """A run in a child of a fork server."""

    def __init__(self, server: "ForkServerClient", number: int) -> None:
        self.pid: int | None = None
        self.pending_signal: int | None = None  # it may not have started
        # a signal handler may read messages while they are being read
        self.messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._server, self._number = server, number

    def resume(self) -> None:
        """Let it go on from a rung."""
        self._server.send({"resume": self._number})

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Have it save and stop, or send another signal, once it has started."""
        if self.pending_signal != number:
            self.pending_signal = number
            self._send_signal()

    def next(self, seconds: float) -> dict[str, Any] | None:
        """The next message; None if there is none for ``seconds``."""
        try:
            message = self.messages.get(timeout=seconds)
        except queue.Empty:
            return None
        if "pid" in message:
            self.pid = message["pid"]
            self._send_signal()
        if "code" in message:
            self.pid = self.pending_signal = None
        return message

    def _send_signal(self) -> None:
        if self.pid is not None and self.pending_signal is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(self.pid, self.pending_signal)


class ForkServerClient:
    """A fork server, which starts children.

    Attributes:
        threads: cores of a run. environment: of the server and its runs, beside our own.
        imports: modules to preload, besides those that all runs need.
    """

    def __init__(
        self,
        threads: int,
        environment: Mapping[str, str] | None = None,
        imports: tuple[str, ...] = (),
    ) -> None:
        self._children: dict[int, tuple[Child, RunDirectory]] = {}  # by number
        self._numbers = itertools.count()
        self._code: int | None = None  # once it has ended
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        variables = {"PYTHONUNBUFFERED": "1", **limits(threads), **(environment or {})}
        # -P: the folder we are in must not shadow a package (it may hold its own analysis/)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fewstep.sweeps.local.fork_server", *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            env={**os.environ, **variables},
            start_new_session=True,  # Ctrl-C is ours to pass on
            preexec_fn=ignore_usr2,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def start(self, order: Order) -> Child:
        number = next(self._numbers)
        child = Child(self, number)
        self._children[number] = child, RunDirectory(Path(order["run"]))
        self.send({**order, "child": number})
        if self._code is not None:
            self._lose(number)
        return child

    def send(self, message: Mapping[str, Any]) -> None:
        """Write a line to the server; without effect if it has ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """End the server; children that still run save and stop."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            child, _ = self._children[message["child"]]
            if "code" in message:
                del self._children[message["child"]]
            child.messages.put(message)
        self._code = self.process.wait() or GONE
        for number in list(self._children):
            self._lose(number)

    def _lose(self, number: int) -> None:
        """What the server wrote as it ended is for the runs that it took along."""
        child, run = self._children[number]
        size = os.fstat(self._output.fileno()).st_size
        with contextlib.suppress(OSError), run.log.open("ab") as log:
            log.write(os.pread(self._output.fileno(), size, 0))
        child.messages.put({"code": self._code})


def ignore_usr2() -> None:
    """Ignore the signal to save until there is a handler: by default it kills a process."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})  # the parent may block it
