"""A trial: one attempt at one run, in an actor that is kept for the next.

The actor is light. It has a fork server beside it, whose child is the run: the same worker as the
local launcher's. Tune hears a tick a second, so that it can stop a trial soon, and the score at
each rung.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from fewstep.experiments.claim import JOB, SUPERSEDES
from fewstep.experiments.rundir import RunDirectory
from fewstep.sweeps.ray.forkserver import Order

TICK_SECONDS = 1.0
GRACE_SECONDS = 120.0
TIME, SCORE, STEP, CODE = "budget", "score", "training_step", "code"  # what Tune reads in results
GONE = -int(signal.SIGKILL)  # exit code where the fork server is not there to tell one


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


class Fork:
    """A fork server, and what it says."""

    def __init__(self, threads: int) -> None:
        self.pid: int | None = None  # of the child at work
        self.heard: queue.Queue[dict[str, Any]] = queue.Queue()
        # -P: the folder we are in must not shadow a package (it may hold its own analysis/)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fewstep.sweeps.ray.forkserver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"}
            | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, order: Order) -> None:
        """Have a run started."""
        self.pid = None
        self._write(json.dumps(order).encode() + b"\n")

    def go_on(self) -> None:
        """Let the child leave the rung it waits at."""
        self._write(b"\n")

    def close(self) -> None:
        """End the server; a child that is still there saves and leaves."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def next(self, seconds: float) -> dict[str, Any] | None:
        """What is heard next; None where nothing is for ``seconds``."""
        try:
            said = self.heard.get(timeout=seconds)
        except queue.Empty:
            return None
        self.pid = said.get("pid", self.pid)
        return said

    def _write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the listener tells

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.heard.put(json.loads(line))
        self.heard.put({"code": GONE})


class RunTrial(tune.Trainable):
    """Attempts at the runs that come as ``config["run"]``, one after the other."""

    terms: Terms
    at_work: bool
    at_rung: bool
    replayed: list[tuple[int, float]]

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> Any:
        """What the trial is given: ``config["resources"]``, in Ray's words."""
        return tune.PlacementGroupFactory([config["resources"]])

    def setup(self, config: dict[str, Any]) -> None:
        """The actor's first run."""
        self.fork = Fork(threads(config["resources"]))
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
            self.fork.go_on()
        end = time.monotonic() + TICK_SECONDS
        while (left := end - time.monotonic()) > 0:
            said = self.fork.next(left) or {}
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
        self.fork.close()

    def _begin(self, config: dict[str, Any]) -> None:
        self.directory = RunDirectory(Path(config["run"]))
        self.resources, self.only_scores = config["resources"], config["only_scores"]
        self.at_work = self.at_rung = False
        # those of an earlier launch: a scheduler that was started anew does not know them
        found = scores(self.directory, self.terms.metric_steps)
        self.replayed = [(rung, found[rung]) for rung in self.terms.rungs if rung in found]

    def _start(self) -> None:
        told = {"launcher": "ray", "node": os.uname().nodename}
        environment = {JOB: json.dumps(told), SUPERSEDES: ""}
        if not self.resources.get("GPU"):
            environment["CUDA_VISIBLE_DEVICES"] = ""
        order: Order = {
            "run": str(self.directory.path),
            "cwd": self.terms.cwd,
            "threads": threads(self.resources),
            "environment": environment,
            "rungs": list(self.terms.rungs),
            "metric_steps": self.terms.metric_steps,
        }
        self.at_work = True
        self.fork.start(order)

    def _at(self, rung: int, score: float) -> dict[str, Any]:
        return {TIME: self.terms.time_of(rung), SCORE: score, STEP: rung}

    def _leave(self) -> None:
        """Have the child save and leave, and wait for it."""
        asked = False
        end = time.monotonic() + GRACE_SECONDS
        while self.at_work and time.monotonic() < end:
            if self.fork.pid is not None and not asked:
                with contextlib.suppress(ProcessLookupError):  # it has seen its mark, and left
                    os.kill(self.fork.pid, signal.SIGTERM)
                asked = True
            said = self.fork.next(0.1) or {}
            self.at_work = "code" not in said


def threads(resources: dict[str, float]) -> int:
    """Of a run's process: its share of cores, whole."""
    return max(1, int(resources.get("CPU", 1)))


def scores(run: RunDirectory, metric_steps: int) -> dict[int, float]:
    """What was found at the run's rungs by this score, by training step."""
    asked = (run.request() or {}).get("evaluation", {})
    return {
        step: float(record["value"])
        for step, record in run.rungs().items()
        if record["cell"]["steps"] == metric_steps
        and all(asked.get(name) == value for name, value in record["asked"].items())
    }
