"""What launchers, status and sync cost besides the runs themselves."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fewstep.cli.benchmarks import timed
from fewstep.cli.benchmarks.store import SMALL, many
from fewstep.experiments.config.run_config import Override, compose
from fewstep.experiments.run import prepare
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.experiments.tracking.sync import sync
from fewstep.sweeps.cpu_threads import cores
from fewstep.sweeps.definition import parse as definition
from fewstep.sweeps.definition.resources import DEFAULT, Resources
from fewstep.sweeps.launcher import Event, Launcher, LaunchRequest, launcher
from fewstep.sweeps.plan import plan
from fewstep.sweeps.slurm import squeue
from fewstep.sweeps.slurm.settings import SlurmSettings
from fewstep.sweeps.status import sweep_status

SHORT: list[Override] = [*SMALL, "training.steps=1", "evaluation.steps=[]"]
RUNS, MANY, SYNCED, SUBMITTED = 6, 1000, 100, 200


def measure() -> dict[str, float | None]:
    """Seconds and rates by name; None where there is no SLURM."""
    numbers: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory(prefix="fewstep-bench-") as folder:
        root = Path(folder)
        bare = [bare_run(root / "bare", seed) for seed in range(3)]
        numbers["bare run, in a cold process (s)"] = statistics.median(bare)
        # one run at a time, in a process that has imported everything: no bare run is to be taken
        # from it
        local, ray = launcher("local", {"workers": 1}), launcher("ray")
        for name, used, resources in (
            ("local", local, DEFAULT),
            ("ray", ray, Resources(cpus=cores())),
        ):
            whole, own = launched(root / name, used, resources)
            numbers[f"{name}: a run, in a warm process (s)"] = whole
            numbers[f"{name}: of which the run itself (s)"] = own
        numbers[f"planning of {SUBMITTED} runs, for any launcher (s)"] = planned(root / "planned")
        numbers |= slurm(root / "slurm")
        sweep = many(root / "many", MANY)
        states, seconds, _ = timed(lambda: sweep_status(sweep))
        assert all(run.state == "done" for run in states)
        numbers[f"status of {MANY} finished runs (s)"] = seconds
        fresh = many(root / "sync", SYNCED)
        uri = f"sqlite:///{root}/sync/mlflow.db"
        seconds = wall(lambda: sync([fresh], root / "sync", uri))
        numbers["sync to fresh sqlite (runs/s)"] = SYNCED / seconds
        again = [
            sys.executable,
            "-P",
            "-m",
            "fewstep",
            "sync",
            "many",
            "--runs",
            str(root / "sync"),
        ]
        seconds = wall(lambda: subprocess.run(again, check=True, capture_output=True))
        numbers["sync again, nothing changed, a new process (s)"] = seconds
    return numbers


def wall(work: Callable[[], Any]) -> float:
    """Wall-clock seconds."""
    return timed(work)[1]


def little(root: Path, count: int) -> list[RunDirectory]:
    """Runs of one step and no evaluation."""
    settings = [*SHORT, ("runs", str(root)), "sweep=little"]
    return [prepare(compose([*settings, f"seed={i}"])) for i in range(count)]


def planned(root: Path, count: int = SUBMITTED) -> float:
    """Seconds to plan a sweep of such runs and make their directories."""
    root.mkdir()
    (root / "planned.yaml").write_text(f"seeds: {count}\n")
    sweep = definition.load(str(root / "planned.yaml"))
    settings = [*SHORT, ("runs", str(root / "runs"))]
    return wall(lambda: plan(sweep.with_overrides(settings)).write())


def bare_run(root: Path, seed: int) -> float:
    """Seconds of a run started by hand."""
    directory = little(root, seed + 1)[-1]
    words = [sys.executable, "-P", "-m", "fewstep.experiments.worker", str(directory.path)]
    return wall(lambda: subprocess.run(words, check=True, capture_output=True))


def launched(root: Path, used: Launcher, resources: Resources = DEFAULT) -> tuple[float, float]:
    """Seconds per run under the launcher, one at a time, from the end of the first to the last.

    Also the median of the seconds that the runs record: without process, imports and waiting.
    """
    runs, ends = little(root, RUNS), []

    def on_event(event: Event, running: Sequence[RunDirectory]) -> None:
        if event.kind == "done":
            ends.append(time.perf_counter())

    outcome = used.launch(LaunchRequest.of(runs, {run.key: resources for run in runs}), on_event)
    assert len(outcome.done) == RUNS, outcome
    return (ends[-1] - ends[0]) / (RUNS - 1), recorded_seconds(runs)


def recorded_seconds(runs: Sequence[RunDirectory]) -> float:
    """The median of the seconds that runs record, but the first, which ran in a cold process."""
    return statistics.median((run.result() or {})["seconds_total"] for run in runs[1:])


def slurm(root: Path) -> dict[str, float | None]:
    """Of submission and of jobs of several runs; None where there is no SLURM."""
    names = (
        f"slurm: submission of {SUBMITTED} planned runs (s)",
        "slurm: a run in a job of several, in a warm process (s)",
        "slurm: of which the run itself (s)",
    )
    if not squeue.available():
        return dict.fromkeys(names)
    from fewstep.sweeps.slurm.submission import Slurm

    def submitted(runs: Sequence[RunDirectory], runs_per_job: int) -> Slurm:
        settings = SlurmSettings(finalize=False, runs_per_job=runs_per_job)
        sweep = Slurm(SweepDirectory(runs[0].path.parent), settings)
        sweep.submit(runs, {run.key: DEFAULT for run in runs})
        return sweep

    runs, packed = little(root, SUBMITTED), little(root / "shared", RUNS)
    sweep, submission, _ = timed(lambda: submitted(runs, 1))
    squeue.cancel(s.job for s in sweep.submissions() if s.job is not None)
    submitted(packed, RUNS)
    ends: dict[str, float] = {}
    while len(ends) < RUNS:
        ended = [run.key for run in packed if run.key not in ends and run.status() == "done"]
        ends |= dict.fromkeys(ended, time.perf_counter())
        time.sleep(0.05)
    a_run = (max(ends.values()) - min(ends.values())) / (RUNS - 1)
    return dict(zip(names, (submission, a_run, recorded_seconds(packed)), strict=True))
