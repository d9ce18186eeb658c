"""A trial: one attempt at one run, in an actor that is kept for the next.

The actor needs little memory. The run is a child of its fork server: the same worker as the local
launcher's. A run of several processes has a process group instead. The actor reports to Tune every
second, so that Tune can stop it soon, and the score at each rung.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

from ray import tune

from fewstep.experiments.store.lease import SUPERSEDED_TOKEN
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.local.fork_client import Child, ForkServerClient
from fewstep.sweeps.local.fork_server import Order
from fewstep.sweeps.ray import process_group as group
from fewstep.sweeps.ray.settings import RaySettings

TICK_SECONDS = 1.0
GRACE_SECONDS = 120.0
TIME, SCORE, STEP, CODE = "budget", "score", "training_step", "code"  # what Tune reads in results


def time_of(rung: int, settings: RaySettings) -> float:
    """A rung as ASHA counts time: eta times the one before, wherever it is in training."""
    return float(settings.eta ** settings.rung_steps().index(rung)) * 1.0001  # for rounding


class RunTrial(tune.Trainable):
    """Attempts at the runs that come as ``config["run"]``, one after the other."""

    settings: RaySettings
    cwd: str
    most_threads: int | None = None  # of a process, as the user of the driver says
    processes: ForkServerClient | group.RayProcessGroup

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> Any:
        """The bundles; with several processes the actor, which does nothing, has none of it."""
        bundles = config["bundles"]
        if is_single(bundles):
            return tune.PlacementGroupFactory(bundles)
        strategy = "PACK" if len(bundles) == 1 else "STRICT_SPREAD"
        return tune.PlacementGroupFactory([{}, *bundles], strategy=strategy)

    def setup(self, config: dict[str, Any]) -> None:
        bundles = config["bundles"]
        if is_single(bundles):
            self.processes = group.fork_server(group.threads(bundles[0], self.most_threads))
        else:
            self.processes = group.RayProcessGroup(bundles, self.most_threads)
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        self.directory = RunDirectory(Path(config["run"]))
        self.bundles, self.only_scores = config["bundles"], config["only_scores"]
        self.child: Child | group.RayProcessGroup | None = None  # while it runs
        self.at_rung = False
        # of an earlier launch: the new scheduler does not know them
        known = scores(self.directory, self.settings.metric_steps)
        self.replayed = [
            (rung, known[rung]) for rung in self.settings.rung_steps() if rung in known
        ]

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
        child = self.child = self.child or self._start()
        if self.at_rung:
            self.at_rung = False
            assert isinstance(child, Child)  # a group has no rungs
            child.resume()
        end = time.monotonic() + TICK_SECONDS
        while (left := end - time.monotonic()) > 0:
            try:
                message = child.next(left) or {}
            except group.MachineLost:
                self.child = None
                raise
            if "rung" in message:
                self.at_rung = True
                return self._at(message["rung"], message["score"])
            if "code" in message:
                self.child = None
                return {CODE: message["code"], "done": True}
        return {}

    def cleanup(self) -> None:
        self._leave()
        self.processes.close()

    def _start(self) -> Child | group.RayProcessGroup:
        environment = {SUPERSEDED_TOKEN: ""}
        if not self.bundles[0].get("GPU"):
            environment["CUDA_VISIBLE_DEVICES"] = ""
        order: Order = {
            "run": str(self.directory.path),
            "environment": environment,
            "cwd": self.cwd,
            "rungs": list(self.settings.rung_steps()),
            "metric_steps": self.settings.metric_steps,
        }
        return self.processes.start(order)

    def _at(self, rung: int, score: float) -> dict[str, Any]:
        return {TIME: time_of(rung, self.settings), SCORE: score, STEP: rung}

    def _leave(self) -> None:
        """Have the child save and stop, and wait for it."""
        if self.child is None:
            return
        self.child.stop()
        end = time.monotonic() + GRACE_SECONDS
        with contextlib.suppress(group.MachineLost):
            while "code" not in (self.child.next(0.1) or {}) and time.monotonic() < end:
                pass
        self.child = None


def is_single(bundles: list[group.Bundle]) -> bool:
    """Whether a run with these bundles is one process."""
    return len(bundles) * group.processes(bundles[0]) == 1


def scores(run: RunDirectory, metric_steps: int) -> dict[int, float]:
    """The scores at the run's rungs, by training step."""
    settings = (run.request() or {}).get("evaluation", {})
    return {
        step: float(record["value"])
        for step, record in run.rungs().items()
        if record["cell"]["steps"] == metric_steps
        and all(settings.get(name) == value for name, value in record["asked"].items())
    }
