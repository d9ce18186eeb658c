"""A trial: one attempt at one run, in an actor that is kept for the next.

The actor is light. It has a fork server beside it, whose child is the run: the same worker as the
local launcher's; or, where a run has several processes, a team. Tune hears a tick a second, so that
it can stop a trial soon, and the score at each rung.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from fewstep.experiments.claim import SUPERSEDES
from fewstep.experiments.rundir import RunDirectory
from fewstep.sweeps.fork import Fork
from fewstep.sweeps.forkserver import Order
from fewstep.sweeps.ray.team import Bundle, Lost, Team, fork, processes, threads

TICK_SECONDS = 1.0
GRACE_SECONDS = 120.0
TIME, SCORE, STEP, CODE = "budget", "score", "training_step", "code"  # what Tune reads in results


@dataclass(frozen=True)
class Terms:
    """What all trials of a launch have in common; ``rungs``: training steps."""

    cwd: str
    rungs: tuple[int, ...]
    metric_steps: int
    eta: float

    def time_of(self, rung: int) -> float:
        """A rung as ASHA counts time: eta times the one before, wherever it is in training."""
        return float(self.eta ** self.rungs.index(rung)) * 1.0001  # not below, by rounding


class RunTrial(tune.Trainable):
    """Attempts at the runs that come as ``config["run"]``, one after the other."""

    terms: Terms
    crew: Fork | Team
    at_work: bool
    at_rung: bool
    replayed: list[tuple[int, float]]

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> Any:
        """What the trial is given: a bundle for each of ``config["machines"]``.

        With several processes the actor, which does nothing, has none of it.
        """
        machines = config["machines"]
        if alone(machines):
            return tune.PlacementGroupFactory(machines)
        strategy = "PACK" if len(machines) == 1 else "STRICT_SPREAD"
        return tune.PlacementGroupFactory([{}, *machines], strategy=strategy)

    def setup(self, config: dict[str, Any]) -> None:
        """The actor's first run."""
        machines = config["machines"]
        self.crew = fork(threads(machines[0])) if alone(machines) else Team(machines)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Another run in the same actor; the one before may have been ended early."""
        self._leave()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Until the next rung, the end, or the next tick."""
        if self.replayed:
            return self._at(*self.replayed.pop(0))
        if self.only_scores:
            return {"done": True}
        if not self.at_work:
            self._start()
        elif self.at_rung:
            self.at_rung = False
            assert isinstance(self.crew, Fork)  # a team has no rungs
            self.crew.go_on()
        end = time.monotonic() + TICK_SECONDS
        while (left := end - time.monotonic()) > 0:
            try:
                said = self.crew.next(left) or {}
            except Lost:
                self.at_work = False
                raise
            if "rung" in said:
                self.at_rung = True
                return self._at(said["rung"], said["score"])
            if "code" in said:
                self.at_work = False
                return {CODE: said["code"], "done": True}
        return {}

    def cleanup(self) -> None:
        """The actor's end."""
        self._leave()
        self.crew.close()

    def _begin(self, config: dict[str, Any]) -> None:
        self.directory = RunDirectory(Path(config["run"]))
        self.machines, self.only_scores = config["machines"], config["only_scores"]
        self.at_work = self.at_rung = False
        # those of an earlier launch: a scheduler that was started anew does not know them
        found = scores(self.directory, self.terms.metric_steps)
        self.replayed = [(rung, found[rung]) for rung in self.terms.rungs if rung in found]

    def _start(self) -> None:
        environment = {SUPERSEDES: ""}
        if not self.machines[0].get("GPU"):
            environment["CUDA_VISIBLE_DEVICES"] = ""
        order: Order = {
            "run": str(self.directory.path),
            "cwd": self.terms.cwd,
            "threads": threads(self.machines[0]),
            "environment": environment,
            "rungs": list(self.terms.rungs),
            "metric_steps": self.terms.metric_steps,
        }
        self.crew.start(order)
        self.at_work = True

    def _at(self, rung: int, score: float) -> dict[str, Any]:
        return {TIME: self.terms.time_of(rung), SCORE: score, STEP: rung}

    def _leave(self) -> None:
        """Have the child save and leave, and wait for it."""
        if self.at_work:
            self.crew.stop()
        end = time.monotonic() + GRACE_SECONDS
        with contextlib.suppress(Lost):
            while self.at_work and time.monotonic() < end:
                said = self.crew.next(0.1) or {}
                self.at_work = "code" not in said


def alone(machines: list[Bundle]) -> bool:
    """Whether a run that is given these is one process."""
    return len(machines) * processes(machines[0]) == 1


def scores(run: RunDirectory, metric_steps: int) -> dict[int, float]:
    """What was found at the run's rungs by this score, by training step."""
    asked = (run.request() or {}).get("evaluation", {})
    return {
        step: float(record["value"])
        for step, record in run.rungs().items()
        if record["cell"]["steps"] == metric_steps
        and all(asked.get(name) == value for name, value in record["asked"].items())
    }
