"""A launcher: runs one after another, in processes of low priority."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.errors import UserError, check_range
from fewstep.experiments import worker
from fewstep.sweeps.launcher import Event, LaunchRequest, OnEvent, Outcome


@dataclass(frozen=True)
class NiceLauncher:
    """One run at a time on this machine, at a low priority.

    Attributes:
        level: as for nice(1), 0 to 19.
    """

    level: int = 10

    def __post_init__(self) -> None:
        check_range("nice.level", self.level, 0, 19)

    def check(self, request: LaunchRequest) -> None:
        """Refuse runs of several processes, and machines without nice(1)."""
        if shutil.which("nice") is None:
            raise UserError("launcher nice: no command 'nice' on this machine")
        for run in request.runs:
            if request.resources_of(run.key).processes > 1:
                raise UserError(f"launcher nice: run {run.key} asks for several processes")

    def preview(self, request: LaunchRequest) -> Sequence[str]:
        """The order of the runs."""
        keys = ", ".join(run.key for run in request.runs)
        return [f"one after another at nice {self.level}: {keys}"]

    def launch(self, request: LaunchRequest, on_event: OnEvent) -> Outcome:
        """Run all of them; teachers come before their students in ``request.runs``."""
        outcome = Outcome()
        for run in request.runs:
            on_event(Event("started", run), [run])
            command = ["nice", "-n", str(self.level), sys.executable, "-P"]
            with run.log.open("ab") as log:
                done = subprocess.run(
                    [*command, "-m", "fewstep.experiments.worker", str(run.path)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                )  # fmt: skip
            kind = {worker.DONE: "done", worker.INTERRUPTED: "interrupted"}
            ended = kind.get(done.returncode, "failed")
            getattr(outcome, ended).append(run.key)
            on_event(Event(ended, run), [])
        return outcome
