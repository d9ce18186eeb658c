"""The local launcher: k processes on this machine, its cores and GPUs divided among them.

Each worker has a fork server, so that only its first run waits for imports.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from fewstep.experiments import failures, worker
from fewstep.experiments.claim import SUPERSEDES, Attempt, at_work
from fewstep.experiments.rundir import Json, RunDirectory
from fewstep.sweeps.fork import OFTEN, Fork
from fewstep.sweeps.launcher import Event, OnEvent, Outcome, called_off, teacher_of
from fewstep.sweeps.threads import cores, threads

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0
MEMORY_PER_RUN = 2 * 2**30


@dataclass(eq=False)
class Slot:
    """A worker's share of the machine; ``gpu`` as CUDA_VISIBLE_DEVICES names it."""

    threads: int
    gpu: str | None
    server: Fork | None = None  # from its first run on


def gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    import torch  # takes seconds: a scheduler's job, which is told its GPUs, does without

    return [str(i) for i in range(torch.cuda.device_count())]


def slots(runs: int, workers: int | None, cpus: float | None = None) -> list[Slot]:
    """A slot per worker; by default a worker per GPU, else per core as memory and runs allow.

    Each has ``cpus`` cores; by default they divide all there are.
    """
    devices = gpus()
    if workers is None:
        memory = psutil.virtual_memory().total
        workers = len(devices) or max(1, min(cores(), memory // MEMORY_PER_RUN))
    workers = max(1, min(workers, runs))
    each = threads(cores() / workers if cpus is None else cpus)
    return [Slot(each, devices[i % len(devices)] if devices else None) for i in range(workers)]


@dataclass
class Worker:
    """A run in a process. ``company``: whether another run was at work at some time of its life."""

    run: RunDirectory
    server: Fork
    slot: Slot
    before: Json | None  # the failure that an earlier attempt has left
    company: bool = False
    code: int | None = None

    def ended(self) -> bool:
        """Whether its process has; then ``code`` is its exit code."""
        while self.code is None and (said := self.server.next(0)) is not None:
            self.code = said.get("code")
        return self.code is not None


@dataclass
class LocalLauncher:
    """Runs directories in processes of their own; a failing or killed one leaves the rest alone.

    Attributes:
        workers: processes at a time; None for as many as fit.
        cpus: cores of each; None for an equal share of this machine's.
        environment: variables for the processes, beside our own.
        yields: leave altogether when a newer attempt takes a run away (a job that its scheduler
            has started again elsewhere).
        over: whether an attempt is known to be over, though it may seem alive: the run is taken
            from it.
    """

    workers: int | None = None
    cpus: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    yields: bool = False
    over: Callable[[Attempt], bool] = lambda attempt: False

    def __post_init__(self) -> None:
        self._signals: list[int] = []  # heard, and not heeded yet
        self._crew: Crew | None = None
        self.yielded = False  # whether a newer attempt took a run away

    def stop(self) -> None:
        """Ask the runs to save and leave, as a signal would."""
        self._signals.append(signal.SIGTERM)

    def halt(self) -> None:
        """Have the runs save and leave, and wait for them; for signal handlers."""
        if self._crew is not None:
            self._crew.signal()
            end = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < end and not all(w.ended() for w in self._crew.working):
                time.sleep(POLL_SECONDS / 4)

    def launch(self, runs: Sequence[RunDirectory], on_event: OnEvent) -> Outcome:
        """Run all of them. On Ctrl-C or SIGTERM they save and stop, resumable; a second kills."""

        def on_signal(number: int, frame: object) -> None:  # an exception could lose a worker
            self._signals.append(number)

        previous = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
        crew = self._crew = Crew(self, runs, on_event)
        try:
            while crew.working or (crew.waiting and crew.stopping is None):
                if crew.stopping is None and not self._signals:
                    crew.start()
                time.sleep(POLL_SECONDS)
                crew.collect()
                on_event(Event("tick"), crew.at_work())
                late = crew.stopping and time.monotonic() - crew.stopping > GRACE_SECONDS
                if self._signals or late:
                    crew.signal()
                    self._signals.clear()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            crew.close()
        crew.outcome.interrupted += [run.key for run in crew.waiting]
        return crew.outcome


class Crew:
    """The workers of one launch: what waits, what is at work, how it ended."""

    def __init__(
        self, launcher: LocalLauncher, runs: Sequence[RunDirectory], on_event: OnEvent
    ) -> None:
        self.launcher, self.on_event = launcher, on_event
        self.waiting = list(runs)
        self.teacher = {run.key: teacher_of(run) for run in runs}
        self.working: list[Worker] = []
        self.slots = slots(len(runs), launcher.workers, launcher.cpus)
        self.free = list(self.slots)
        self.imports = OFTEN if len(runs) > len(self.slots) else ()
        self.outcome = Outcome()
        self.stopping: float | None = None
        self.busy: set[str] = set()
        self.failed: Counter[tuple[str, str]] = Counter()  # how often, by run and class

    def at_work(self) -> list[RunDirectory]:
        return [w.run for w in self.working]

    def tell(self, kind: str, run: RunDirectory) -> None:
        self.on_event(Event(kind, run), self.at_work())

    def start(self) -> None:
        """Start what may be started; a student's turn comes when its teacher is done, or failed."""
        for run in self.waiting[:]:
            if not self.free or (self.working and _memory_is_short()):
                return
            if self.teacher[run.key] in {r.key for r in [*self.waiting, *self.at_work()]}:
                continue
            attempt = at_work(run)
            if attempt is None and called_off(run):
                self.waiting.remove(run)
                self.outcome.failed.append(run.key)
                self.tell("failed", run)
                continue
            if attempt is None or self.launcher.over(attempt):
                self.waiting.remove(run)
                token = "" if attempt is None else attempt.token
                self.working.append(self._start(run, self.free.pop(), token))
                for w in self.working:
                    w.company |= len(self.working) > 1
                self.tell("started", run)
            elif run.key not in self.busy:
                self.busy.add(run.key)
                self.tell("busy", run)

    def _start(self, run: RunDirectory, slot: Slot, supersedes: str) -> Worker:
        if slot.server is None or not slot.server.alive:
            gpu = {} if slot.gpu is None else {"CUDA_VISIBLE_DEVICES": slot.gpu}
            environment = {**self.launcher.environment, **gpu}
            slot.server = Fork(slot.threads, environment, self.imports, run.log)
        slot.server.start(
            {
                "run": str(run.path),
                "cwd": os.getcwd(),
                "threads": slot.threads,
                "environment": {SUPERSEDES: supersedes},
                "rungs": [],
                "metric_steps": 0,
            }
        )
        return Worker(run, slot.server, slot, run.failure())

    def collect(self) -> None:
        """Look which workers have ended, and how."""
        for w in [w for w in self.working if w.ended()]:
            self.working.remove(w)
            self.free.append(w.slot)
            self._ended(w)

    def close(self) -> None:
        """End the servers; a run is still at work only after an error of our own, and leaves."""
        servers = [slot.server for slot in self.slots if slot.server is not None]
        for server in servers:
            server.close()
        for server in servers:
            if server not in {w.server for w in self.working}:
                server.process.wait()

    def _ended(self, w: Worker) -> None:
        code, run = w.code, w.run
        assert code is not None
        if code == worker.SUPERSEDED and self.launcher.yields and run.spec() is not None:
            self.launcher.yielded = True
            self.launcher.stop()
        if code in (worker.BUSY, worker.SUPERSEDED):  # another has it
            self.waiting.append(run)
        elif code == worker.DONE:
            self.outcome.done.append(run.key)
            self.tell("done", run)
        elif code == worker.INTERRUPTED or (self.stopping is not None and code < 0):
            self.outcome.interrupted.append(run.key)
            self.tell("interrupted", run)
        else:
            if run.failure() in (None, w.before):  # it had no chance to say so itself
                run.write("failure", died(run, code))
            failure = run.failure() or {"class": "killed"}  # it was removed: start() tells
            if self.stopping is None and self._again(w, failure["class"]):
                self.waiting.append(run)
                self.tell("again", run)
            else:
                self.outcome.failed.append(run.key)
                self.tell("failed", run)

    def _again(self, w: Worker, kind: str) -> bool:
        """Whether the run has another try; memory that ran short in company is shared less."""
        before = self.failed[w.run.key, kind]
        self.failed[w.run.key, kind] += 1
        short = kind == "oom" or (kind == "killed" and w.code == -signal.SIGKILL)
        if short and w.company and w.slot.gpu is None:
            if len(self.free) + len(self.working) > 1:
                self.free.remove(w.slot)
                w.server.close()  # its memory, too
            return before == 0
        return before < failures.CLASSES[kind].retries

    def signal(self) -> None:
        """The first asks the runs to save and leave, the second does not ask."""
        number = signal.SIGTERM if self.stopping is None else signal.SIGKILL
        for w in self.working:
            w.server.stop(number)
        self.stopping = self.stopping or time.monotonic()


def _memory_is_short() -> bool:
    return bool(psutil.virtual_memory().available < MEMORY_PER_RUN // 2)


def died(run: RunDirectory, code: int) -> Json:
    """failure.json for a process that ended without a word."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (the system kills so when memory runs out)" if name == "SIGKILL" else ""
        return failures.record(run, "killed", f"killed by {name}{hint}")
    return failures.record(run, "bug", f"the process ended with exit code {code}")
