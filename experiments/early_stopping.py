"""Rungs: evaluates a run during training, so that a scheduler (ASHA) can stop it early.

At a rung the EMA weights are evaluated at one cell, and the scheduler decides whether the run
continues. The scores are in ``rungs/<training step>.json``, not among the final cells. Training is
not affected: evaluation has its own random streams, and its time does not count.

The scheduler writes ``stopped.json`` for a run that it stops. Such a run is neither done nor
failed; ``fewstep sweep --stopped`` resumes it and removes the file.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.evaluation.measurement import MetricInstance, main_metric
from fewstep.experiments.evaluation.sampling import SamplingConfig, draw
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.provenance import now
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training.trainer import Trainer

Decide = Callable[[int, float, Callable[[], bool]], bool]
"""(training step, score, whether the run was asked to stop) -> whether the run continues"""


@dataclass
class Rungs:
    """Where a run is looked at, and who decides.

    Attributes:
        steps: training steps. cell_steps: sampling steps of the cell whose distance is the score.
        decide: asked once at each rung; may take its time.
        ended: whether it said no.
    """

    steps: tuple[int, ...]
    cell_steps: int
    decide: Decide
    ended: bool = False
    _measure: MetricInstance | None = field(default=None, repr=False)

    def evaluate_if_due(self, trainer: Trainer, stop: Callable[[], bool]) -> None:
        """Evaluate and ask, if the trainer stands at a rung that nobody has looked at.

        The step is saved first: an evaluation is long enough to be killed in.
        """
        done, directory = trainer.step, trainer.directory
        if done not in self.steps or done >= trainer.training.steps:
            return
        asked = self._asked(trainer.config)
        known = directory.rungs().get(done, {})
        if {name: known.get(name) for name in asked} == asked:
            return  # before a kill, and decided there or by whoever read it
        begun = time.perf_counter()
        trainer._save()
        record = self._evaluate(trainer)
        directory.write_file(directory.rung_file(done), record)
        self.ended = not self.decide(done, record["value"], stop)
        trainer.aside += time.perf_counter() - begun

    def _evaluate(self, trainer: Trainer) -> Json:
        config, settings = trainer.config, trainer.config.evaluation
        if self._measure is None:
            self._measure = main_metric(settings, trainer.dataset, trainer.directory.cache)
        measure, cell, begun = self._measure, SamplingConfig(self.cell_steps), time.perf_counter()
        scores: Json = {"value": math.inf, "nfe": None}
        about = config, trainer.dataset, trainer.ema, cell, measure.samples, settings.batch_size
        with contextlib.suppress(FloatingPointError):  # as bad as can be, but it may recover
            drawn = draw(*about)
            scores = {"value": measure.of_samples(drawn.x).value, "nfe": drawn.nfe}
        return {
            **self._asked(config),
            "training_step": trainer.step,
            "images_seen": trainer.step * trainer.training.batch_size,
            "metric": measure.identity,
            "floor": measure.floor,
            "seconds": time.perf_counter() - begun,
            **scores,
        }

    def _asked(self, config: RunConfig) -> Json:
        cell = SamplingConfig(self.cell_steps).describe(config.objective)
        return {"cell": cell, "asked": config.evaluation.metric_requests()[0]}


def mark_stopped(directory: RunDirectory, by: str, step: int) -> None:
    """Note that ``by`` ended the run at the rung of ``step``; a run that waits there leaves."""
    scores = {str(s): record["value"] for s, record in directory.rungs().items()}
    mark = {"class": "early_stopped", "by": by, "step": step, "scores": scores, "finished": now()}
    directory.write("stopped", mark)


def continue_stopped(runs: list[RunDirectory]) -> list[RunDirectory]:
    """Take the mark from those of ``runs`` that were ended early, and return them.

    They count as interrupted then, and the next launch of their sweep goes on with them.
    """
    stopped = [run for run in runs if run.status() == "stopped"]
    for run in stopped:
        run.remove("stopped")
    return stopped
