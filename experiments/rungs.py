"""Rungs: looks at a run while it trains, for whoever may end it early (ASHA).

At a rung the EMA weights are evaluated at one cell, and somebody else decides whether the run goes
on. What is found is kept in ``rungs/<training step>.json``, apart from the final cells: a network
that has seen less must not get into a table by accident. The training does not notice that it was
looked at: evaluation draws from streams of its own, and its time is not the training's.

A run that is ended so has ``stopped.json``, written by whoever decides. It is neither done nor
failed; launching it again goes on from where it was, and takes the mark away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.experiments.drawing import Cell, draw
from fewstep.experiments.measure import Measure, main_measure
from fewstep.experiments.provenance import now
from fewstep.experiments.rundir import Json, RunDirectory
from fewstep.experiments.trainer import Trainer

Decide = Callable[[int, float, Callable[[], bool]], bool]
"""(training step, score, whether the run is asked to leave) -> whether the run goes on"""


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
    _measure: Measure | None = field(default=None, repr=False)

    def look(self, trainer: Trainer, cache: Path, stop: Callable[[], bool]) -> None:
        """Evaluate and ask, if the trainer stands at a rung that nobody has looked at.

        The step is saved first: an evaluation is long enough to be killed in.
        """
        done, directory = trainer.step, trainer.directory
        if done not in self.steps or done >= trainer.training.steps:
            return
        cell = Cell(self.cell_steps).describe(trainer.config.objective)
        known = directory.rungs().get(done)
        if known is not None and (known["cell"], known["asked"]) == (cell, _asked(trainer)):
            return  # before a kill, and decided there or by whoever read it
        begun = time.perf_counter()
        trainer._save()
        record = self._evaluate(trainer, cache)
        directory.write_within(directory.rung_file(done), record)
        self.ended = not self.decide(done, record["value"], stop)
        trainer.aside += time.perf_counter() - begun

    def _evaluate(self, trainer: Trainer, cache: Path) -> Json:
        config, settings = trainer.config, trainer.config.evaluation
        if self._measure is None:
            self._measure = main_measure(settings, trainer.dataset, cache)
        measure, cell, begun = self._measure, Cell(self.cell_steps), time.perf_counter()
        found: Json = {"value": math.inf, "nfe": None}
        try:
            drawn = draw(
                config, trainer.dataset, trainer.ema, cell, measure.samples, settings.batch_size
            )
            found = {"value": measure.of_samples(drawn.x).value, "nfe": drawn.nfe}
        except FloatingPointError:  # as bad as can be, but training may still recover
            pass
        return {
            "training_step": trainer.step,
            "images_seen": trainer.step * trainer.training.batch_size,
            "cell": cell.describe(config.objective),
            "asked": _asked(trainer),
            "metric": measure.identity,
            "floor": measure.floor,
            "seconds": time.perf_counter() - begun,
            **found,
        }


def _asked(trainer: Trainer) -> Json:
    return trainer.config.evaluation.asked()[0]


def mark_stopped(directory: RunDirectory, by: str, step: int) -> None:
    """Note that ``by`` ended the run at the rung of ``step``; a run that waits there leaves."""
    scores = {str(s): record["value"] for s, record in directory.rungs().items()}
    mark = {"class": "early_stopped", "by": by, "step": step, "scores": scores, "finished": now()}
    directory.write("stopped", mark)


def continue_stopped(runs: list[RunDirectory]) -> list[RunDirectory]:
    """Take the mark from those of ``runs`` that were ended early, and return them.

    They count as interrupted then, and the next launch of their sweep goes on with them.
    """
    found = [run for run in runs if run.status() == "stopped"]
    for run in found:
        run.remove("stopped")
    return found
