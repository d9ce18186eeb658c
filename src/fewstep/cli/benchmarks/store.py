"""A sweep of many finished runs: copies of one small run, with other values."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory

SMALL = ("data=gaussians", "backbone.width=16", "backbone.depth=1", "training.batch_size=16")
OnProgress = Callable[[str, int, int], None]


def many(
    root: Path,
    count: int,
    steps: Sequence[int] = (1, 2),
    seeds: int = 50,
    on_progress: OnProgress = lambda *progress: None,
) -> SweepDirectory:
    """``count`` runs with curves and a cell for each of ``steps``; methods of ``seeds`` runs each.

    The values are log-normal about a level per method and step count.
    """
    run = trained(root, steps)
    spec, result, cells = run.spec() or {}, run.result() or {}, run.cells()
    rng, methods = np.random.default_rng(0), -(-count // seeds)
    level = np.exp(rng.normal(2, 0.5, (methods, 1)) - 0.1 * np.arange(len(cells)))
    sweep, members = SweepDirectory(root / "many"), []
    for i in range(count):
        method, seed = divmod(i, seeds)
        choices = {"objective": f"method_{method % 10}", "training.lr": f"{1 + method // 10}e-4"}
        member = {"key": f"{i:012x}", "seed": seed, "title": f"Method {method % 10}"}
        members.append({**member, "choices": choices})
        config = {**spec["config"], "seed": seed, "objective": {"name": choices["objective"]}}
        files = {"spec": {**spec, **member, "config": config}, "result": {**result, **member}}
        values = level[method] * np.exp(rng.normal(0, 0.1, len(cells)))
        for (name, record), value in zip(cells.items(), values, strict=True):
            files[f"evaluations/{name}"] = {**record, "value": float(value)}
        folder = sweep.path / f"{i:012x}"
        (folder / "evaluations").mkdir(parents=True)
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content, indent=1))
        shutil.copy(run.metrics_file, folder)
        shutil.copy(run.path / "request.json", folder)
        if i % 100 == 99 or i == count - 1:
            on_progress("made", i + 1, count)
    plan = {"name": "many", "description": "", "axes": ["objective", "training.lr"]}
    (sweep.path / "sweep.json").write_text(json.dumps({**plan, "runs": members}))
    return sweep


def trained(root: Path, steps: Sequence[int]) -> RunDirectory:
    """A run with a short curve, trained in a process of its own: torch stays out of this one."""
    settings = ["training.steps=20", "training.log_every=1", "evaluation.samples=100"]
    words = [*SMALL, *settings, f"evaluation.steps={list(steps)}".replace(" ", "")]
    command = [sys.executable, "-P", "-m", "fewstep", "train", *words, "--runs", str(root)]
    subprocess.run(command, check=True, capture_output=True)
    (result,) = root.glob("train/*/result.json")
    return RunDirectory(result.parent)
