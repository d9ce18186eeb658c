"""The runs of one launch: which may start, which are tried again, how they ended."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fewstep.experiments import worker
from fewstep.experiments.store import failures
from fewstep.experiments.store.json_files import CorruptFile, Json
from fewstep.experiments.store.lease import Attempt, live_lease
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.launcher import Event, OnEvent, Outcome, is_cancelled, is_complete, teacher_of

LOOK_SECONDS = 1.0  # between two looks at runs that other processes have


@contextmanager
def signals_to(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Meanwhile ``handler`` gets Ctrl-C and SIGTERM."""
    previous = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@dataclass(eq=False)
class RunQueue:
    """The state that the local launcher and the Ray searcher share.

    A run is waiting, then assigned (``next``), then started, then ended or waiting again.

    Attributes:
        max_failures: retries of a run at most; None: as many as the class of the failure allows.
        takes_over: whether a live attempt of another process is known to be over.
        skips_complete: whether ``next`` passes over complete runs (this imports torch).
    """

    waiting: list[RunDirectory]
    on_event: OnEvent
    max_failures: int | None = None
    takes_over: Callable[[Attempt], bool] = lambda attempt: False
    skips_complete: bool = False

    def __post_init__(self) -> None:
        self.assigned: dict[str, RunDirectory] = {}
        self.started: dict[str, RunDirectory] = {}
        self.superseded: dict[str, str] = {}  # tokens of attempts that were taken over, by key
        self.outcome = Outcome()
        self.stopping = False
        self._teachers: dict[str, str | None] = {}
        self._busy: dict[str, float] = {}  # when it was last looked at, by key
        self._retries: Counter[tuple[str, str]] = Counter()  # by key and class of the failure
        self._previous: dict[str, Json | None] = {}  # failures of earlier attempts

    def next(self) -> RunDirectory | None:
        """Assign the first run that may start; a student waits until its teacher has ended."""
        for run in self.waiting[:]:
            try:
                if self._may_start(run):
                    self.waiting.remove(run)
                    self.assigned[run.key] = run
                    return run
            except (OSError, CorruptFile) as error:  # a file of this run; the others start
                if run in self.waiting:
                    self.waiting.remove(run)
                self._end("failed", run, failures.unreadable(run, error))
        return None

    def _may_start(self, run: RunDirectory) -> bool:
        """Whether the run may start; one that needs not is ended."""
        if run.key not in self._teachers:
            self._teachers[run.key] = teacher_of(run)
        if self._teachers[run.key] in {run.key for run in self.unfinished()}:
            return False
        if time.monotonic() - self._busy.get(run.key, -LOOK_SECONDS) < LOOK_SECONDS:
            return False
        if self.skips_complete and is_complete(run):
            self.waiting.remove(run)
            run.remove("failure")  # of cells requested earlier
            self._end("done", run)
            return False
        attempt = live_lease(run)
        if attempt is None and is_cancelled(run):
            self.waiting.remove(run)
            self._end("failed", run)
            return False
        if attempt is None or self.takes_over(attempt):
            self._busy.pop(run.key, None)
            self.superseded[run.key] = "" if attempt is None else attempt.token
            return True
        first = run.key not in self._busy
        self._busy[run.key] = time.monotonic()
        if first:
            self._tell("busy", run)
        return False

    def start(self, run: RunDirectory) -> None:
        self.started[run.key] = run
        self._previous[run.key] = _failure(run)
        self._tell("started", run)

    def end(
        self, run: RunDirectory, code: int | None, retry: Callable[[str], bool | None] | None = None
    ) -> None:
        """Note how a run ended: by the exit code of its process; None: a scheduler stopped it.

        ``retry``: asked with the class of a failure; None leaves it to the class' own limit.
        """
        self._release(run)
        if code is None:
            self._end("stopped", run)
        elif code in (worker.BUSY, worker.SUPERSEDED):  # another process has it
            self.waiting.append(run)
        elif code == worker.DONE:
            self._end("done", run)
        elif code == worker.INTERRUPTED or (self.stopping and code < 0):
            self._end("interrupted", run)
        else:
            failure = _failure(run)
            unrecorded = failure in (None, self._previous.get(run.key))
            # rank 0 takes the death of another rank for the loss of its machine
            unrecorded |= code < 0 and failure is not None and failure["class"] == "lost_node"
            if unrecorded:
                failure = died(run, code)
                self._record(run, failure)
            self._fail(run, failure, retry)

    def fail(self, run: RunDirectory, kind: str, message: str, trace: str = "") -> None:
        """Note that a run ended without an exit code, for this reason."""
        self._release(run)
        failure = failures.record(run, kind, message, trace)
        self._record(run, failure)
        self._fail(run, failure)

    def tick(self) -> None:
        self.on_event(Event("tick"), self.running())

    def running(self) -> list[RunDirectory]:
        """The runs that have started, and not ended."""
        return list(self.started.values())

    def unfinished(self) -> list[RunDirectory]:
        """The runs that have not ended."""
        return [*self.assigned.values(), *self.waiting]

    def _release(self, run: RunDirectory) -> None:
        self.started.pop(run.key, None)
        self.assigned.pop(run.key, None)

    def _record(self, run: RunDirectory, failure: Json) -> None:
        try:
            run.write("failure", failure)
        except OSError:  # a full disk ends no launcher
            self.outcome.unrecorded[run.key] = failure["class"]

    def _fail(
        self,
        run: RunDirectory,
        failure: Json | None,
        retry: Callable[[str], bool | None] | None = None,
    ) -> None:
        kind: str = (failure or {"class": "killed"})["class"]  # its directory was removed
        before = self._retries[run.key, kind]
        self._retries[run.key, kind] += 1
        allowed = failures.rules(kind).retries
        if self.max_failures is not None:
            allowed = min(allowed, self.max_failures)
        again = before < allowed
        if retry is not None and not self.stopping and (answer := retry(kind)) is not None:
            again = answer and before == 0
        if again and not self.stopping:
            self.waiting.append(run)
            self._tell("again", run, failure)
        else:
            self._end("failed", run, failure)

    def _end(self, kind: str, run: RunDirectory, failure: Json | None = None) -> None:
        getattr(self.outcome, kind).append(run.key)
        self._tell(kind, run, failure)

    def _tell(self, kind: str, run: RunDirectory, failure: Json | None = None) -> None:
        self.on_event(Event(kind, run, failure), self.running())


def _failure(run: RunDirectory) -> Json | None:
    """failure.json; None also where it cannot be read."""
    try:
        return run.failure()
    except (OSError, CorruptFile):
        return None


def died(run: RunDirectory, code: int) -> Json:
    """failure.json for a process that ended and recorded nothing."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (the system sends it when memory runs out)" if name == "SIGKILL" else ""
        return failures.record(run, "killed", f"killed by {name}{hint}")
    for kind, number in worker.UNRECORDED.items():
        if code == number:
            return failures.record(run, kind, "the failure could not be written")
    return failures.record(run, "bug", f"the process ended with exit code {code}")
