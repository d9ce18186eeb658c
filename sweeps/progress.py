"""The share of a run that is done: the cost of its phases in forward passes of an image.

A training step is a forward and a backward pass, which cost as much as three forward passes; the
extra passes of objectives are ignored. It is an estimate, for the remaining time.
"""

from dataclasses import dataclass
from typing import Self

from fewstep.experiments.config.settings import Evaluation, Training
from fewstep.experiments.evaluation.evaluate import cells
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.throughput import passes

TRAINING_PASSES = 3
SAMPLES = 10_000  # of a cell, if no attempt has recorded the size of the held-out split


@dataclass(frozen=True)
class WorkEstimate:
    """The cost of training and evaluation, in passes."""

    training: float
    evaluation: float

    @classmethod
    def of(cls, run: RunDirectory) -> Self:
        """Of a run, from its files; of one that is not prepared, nothing."""
        spec, request = run.spec(), run.request()
        if spec is None or request is None:
            return cls(1, 0)
        training = Training(**spec["config"]["training"])
        evaluation = Evaluation(**request["evaluation"])
        held_out = [a["held_out"] for a in run.attempts() if "held_out" in a]
        samples = evaluation.samples or (held_out or [SAMPLES])[-1]
        return cls(
            TRAINING_PASSES * training.steps * training.batch_size,
            samples * sum(passes(c.steps, c.guidance) for c in cells(evaluation, training)),
        )

    def share(self, progress: Json) -> float:
        """The share of the run that is done, between 0 and 1, by its progress.json."""
        part = progress["done"] / progress["total"]
        training = self.training / (self.training + self.evaluation)
        if progress["phase"] == "train":
            return training * part
        return training + (1 - training) * part if progress["phase"] == "evaluate" else 0.0
