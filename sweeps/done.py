"""How much of a run is done: what its phases cost, counted in images through the network.

A training step takes each image forward and back, which costs as much as three sampling steps of
it; what objectives need beside that is passed over. An estimate, for the time that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fewstep.experiments.rundir import Json, RunDirectory

TRAINING_PASSES = 3
SAMPLES = 10_000  # where as many are asked for as the held-out split has


@dataclass(frozen=True)
class Work:
    """``training``: passes; ``cells``: of each cell, in the order in which they are evaluated."""

    training: float
    cells: Sequence[float]

    @classmethod
    def of(cls, run: RunDirectory) -> Work:
        """What the files of a run ask of it; of one that is not prepared, nothing."""
        spec, request = run.spec(), run.request()
        if spec is None or request is None:
            return cls(1, [])
        training, asked = spec["config"]["training"], request["evaluation"]
        schedules = [*asked["steps"], *(len(times) - 1 for times in asked["times"])]
        guided = [1 if scale == 1 else 2 for scale in asked["guidance"]]  # asked twice a step
        sets = range(asked["sample_sets"] * max(1, len(asked["samplers"])))
        images = asked["samples"] or SAMPLES
        passes = [
            k * twice for k in schedules for _ in asked["weights"] for twice in guided for _ in sets
        ]
        return cls(
            TRAINING_PASSES * training["steps"] * training["batch_size"],
            [images * n for n in passes],
        )

    @cached_property
    def whole(self) -> float:
        return self.training + sum(self.cells)

    def share(self, progress: Json) -> float:
        """Of the run, between 0 and 1, when its progress.json says this."""
        part = progress["done"] / progress["total"]
        if progress["phase"] == "train":
            return self.training * part / self.whole
        if progress["phase"] != "evaluate":
            return 0.0
        if progress["total"] == len(self.cells):
            part = sum(self.cells[: progress["done"]]) / sum(self.cells)
        # otherwise some were there: it does not say which
        return 1 - (1 - part) * sum(self.cells) / self.whole
