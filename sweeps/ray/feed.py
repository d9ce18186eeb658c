"""What Tune asks for its next trial, and tells how one ended.

Everything that a launch knows about its runs is here: which may start, which are tried again, which
proposals are still to be made. Tune decides where and when they run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ray.tune.search import Searcher

from fewstep.experiments import failures, worker
from fewstep.experiments.claim import at_work
from fewstep.experiments.rundir import Json, RunDirectory
from fewstep.sweeps.launcher import Event, OnEvent, Outcome, called_off, finished, teacher_of
from fewstep.sweeps.local import died
from fewstep.sweeps.ray.team import Bundle
from fewstep.sweeps.ray.trial import CODE

if TYPE_CHECKING:
    from fewstep.sweeps.ray.proposals import Proposals

TICK_SECONDS = 0.2
RESTLESS_SECONDS = 1.0  # between two looks at runs that others have

MachinesOf = Callable[[RunDirectory], list[Bundle]]


class Feed(Searcher):
    """The runs of a launch.

    Attributes:
        known: runs that are here for their scores only. max_failures: tries again, at most.
    """

    def __init__(
        self,
        runs: Sequence[RunDirectory],
        known: Sequence[RunDirectory],
        proposals: Proposals | None,
        machines: MachinesOf,
        on_event: OnEvent,
        max_failures: int | None = None,
        max_parallel: int | None = None,
    ) -> None:
        super().__init__()
        self.waiting, self.known, self.proposals = list(runs), list(known), proposals
        self.machines, self.on_event, self.max_failures = machines, on_event, max_failures
        self.max_parallel = max_parallel
        self.trials: dict[str, RunDirectory] = {}  # that Tune has, by the trial's id
        self.scoring: set[str] = set()
        self.started: dict[str, RunDirectory] = {}
        self.outcome = Outcome()
        self.stopping = self.hurried = False
        self.busy: set[str] = set()
        self.looked = self.ticked = 0.0
        self.tries: Counter[tuple[str, str]] = Counter()
        self.before: dict[str, Json | None] = {}  # failures that earlier attempts have left

    # ---- what Tune asks ------------------------------------------------------------------------

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial; None: not now; FINISHED: there will be none."""
        if self.stopping:
            return self.FINISHED
        if self.known:
            self.scoring.add(trial_id)
            return self._config(self.known.pop(0), only_scores=True)
        run = None
        while run is None:
            if self.max_parallel is None or len(self.trials) < self.max_parallel:
                run = self._next()
            if self.waiting or self.trials or self.proposals is None or self.proposals.over:
                break
            # nobody is left: the scores that the next are to be chosen by are there
            self.waiting += self.proposals.next() or []
        if run is not None:
            self.waiting.remove(run)
            self.trials[trial_id] = run
            return self._config(run)
        if self.waiting or self.trials:
            self.tick()  # Tune only asks when it has nothing to do
            return None
        return self.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial's end; one that died without a result is told by ``died``."""
        self.scoring.discard(trial_id)
        if not error and trial_id in self.trials:
            self._ended(self._pop(trial_id), (result or {}).get(CODE))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Of no interest: scores are read where they are written."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is known is in the run directories."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def _config(self, run: RunDirectory, only_scores: bool = False) -> dict[str, Any]:
        machines = self.machines(run)
        return {
            "run": str(run.path.absolute()),
            "machines": machines[:1] if only_scores else machines,
            "only_scores": only_scores,
        }

    # ---- which run is next ---------------------------------------------------------------------

    def _next(self) -> RunDirectory | None:
        """The first that may start; a student's turn comes when its teacher is done, or failed."""
        taken = {run.key for run in [*self.waiting, *self.trials.values()]}
        look = time.monotonic() - self.looked > RESTLESS_SECONDS
        for run in self.waiting[:]:
            if teacher_of(run) in taken or (run.key in self.busy and not look):
                continue
            if finished(run):
                self.waiting.remove(run)
                taken.discard(run.key)
                run.remove("failure")  # of cells asked for earlier
                self._done(run)
            elif at_work(run) is None and called_off(run):
                self.waiting.remove(run)
                taken.discard(run.key)
                self.outcome.failed.append(run.key)
                self._tell("failed", run)
            elif at_work(run) is None:
                self.busy.discard(run.key)
                return run
            else:
                self.looked = time.monotonic()
                if run.key not in self.busy:
                    self.busy.add(run.key)
                    self._tell("busy", run)
        return None

    def at_work(self) -> list[RunDirectory]:
        """The runs that have been started, and not ended."""
        return list(self.started.values())

    def left(self) -> list[RunDirectory]:
        """The runs that have not come to an end."""
        return [*self.trials.values(), *self.waiting]

    # ---- how runs end --------------------------------------------------------------------------

    def begun(self, trial_id: str) -> None:
        """Tune has started a trial."""
        if trial_id in self.trials:
            run = self.started[trial_id] = self.trials[trial_id]
            self.before[run.key] = run.failure()
            self._tell("started", run)

    def tick(self) -> None:
        """Time has passed."""
        if time.monotonic() - self.ticked > TICK_SECONDS:
            self.ticked = time.monotonic()
            self.on_event(Event("tick"), self.at_work())

    def died(self, trial_id: str, kind: str, message: str, trace: str = "") -> None:
        """A trial's actor is gone, for the reason given; its run may be saving still."""
        if trial_id in self.trials:
            run = self._pop(trial_id)
            run.write("failure", failures.record(run, kind, message, trace))
            self._failed(run)

    def _pop(self, trial_id: str) -> RunDirectory:
        self.started.pop(trial_id, None)
        return self.trials.pop(trial_id)

    def _ended(self, run: RunDirectory, code: int | None) -> None:
        """By its process' exit code; None: ended by the scheduler."""
        if code is None:
            self.outcome.stopped.append(run.key)
            self._tell("stopped", run)
        elif code in (worker.BUSY, worker.SUPERSEDED):  # another has it
            self.waiting.append(run)
        elif code == worker.DONE:
            self._done(run)
        elif code == worker.INTERRUPTED:
            self.outcome.interrupted.append(run.key)
            self._tell("interrupted", run)
        else:
            failure = run.failure()
            unsaid = failure in (None, self.before.get(run.key))  # it could not say so itself
            # nor could another of its processes, whose end the first took for a machine's
            unsaid |= code < 0 and failure is not None and failure["class"] == "lost_node"
            if unsaid:
                run.write("failure", died(run, code))
            self._failed(run)

    def _failed(self, run: RunDirectory) -> None:
        failure: Json = run.failure() or {"class": "killed"}
        kind, before = failure["class"], self.tries[run.key, failure["class"]]
        self.tries[run.key, kind] += 1
        allowed = failures.CLASSES[kind].retries
        if self.max_failures is not None:
            allowed = min(allowed, self.max_failures)
        if before < allowed and not self.stopping:
            self.waiting.append(run)
            self._tell("again", run)
        else:
            self.outcome.failed.append(run.key)
            self._tell("failed", run)

    def _done(self, run: RunDirectory) -> None:
        self.outcome.done.append(run.key)
        self._tell("done", run)

    def _tell(self, kind: str, run: RunDirectory) -> None:
        self.on_event(Event(kind, run), self.at_work())
