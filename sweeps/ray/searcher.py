"""The searcher: Tune gets each trial from it, and reports each trial's end to it.

The launch's runs are in a ``RunQueue``; proposals are added to it. Tune decides where and when they
run.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ray.tune.search import Searcher

from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.ray.process_group import Bundle
from fewstep.sweeps.ray.trial import CODE
from fewstep.sweeps.run_queue import RunQueue

if TYPE_CHECKING:
    from fewstep.sweeps.ray.proposals import Proposals

TICK_SECONDS = 0.2

BundlesOf = Callable[[RunDirectory], list[Bundle]]


class RunSearcher(Searcher):
    """Gives Tune the runs of a queue, then those of the proposals.

    Attributes:
        scored: runs that become trials for their scores only. bundles: what a run asks for on each
            of its machines. hurried: whether to leave without waiting for the runs.
    """

    def __init__(
        self,
        queue: RunQueue,
        scored: Sequence[RunDirectory],
        proposals: "Proposals | None",
        bundles: BundlesOf,
        max_parallel: int | None = None,
    ) -> None:
        super().__init__()
        self.queue, self.scored, self.proposals = queue, list(scored), proposals
        self.bundles, self.max_parallel = bundles, max_parallel
        self.trials: dict[str, RunDirectory] = {}  # that Tune has, by the trial's id
        self.hurried = False
        self._ticked = 0.0

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial; None: not now; FINISHED: there will be none."""
        queue, proposals = self.queue, self.proposals
        if queue.stopping:
            return self.FINISHED
        if self.scored:
            return self._config(self.scored.pop(0), only_scores=True)
        run = None
        while run is None:
            if self.max_parallel is None or len(self.trials) < self.max_parallel:
                run = queue.next()
            if run or queue.unfinished() or proposals is None or proposals.over:
                break
            # all runs have ended: the scores that the next batch depends on are known
            queue.waiting += proposals.next() or []
        if run is not None:
            self.trials[trial_id] = run
            return self._config(run)
        if queue.unfinished():
            self.tick()  # Tune only asks when it has nothing to do
            return None
        return self.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial's end; one that died without a result is told by ``died``."""
        if not error and trial_id in self.trials:
            self.queue.end(self.trials.pop(trial_id), (result or {}).get(CODE))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: scores are read where they are written."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state is in the run directories."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def on_start(self, trial_id: str) -> None:
        if trial_id in self.trials:
            self.queue.start(self.trials[trial_id])

    def died(self, trial_id: str, kind: str, message: str, trace: str = "") -> None:
        """A trial's actor is gone, for the reason given; its run may still be saving."""
        if trial_id in self.trials:
            self.queue.fail(self.trials.pop(trial_id), kind, message, trace)

    def on_signal(self, number: int, frame: object) -> None:
        """Stop; the second signal does not wait for the runs."""
        self.hurried = self.queue.stopping
        self.queue.stopping = True
        if self.hurried:
            raise KeyboardInterrupt

    def tick(self) -> None:
        if time.monotonic() - self._ticked > TICK_SECONDS:
            self._ticked = time.monotonic()
            self.queue.tick()

    def _config(self, run: RunDirectory, only_scores: bool = False) -> dict[str, Any]:
        bundles = self.bundles(run)
        return {
            "run": str(run.path.absolute()),
            "bundles": bundles[:1] if only_scores else bundles,
            "only_scores": only_scores,
        }
