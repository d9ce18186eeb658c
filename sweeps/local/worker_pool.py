"""A pool of processes on this machine, which share its cores and GPUs.

They are children of one fork server, so that only the first runs wait for imports.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from fewstep.experiments import worker
from fewstep.experiments.store.lease import SUPERSEDED_TOKEN, Attempt
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.cpu_threads import cores, threads
from fewstep.sweeps.launcher import OnEvent, Outcome
from fewstep.sweeps.local.fork_client import COMPILER, Child, ForkServerClient
from fewstep.sweeps.run_queue import RunQueue, signals_to

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0
MEMORY_PER_RUN = 2 * 2**30
SHORT = 2**30  # of memory: no further run is started


@dataclass(eq=False)
class Slot:
    """A worker's share of the machine; ``gpu`` as CUDA_VISIBLE_DEVICES names it."""

    threads: int
    gpu: str | None


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
    devices = gpus() if runs > 1 and workers != 1 else []  # one takes the first of them anyway
    if workers is None:
        memory = psutil.virtual_memory().total
        workers = len(devices) or max(1, min(cores(), memory // MEMORY_PER_RUN))
    workers = max(1, min(workers, runs))
    each = threads(cores() / workers if cpus is None else cpus)
    return [Slot(each, devices[i % len(devices)] if devices else None) for i in range(workers)]


@dataclass
class Worker:
    """A run in a process. ``shared``: whether another run was running at some time of its life."""

    run: RunDirectory
    child: Child
    slot: Slot
    shared: bool = False
    code: int | None = None

    def ended(self) -> bool:
        """Whether its process has ended; then ``code`` is its exit code."""
        while self.code is None and (message := self.child.next(0)) is not None:
            self.code = message.get("code")
        return self.code is not None


@dataclass
class WorkerPool:
    """Runs directories in processes of their own; a run that fails or is killed stops no other.

    Attributes:
        workers: processes at a time; None for as many as fit.
        cpus: cores of each; None for an equal share of this machine's.
        environment: variables for the processes, beside our own.
        yields: stop altogether when a newer attempt takes a run away (a job that SLURM has
            started again on another node).
        takes_over: whether an attempt is known to be over though its lease is live: its run is
            taken over.
    """

    workers: int | None = None
    cpus: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    yields: bool = False
    takes_over: Callable[[Attempt], bool] = lambda attempt: False

    def __post_init__(self) -> None:
        self.yielded = False  # whether a newer attempt took a run away
        self._signals: list[int] = []  # received, and not handled yet
        self._queue = RunQueue([], lambda event, running: None)
        self._slots: list[Slot] = []
        self._working: list[Worker] = []
        self._server: ForkServerClient | None = None
        self._stopping: float | None = None  # since when

    def stop(self) -> None:
        """Ask the runs to save and stop, as a signal would."""
        self._signals.append(signal.SIGTERM)

    def halt(self) -> None:
        """Have the runs save and stop, and wait for them; for signal handlers."""
        self._signal()
        end = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < end and not all(w.ended() for w in self._working):
            time.sleep(POLL_SECONDS / 4)

    def launch(self, runs: Sequence[RunDirectory], on_event: OnEvent) -> Outcome:
        """Run all of them. On Ctrl-C or SIGTERM they save and stop; a second signal kills them."""

        def on_signal(number: int, frame: object) -> None:  # an exception could lose a worker
            self._signals.append(number)

        queue = self._queue = RunQueue(list(runs), on_event, takes_over=self.takes_over)
        self._slots = slots(len(runs), self.workers, self.cpus)
        self._free = list(self._slots)
        self._imports = COMPILER if len(runs) > 4 * len(self._slots) else ()
        try:
            with signals_to(on_signal):
                while self._working or (queue.waiting and not queue.stopping):
                    if not queue.stopping and not self._signals:
                        self._start()
                    time.sleep(POLL_SECONDS)
                    self._collect()
                    queue.tick()
                    late = self._stopping and time.monotonic() - self._stopping > GRACE_SECONDS
                    if self._signals or late:
                        self._signal()
                        self._signals.clear()
        finally:
            self._close()
        queue.outcome.interrupted += [run.key for run in queue.waiting]
        return queue.outcome

    def _start(self) -> None:
        while self._free and not (self._working and psutil.virtual_memory().available < SHORT):
            run = self._queue.next()
            if run is None:
                return
            self._working.append(self._fork(run, self._free.pop()))
            for w in self._working:
                w.shared |= len(self._working) > 1
            self._queue.start(run)

    def _fork(self, run: RunDirectory, slot: Slot) -> Worker:
        if self._server is None or not self._server.alive:
            self._server = ForkServerClient(slot.threads, self.environment, self._imports)
        environment = {SUPERSEDED_TOKEN: self._queue.superseded[run.key]}
        if slot.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot.gpu
        child = self._server.start({"run": str(run.path), "environment": environment})
        return Worker(run, child, slot)

    def _collect(self) -> None:
        for w in [w for w in self._working if w.ended()]:
            self._working.remove(w)
            self._free.append(w.slot)
            if w.code == worker.SUPERSEDED and self.yields and w.run.spec() is not None:
                self.yielded = True
                self.stop()
            self._queue.end(w.run, w.code, lambda kind, w=w: self._retry(w, kind))  # type: ignore[misc]

    def _retry(self, w: Worker, kind: str) -> bool | None:
        """Runs that ran out of memory beside others are tried once more, beside fewer."""
        short = kind == "oom" or (kind == "killed" and w.code == -signal.SIGKILL)
        if not (short and w.shared and w.slot.gpu is None):
            return None
        if len(self._free) + len(self._working) > 1:
            self._free.remove(w.slot)
        return True

    def _signal(self) -> None:
        """The first asks the runs to save and stop, the second kills them."""
        number = signal.SIGTERM if self._stopping is None else signal.SIGKILL
        for w in self._working:
            w.child.stop(number)
        self._stopping = self._stopping or time.monotonic()
        self._queue.stopping = True

    def _close(self) -> None:
        """End the server; a run is still there only after an error of our own, and stops."""
        if self._server is not None:
            self._server.close()
            if not self._working:
                self._server.process.wait()
