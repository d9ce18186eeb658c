"""The local launcher: k processes on this machine, its cores and GPUs divided among them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fewstep.experiments import worker
from fewstep.experiments.provenance import now
from fewstep.experiments.rundir import Json, RunDirectory
from fewstep.sweeps.status import is_busy

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0
LOG_TAIL_LINES = 20
MEMORY_PER_RUN = 2 * 2**30


@dataclass(frozen=True)
class Event:
    """``kind``: started | done | failed | interrupted | busy | tick (nothing new, time passed).

    Busy: another process has the run; it is looked at again until that one lets go of it.
    """

    kind: str
    run: RunDirectory | None = None


OnEvent = Callable[[Event, Sequence[RunDirectory]], None]
"""(what happened, the runs at work now)"""


@dataclass
class Outcome:
    """How the launched runs ended."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Slot:
    """A worker's share of the machine."""

    threads: int
    gpu: int | None


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slots(runs: int, workers: int | None) -> list[Slot]:
    """A slot per worker; by default a worker per GPU, else per core as memory and runs allow."""
    gpus = torch.cuda.device_count()
    if workers is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        workers = gpus or max(1, min(cores(), memory // MEMORY_PER_RUN))
    workers = max(1, min(workers, runs))
    threads = max(1, cores() // workers)
    return [Slot(threads, i % gpus if gpus else None) for i in range(workers)]


@dataclass
class Worker:
    """A run in a process."""

    run: RunDirectory
    process: subprocess.Popen[bytes]
    slot: Slot


class LocalLauncher:
    """Runs directories in processes of their own; a failing or killed one leaves the rest alone."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers

    def launch(self, runs: Sequence[RunDirectory], on_event: OnEvent) -> Outcome:
        """Run all of them. On Ctrl-C or SIGTERM they save and stop, resumable; a second kills."""
        waiting = list(runs)
        free = slots(len(runs), self.workers)
        working: list[Worker] = []
        busy: list[RunDirectory] = []
        outcome = Outcome()
        signals: list[int] = []  # heard, and not heeded yet
        stopping: float | None = None

        def on_signal(number: int, frame: object) -> None:  # an exception could lose a worker
            signals.append(number)

        previous = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            while working or (waiting and stopping is None):
                for run in waiting[:] if stopping is None else []:
                    if not free or signals:
                        break
                    if teacher_of(run) in {r.key for r in [*waiting, *(w.run for w in working)]}:
                        continue  # its turn comes when the teacher is done, or has failed
                    if not is_busy(run):
                        waiting.remove(run)
                        working.append(self._start(run, free.pop()))
                        on_event(Event("started", run), [w.run for w in working])
                    elif run not in busy:
                        busy.append(run)
                        on_event(Event("busy", run), [w.run for w in working])
                time.sleep(POLL_SECONDS)
                for w in [w for w in working if w.process.poll() is not None]:
                    working.remove(w)
                    free.append(w.slot)
                    if w.process.returncode == worker.BUSY:  # another was quicker
                        waiting.append(w.run)
                        continue
                    event = self._end(w, outcome, stopping is not None)
                    on_event(event, [w.run for w in working])
                on_event(Event("tick"), [w.run for w in working])
                late = stopping is not None and time.monotonic() - stopping > GRACE_SECONDS
                if signals or late:
                    # the first asks the runs to save and leave, the second does not ask
                    number = signal.SIGTERM if stopping is None else signal.SIGKILL
                    for w in working:
                        w.process.send_signal(number)
                    stopping = stopping or time.monotonic()
                    signals.clear()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            for w in working:  # only after an error of our own
                w.process.terminate()
        outcome.interrupted += [run.key for run in waiting]
        return outcome

    def _start(self, run: RunDirectory, slot: Slot) -> Worker:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(slot.threads),
            "MKL_NUM_THREADS": str(slot.threads),
            "PYTHONUNBUFFERED": "1",
        }
        if slot.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot.gpu)
        # -P: the folder we are in must not shadow a package (it may hold its own analysis/)
        command = [sys.executable, "-P", "-m", "fewstep.experiments.worker", str(run.path)]
        with run.log.open("ab") as log:
            process = subprocess.Popen(
                [*command, "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
        return Worker(run, process, slot)

    def _end(self, w: Worker, outcome: Outcome, stopping: bool) -> Event:
        code = w.process.returncode
        if code == worker.DONE:
            outcome.done.append(w.run.key)
            return Event("done", w.run)
        if code == worker.INTERRUPTED or (stopping and code < 0):
            outcome.interrupted.append(w.run.key)
            return Event("interrupted", w.run)
        if w.run.failure() is None:  # it had no chance to say so itself
            w.run.write("failure", died(w.run, code))
        outcome.failed.append(w.run.key)
        return Event("failed", w.run)


def teacher_of(run: RunDirectory) -> str | None:
    """The key of the run's teacher."""
    teacher = ((run.spec() or {}).get("config") or {}).get("teacher")
    return None if teacher is None else Path(teacher).name


def died(run: RunDirectory, code: int) -> Json:
    """failure.json for a process that ended without a word."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (the system kills so when memory runs out)" if name == "SIGKILL" else ""
        kind, message = "killed", f"killed by {name}{hint}"
    else:
        kind, message = "bug", f"the process ended with exit code {code}"
    tail = run.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    progress = run.progress() or {}
    return {
        "key": run.key,
        "class": kind,
        "message": message,
        "traceback": "\n".join(tail),
        "step": progress.get("done") if progress.get("phase") == "train" else None,
        "finished": now(),
    }
