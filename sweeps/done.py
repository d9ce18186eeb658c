"""How much of a run is done: what its phases cost, counted in images through the network.

A training step takes each image forward and back, which costs as much as three sampling steps of
it; what objectives need beside that is passed over. An estimate, for the time that is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.experiments.evaluation import cells
from fewstep.experiments.rundir import Json, RunDirectory
from fewstep.experiments.settings import Evaluation
from fewstep.sweeps.estimate import passes

TRAINING_PASSES = 3
SAMPLES = 10_000  # where as many are asked for as the held-out split has, and no attempt said


@dataclass(frozen=True)
class Work:
    """What training and evaluation take, in passes."""

    training: float
    evaluation: float

    @classmethod
    def of(cls, run: RunDirectory) -> Work:
        """What the files of a run ask of it; of one that is not prepared, nothing."""
        spec, request = run.spec(), run.request()
        if spec is None or request is None:
            return cls(1, 0)
        training, asked = spec["config"]["training"], Evaluation(**request["evaluation"])
        held_out = [a["held_out"] for a in run.attempts() if "held_out" in a]
        samples = asked.samples or (held_out or [SAMPLES])[-1]
        return cls(
            TRAINING_PASSES * training["steps"] * training["batch_size"],
            samples * sum(passes(c.steps, c.guidance) for c in cells(asked)),
        )

    def share(self, progress: Json) -> float:
        """Of the run, between 0 and 1, when its progress.json says this."""
        part = progress["done"] / progress["total"]
        training = self.training / (self.training + self.evaluation)
        if progress["phase"] == "train":
            return training * part
        return training + (1 - training) * part if progress["phase"] == "evaluate" else 0.0
