"""A process that has imported what a run needs, and forks a child for each: ``python -m`` this.

A run needs a process of its own: its memory is freed, a crash stops no other run, an exit code says
how it ended. But a new process imports for seconds. So each pool of workers, and each actor of Ray,
keeps a fork server, whose children start at once.

Arguments: modules to import beside ``PRELOADED``. Lines of JSON, each with the number of a child.
In: an ``Order`` starts it. Out: its ``{"pid"}``; from itself, at each rung, ``{"rung", "score"}``,
after which it waits for ``{"resume": its number}``; ``{"code"}``, its exit code.

A child saves and stops when its launcher or its server is gone. Signals are for the children: a
scheduler sends them to all processes of a job, and the server stays to report the exit code.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from fewstep.experiments import worker
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.cpu_threads import LIMITS

# what every run would else spend seconds on; nothing here starts a thread or touches a GPU
PRELOADED = ("fewstep.experiments.run",)
LOOK_SECONDS = 0.5
WAIT_SECONDS = 0.03


class Order(TypedDict):
    """A run to be started; ``environment``: its variables, beside those of the server.

    ``child``: a number of its own, which the client gives.
    """

    child: NotRequired[int]
    run: str
    environment: dict[str, str]
    cwd: NotRequired[str]
    rungs: NotRequired[list[int]]
    metric_steps: NotRequired[int]


class RungClient:
    """Asks the launcher at a rung whether to continue; used by a child."""

    def __init__(self, directory: RunDirectory, child: int, replies: int, reports: int) -> None:
        self.directory, self.child = directory, child
        self.replies, self.reports = replies, reports

    def __call__(self, step: int, score: float, stop: Callable[[], bool]) -> bool:
        """Whether to continue; yes if the launcher is gone, for then the run stops anyway."""
        send(self.reports, child=self.child, rung=step, score=score)
        # a scheduler stops a run by its file, which is visible on every machine
        while not (self.directory.path / "stopped.json").exists():
            if select.select([self.replies], [], [], LOOK_SECONDS)[0]:
                os.read(self.replies, 1)
                return True
            if stop():
                return True
        return False


def send(file: int, **message: Any) -> None:
    """Write a line, whole, to a launcher that may be gone."""
    with contextlib.suppress(BrokenPipeError):
        os.write(file, json.dumps(message).encode() + b"\n")


def child(order: Order, server: int, replies: int) -> int:
    """Run in a forked child; returns its exit code."""
    import torch

    from fewstep.experiments.early_stopping import Rungs

    directory = RunDirectory(Path(order["run"]))
    reports = os.dup(1)  # open until it ends: only then does a client see the end of the output
    os.setsid()
    with open(os.devnull) as nothing, worker.open_log(directory) as log:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(order["environment"])
    if os.path.isdir(cwd := order.get("cwd", "")):
        os.chdir(cwd)
    torch.set_num_threads(int(os.environ[LIMITS[0]]))
    rungs = None
    if order.get("rungs"):
        client = RungClient(directory, order["child"], replies, reports)
        rungs = Rungs(tuple(order["rungs"]), order["metric_steps"], client)
    return worker.main([str(directory.path), "--parent", str(server)], rungs)


def fork(order: Order, replies: int) -> int:
    """Start a child; its process id."""
    server = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = child(order, server, replies)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except worker.NoLog as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Server:
    """Starts children and tells how they end, until the launcher closes its end."""

    def __init__(self) -> None:
        self.children: dict[int, tuple[int, int]] = {}  # number, pipe for replies; by process id
        self.input = b""
        self.closed = False

    def serve(self) -> None:
        while self.children or not self.closed:
            sources = [] if self.closed else [0]
            if select.select(sources, [], [], WAIT_SECONDS if self.children else None)[0]:
                self._read()
            for pid in list(self.children):
                self._reap(pid)

    def _read(self) -> None:
        content = os.read(0, 2**16)
        if not content:  # the launcher is gone
            self.closed = True
            for pid in self.children:
                os.kill(pid, signal.SIGTERM)
        *lines, self.input = (self.input + content).split(b"\n")
        for message in map(json.loads, lines):
            if "resume" in message:
                self._resume(message["resume"])
            else:
                self._start(message)

    def _start(self, order: Order) -> None:
        replies, reply = os.pipe()
        pid = fork(order, replies)
        os.close(replies)
        self.children[pid] = order["child"], reply
        send(1, child=order["child"], pid=pid)

    def _resume(self, child: int) -> None:
        for number, reply in self.children.values():
            if number == child:
                with contextlib.suppress(BrokenPipeError):  # it has ended
                    os.write(reply, b"\n")

    def _reap(self, pid: int) -> None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            child, reply = self.children.pop(pid)
            os.close(reply)
            send(1, child=child, code=os.waitstatus_to_exitcode(status))


def main() -> None:
    """Serve until the launcher closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver passes Ctrl-C on
    # a child inherits this, so that no signal is lost before it has handlers, which unblock
    signal.pthread_sigmask(signal.SIG_BLOCK, worker.STOPPING)
    for name in (*PRELOADED, *sys.argv[1:]):
        importlib.import_module(name)
    Server().serve()


if __name__ == "__main__":
    main()
