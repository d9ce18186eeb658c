"""A process that has imported what a run needs, and forks a child for each: ``python -m`` this.

A run wants a process of its own: memory is given back, a crash is its own affair, an exit code says
how it ended. But a fresh one imports for seconds before it does anything. So each place for a run,
of the local launcher or an actor of Ray, keeps one of these, whose children are there at once.

Arguments: modules to import beside ``PRELOADED``. Lines of JSON. In: an ``Order`` starts a run;
only when it has ended may another follow. Out: ``{"pid"}`` of the child; from it, at each rung,
``{"rung", "score"}``, after which it waits for an empty line; ``{"code"}``, its exit code.

A child whose launcher or whose server is gone saves and leaves. Signals are for the children: a
scheduler sends them to all processes of a job, and the server stays to tell how a child ended.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

from fewstep.experiments import worker
from fewstep.experiments.rundir import RunDirectory

# what every run would else spend seconds on; nothing here starts a thread or touches a GPU
PRELOADED = ("fewstep.experiments.run", "torch._dynamo")
LOOK_SECONDS = 0.5
WAIT_SECONDS = 0.03


class Order(TypedDict):
    """A run to be started, and how; ``rungs`` may be none."""

    run: str
    cwd: str
    threads: int
    environment: dict[str, str]
    rungs: list[int]
    metric_steps: int


class Talk:
    """Asks the launcher, as a child does at a rung, whether to go on."""

    def __init__(self, directory: RunDirectory, replies: int, reports: int) -> None:
        self.directory, self.replies, self.reports = directory, replies, reports

    def __call__(self, step: int, score: float, stop: Callable[[], bool]) -> bool:
        """Whether to go on; yes where nobody is left to ask, for then the run leaves anyway."""
        try:
            os.write(self.reports, json.dumps({"rung": step, "score": score}).encode() + b"\n")
        except BrokenPipeError:
            return True
        # whoever ends the run says so by its mark, which reaches every machine
        while not (self.directory.path / "stopped.json").exists():
            if select.select([self.replies], [], [], LOOK_SECONDS)[0]:
                os.read(self.replies, 1)
                return True
            if stop():
                return True
        return False


def child(order: Order, server: int) -> int:
    """What a forked child does; its exit code."""
    import torch

    from fewstep.experiments.rungs import Rungs

    directory = RunDirectory(Path(order["run"]))
    replies, reports = os.dup(0), os.dup(1)
    os.setsid()
    with open(os.devnull) as nothing, directory.log.open("ab") as log:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(order["environment"])
    if os.path.isdir(order["cwd"]):
        os.chdir(order["cwd"])
    torch.set_num_threads(order["threads"])
    rungs = None
    if order["rungs"]:
        talk = Talk(directory, replies, reports)
        rungs = Rungs(tuple(order["rungs"]), order["metric_steps"], talk)
    return worker.main([str(directory.path), "--parent", str(server)], rungs)


def fork(order: Order) -> int:
    """Start a child; its process id."""
    server = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = child(order, server)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """The child's exit code, negative for a signal; told to leave when the launcher is gone."""
    launcher = select.poll()
    launcher.register(0, 0)  # only POLLHUP: what comes in is for the child
    told = False
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if told:
            time.sleep(WAIT_SECONDS)
        elif launcher.poll(WAIT_SECONDS * 1000):
            os.kill(pid, signal.SIGTERM)
            told = True


def say(**what: Any) -> None:
    """A line to the launcher; nobody may be there any more."""
    try:
        os.write(1, json.dumps(what).encode() + b"\n")
    except BrokenPipeError:
        sys.exit(0)


def next_line(source: BinaryIO) -> bytes:
    """A line, read byte by byte: what comes after it is not ours."""
    line = b""
    while not line.endswith(b"\n") and (byte := source.read(1)):
        line += byte
    return line


def main() -> None:
    """Serve until the launcher closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to pass on
    # a child inherits this, so that no signal is lost before it has handlers, which unblock
    signal.pthread_sigmask(signal.SIG_BLOCK, worker.STOPPING)
    for name in (*PRELOADED, *sys.argv[1:]):
        importlib.import_module(name)
    with open(0, "rb", buffering=0, closefd=False) as orders:
        while line := next_line(orders):
            if not line.strip():  # for a child that did not live to read it
                continue
            pid = fork(json.loads(line))
            say(pid=pid)
            say(code=wait(pid))


if __name__ == "__main__":
    main()
