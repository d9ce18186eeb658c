"""``fewstep bench sweep``: what launchers, status and sync cost beside the runs themselves."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fewstep.cli.console import out
from fewstep.experiments.config import Override, compose
from fewstep.experiments.run import prepare, run
from fewstep.experiments.rundir import RunDirectory, SweepDirectory, write_json
from fewstep.sweeps import definition
from fewstep.sweeps.launcher import Launcher
from fewstep.sweeps.plan import plan
from fewstep.sweeps.resources import Resources

LITTLE = ("data=gaussians", "backbone.width=16", "backbone.depth=1", "training.batch_size=16")
SHORT: list[Override] = [*LITTLE, "training.steps=1", "evaluation.steps=[]"]
RUNS, MANY, SYNCED, SUBMITTED = 6, 1000, 100, 200


def bench_sweep(file: Path | None) -> None:
    """Measure and print; ``file``: all numbers as JSON."""
    found: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory(prefix="fewstep-bench-") as name:
        root = Path(name)
        bare = statistics.median(bare_run(root / "bare", seed) for seed in range(3))
        found["bare run, in a cold process (s)"] = bare
        # in a process that has imported everything: no bare run is to be taken from it
        for name, launcher in (("local", local), ("ray", ray)):
            whole, own = launched(root / name, launcher)
            found[f"{name}: a run, in a warm process (s)"] = whole
            found[f"{name}: of which the run itself (s)"] = own
        found[f"planning of {SUBMITTED} runs, for any launcher (s)"] = planned(root / "planned")
        found |= slurm(root / "slurm")
        sweep = many(root / "many", MANY)
        found[f"status of {MANY} finished runs (s)"] = timed(lambda: states(sweep))
        found["sync to fresh sqlite (runs/s)"] = synced(many(root / "sync", SYNCED))
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("what")
    table.add_column("measured", justify="right")
    for what, value in found.items():
        table.add_row(what, "not here" if value is None else f"{value:.2f}")
    out.print(table)
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n")


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
    return timed(lambda: plan(sweep.with_overrides(settings)).write())


def timed(work: Callable[[], Any]) -> float:
    """Seconds of the clock on the wall."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def bare_run(root: Path, seed: int) -> float:
    """A run started by hand."""
    directory = little(root, seed + 1)[-1]
    words = [sys.executable, "-P", "-m", "fewstep.experiments.worker", str(directory.path)]
    return timed(lambda: subprocess.run(words, check=True, capture_output=True))


def local(runs: Sequence[RunDirectory]) -> Launcher:
    from fewstep.sweeps.local import LocalLauncher

    return LocalLauncher(workers=1)


def ray(runs: Sequence[RunDirectory]) -> Launcher:
    from fewstep.sweeps.ray import RayLauncher, RaySettings
    from fewstep.sweeps.threads import cores

    whole = Resources(cpus=cores())  # of this machine: one run at a time
    return RayLauncher(RaySettings.parse({}), {run.key: whole for run in runs})


def launched(root: Path, make: Callable[[Sequence[RunDirectory]], Launcher]) -> tuple[float, float]:
    """Seconds a run under the launcher, one at a time, from the first one's end to the last's.

    And the median of what they say themselves: without process, imports and all that waits.
    """
    runs, ends = little(root, RUNS), []

    def on_event(event: Any, working: Sequence[RunDirectory]) -> None:
        if event.kind == "done":
            ends.append(time.perf_counter())

    outcome = make(runs).launch(runs, on_event)
    assert len(outcome.done) == RUNS, outcome
    return (ends[-1] - ends[0]) / (RUNS - 1), themselves(runs)


def themselves(runs: Sequence[RunDirectory]) -> float:
    """The median of the seconds that they say; the first, in a cold process, does not count."""
    return statistics.median((run.result() or {})["seconds_total"] for run in runs[1:])


def slurm(root: Path) -> dict[str, float | None]:
    """Submission; None where there is no SLURM."""
    from fewstep.sweeps.slurm import queue
    from fewstep.sweeps.slurm.settings import SlurmSettings
    from fewstep.sweeps.slurm.submission import Slurm

    names = (
        f"slurm: submission of {SUBMITTED} planned runs (s)",
        "slurm: a run in a pack, in a warm process (s)",
        "slurm: of which the run itself (s)",
    )
    if not queue.available():
        return dict.fromkeys(names)
    runs = little(root, SUBMITTED)
    there = Slurm(SweepDirectory(runs[0].path.parent), SlurmSettings(collect=False))
    wanted = {r.key: Resources() for r in runs}
    submission = timed(lambda: there.submit(runs, wanted))
    queue.cancel(s.job for s in there.submissions() if s.job is not None)
    packed = little(root / "pack", RUNS)
    settings = SlurmSettings(collect=False, runs_per_job=RUNS)
    there = Slurm(SweepDirectory(packed[0].path.parent), settings)
    there.submit(packed, {r.key: Resources() for r in packed})
    ends: dict[str, float] = {}
    while len(ends) < RUNS:
        for r in packed:
            if r.key not in ends and r.status() == "done":
                ends[r.key] = time.perf_counter()
        time.sleep(0.05)
    a_run = (max(ends.values()) - min(ends.values())) / (RUNS - 1)
    return dict(zip(names, (submission, a_run, themselves(packed)), strict=True))


def many(root: Path, count: int) -> SweepDirectory:
    """A sweep of ``count`` finished runs, copies of one with curves and two cells."""
    settings: list[Any] = [*LITTLE, "training.steps=150", "training.log_every=1"]
    settings += ["evaluation.steps=[1,2]", "evaluation.samples=100", ("runs", str(root))]
    first = prepare(compose([*settings, "sweep=many"]))
    run(first)
    sweep = SweepDirectory(first.path.parent)
    members = [{"key": first.key, "seed": 0, "title": "one", "choices": {}}]
    for seed in range(1, count):
        config = compose([*settings, "sweep=many", f"seed={seed}"])
        directory = RunDirectory(sweep.path / config.key)
        kept = shutil.ignore_patterns("checkpoints", "run.lock")
        shutil.copytree(first.path, directory.path, ignore=kept)
        spec = directory.spec() or {}
        directory.write("spec", {**spec, "key": config.key, "config": config.values})
        directory.write("result", {**(directory.result() or {}), "key": config.key})
        members.append({"key": config.key, "seed": seed, "title": "one", "choices": {}})
    told = {"name": "many", "description": "", "axes": [], "runs": members}
    write_json(sweep.path / "sweep.json", told)
    return sweep


def states(sweep: SweepDirectory) -> None:
    """As ``fewstep status`` reads them."""
    from fewstep.sweeps.status import sweep_status

    assert all(run.state == "done" for run in sweep_status(sweep))


def synced(sweep: SweepDirectory) -> float:
    """Runs a second."""
    from fewstep.experiments.tracking import sync

    root = sweep.path.parent
    seconds = timed(lambda: sync([sweep], root, f"sqlite:///{root}/mlflow.db"))
    return len(sweep.runs()) / seconds
