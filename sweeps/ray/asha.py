"""Early stopping: Ray's ASHA on the scores at the rungs, which marks the runs that it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from fewstep.experiments.rundir import RunDirectory
from fewstep.experiments.rungs import mark_stopped
from fewstep.sweeps.ray.trial import SCORE, STEP, TIME, Terms

RunOf = Callable[[str], RunDirectory | None]
"""The run of a trial's id; None for one that is only there for its scores."""


class MarkingASHA(ASHAScheduler):
    """ASHA that writes ``stopped.json``. The score is a distance: the smaller the better."""

    def __init__(self, terms: Terms, run_of: RunOf) -> None:
        last = terms.time_of(terms.rungs[-1])
        super().__init__(
            time_attr=TIME,
            metric=SCORE,
            mode="min",
            grace_period=1,
            reduction_factor=terms.eta,
            max_t=last * terms.eta**0.5,  # never reached: a run's last step is its own affair
        )
        self.run_of = run_of

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on; asked at each result, of which most are ticks."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        run = self.run_of(trial.trial_id)
        if decision == TrialScheduler.STOP and run is not None:
            mark_stopped(run, "asha", result[STEP])
        return decision


def scheduler(terms: Terms, run_of: RunOf) -> TrialScheduler:
    """ASHA where there are rungs, else first come, first served."""
    return MarkingASHA(terms, run_of) if terms.rungs else FIFOScheduler()
