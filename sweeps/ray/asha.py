"""Early stopping: Ray's ASHA on the scores at the rungs, which marks the runs that it ends."""

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from fewstep.experiments.early_stopping import mark_stopped
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.ray.settings import RaySettings
from fewstep.sweeps.ray.trial import SCORE, STEP, TIME, time_of

RunOf = Callable[[str], RunDirectory | None]
"""The run of a trial's id; None for one that is only there for its scores."""


class MarkingASHA(ASHAScheduler):
    """ASHA that writes ``stopped.json``. The score is a distance: the smaller the better."""

    def __init__(self, settings: RaySettings, run_of: RunOf) -> None:
        last = time_of(settings.rung_steps()[-1], settings)
        super().__init__(
            time_attr=TIME,
            metric=SCORE,
            mode="min",
            grace_period=1,
            reduction_factor=settings.eta,
            max_t=last * settings.eta**0.5,  # never reached: a run ends at its own last step
        )
        self.run_of = run_of

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial continues; called at each result, most of which have no score."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        run = self.run_of(trial.trial_id)
        if decision == TrialScheduler.STOP and run is not None:
            mark_stopped(run, "asha", result[STEP])
        return decision


def scheduler(settings: RaySettings, run_of: RunOf) -> TrialScheduler:
    """ASHA where there are rungs, else first come, first served."""
    return MarkingASHA(settings, run_of) if settings.rung_steps() else FIFOScheduler()
