"""A sweep on the tests' SLURM cluster, with runs that last as long as a test needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.commands import TINY, run, wait_for
from helpers.slurm import Box
from helpers.third_party import SLOW, held, third_party
from safetensors.torch import load_file
from torch import Tensor

from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory

BASE = (
    "base: {evaluation.steps: [1], training.log_every: 20, training.checkpoint_every: 20,"
    " evaluation.samples: 100}\n"
    "resources: {cpus: 2, memory_gb: 1}\n"
    "slurm: {partition: low, save_seconds: 20, hours: 1}\n"
)
LONG, SHORT = 300, 20
NAP = 0.04  # seconds a step of the long run takes on the cluster


class Sweep:
    """A sweep file in a folder of its own, and the commands on it."""

    def __init__(self, folder: Path, box: Box, cases: str, base: str = BASE) -> None:
        self.folder, self.box = folder, box
        third_party(folder / "slow", "slow", SLOW)
        slow = {"PYTHONPATH": f"{folder}/slow", "NAP": str(NAP), "HELD": str(folder)}
        self.environment = {**box.environment, **slow}
        (folder / "mine.yaml").write_text(f"{base}axes:\n  case:\n{cases}")

    def command(self, *words: object) -> subprocess.CompletedProcess[str]:
        return run(*words, cwd=self.folder, environment=self.environment)

    def start(self, *words: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "fewstep", *map(str, words)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def submit(self, *words: object) -> str:
        done = self.command("sweep", "mine.yaml", *TINY, "--launcher", "slurm", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def runs(self) -> dict[str, RunDirectory]:
        sweep = SweepDirectory(self.folder / "runs/mine")
        plan = sweep.plan()
        assert plan is not None
        return {m["choices"]["case"]: RunDirectory(sweep.path / m["key"]) for m in plan["runs"]}

    @property
    def states(self) -> dict[str, str]:
        return {case: run.status() for case, run in self.runs.items()}

    def job(self, case: str) -> dict[str, str]:
        """What the attempt that has the run says of its job."""
        claim = json.loads(self.runs[case].lease.read_text())
        return claim["job"]

    def training(self, case: str, step: int = 40) -> Callable[[], bool]:
        """Whether the run has come to ``step``, and is at work."""

        def holds() -> bool:
            run = self.runs[case]
            progress = run.progress()
            return bool(progress and progress["done"] >= step and run.lease.exists())

        return holds

    @contextmanager
    def held(self, steps: int = LONG) -> Iterator[None]:
        """Meanwhile runs of so many steps take 2 s for each beyond the hundredth."""
        with held(self.folder, steps):
            yield

    def wait(self, seconds: float = 300) -> None:
        """Until every job is over."""
        empty = lambda: not self.box.run("squeue", "-h").strip()  # noqa: E731
        wait_for(empty, "the queue to be empty", seconds, every=0.5)

    def log(self) -> str:
        """Everything the jobs printed."""
        logs = sorted((self.folder / "runs/mine/_slurm").glob("*/*.out"))
        return "\n".join(f"--- {f.name}\n{f.read_text()}" for f in logs)


def weights(run: RunDirectory) -> dict[str, Tensor]:
    return load_file(sorted(run.checkpoints.glob("step-*"))[-1] / "tensors.safetensors")


def long(case: str) -> str:
    return f"{{label: {case}, objective: slow, training.steps: {LONG}}}"


def same(run: RunDirectory, reference: RunDirectory) -> None:
    """Bit-identical: weights, optimiser, curves, the evaluated cell."""
    assert run.status() == "done"
    mine, theirs = weights(run), weights(reference)
    assert mine.keys() == theirs.keys()
    assert all(mine[name].equal(theirs[name]) for name in mine)

    def curve(r: RunDirectory) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in r.metrics()]

    assert curve(run) == curve(reference)
    assert [c["value"] for c in run.cells().values()] == [
        c["value"] for c in reference.cells().values()
    ]
