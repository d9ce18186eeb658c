"""Write sweeps as the experiments would: real files, values of the test's choosing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

METRIC = {
    "name": "FD", "extractor": "cnn", "extractor_sha256": "0123456789abcdef" * 4,
    "data": "digits", "samples": 597, "reference": "train",
    "reference_sha256": "fedcba9876543210" * 4, "reference_samples": 1200,
    "resize": "none", "rounding": "clip-round-uint8",
    "label": "FD-digits-cnn@597", "id": "a1b2c3d4e5f6",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run to be written: ``values`` maps sampling steps to the metric's value."""

    title: str
    seed: int
    values: Mapping[int, float] = field(default_factory=dict)
    failure: str | None = None
    done: bool = True
    choices: Mapping[str, str] = field(default_factory=dict)
    objective: str | None = None
    cell: Mapping[str, Any] = field(default_factory=dict)  # overrides of the cell's identity
    metric: Mapping[str, Any] = field(default_factory=dict)  # overrides of the metric's
    floor: float | None = 1.5
    nfe_per_step: int = 1
    train_steps: int = 500
    reached: int | None = None  # last logged training step, where a run is not done: 200
    images: Mapping[int, np.ndarray] = field(default_factory=dict)
    rungs: Mapping[int, float] = field(default_factory=dict)  # of a run ended early at the last
    config: Mapping[str, Any] = field(default_factory=dict)  # overrides of its groups
    teacher: str | None = None  # key
    seconds: float = 50.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.objective or self.title.lower().replace(" ", "_")

    @property
    def key(self) -> str:
        extra = "".join(f"-{v}" for v in self.choices.values())
        return f"{self.name}{extra}-s{self.seed}"


def write_sweep(root: Path, runs: Iterable[Run], name: str = "demo", plan: bool = True) -> Path:
    """Write ``runs`` under ``root/name`` and return that folder."""
    folder = root / name
    members = list(runs)
    for run in members:
        write_run(folder / run.key, run)
    if plan:
        axes = list(dict.fromkeys(["objective", *(a for r in members for a in r.choices)]))
        entries = [
            {"key": r.key, "seed": r.seed, "title": r.title,
             "choices": {"objective": r.name, **r.choices}}
            for r in members
        ]  # fmt: skip
        _json(folder / "sweep.json", {"name": name, "axes": axes, "runs": entries})
    return folder


def write_run(folder: Path, run: Run) -> None:
    config = {
        "objective": {"name": run.name},
        "backbone": {"name": "unet"},
        "data": {"name": "digits"},
        "training": {"steps": 500, "batch_size": 128},
        "evaluation": {"steps": [1, 2, 4]},
        "seed": run.seed,
        "teacher": None if run.teacher is None else f"/elsewhere/{run.teacher}",
        **run.config,
    }
    if not run.done and run.failure is None:
        return  # planned, never begun
    spec = {"key": run.key, "title": run.title, "config": config}
    _json(folder / "spec.json", {**spec, "command": f"fewstep train seed={run.seed}"})
    with (folder / "metrics.jsonl").open("w") as file:
        finished = run.failure is None and not run.rungs
        for step in (100, run.reached or (run.train_steps if finished else 200)):
            line = {"step": step, "loss": 1.0, "images_seen": 128 * step, "seconds": step / 10}
            file.write(json.dumps(line) + "\n")
    for step, value in run.rungs.items():
        cell = {"steps": 1, "times": None, "sampler": {"solver": "euler"}, "weights": "ema",
                "guidance": 1.0, "sample_set": 0}  # fmt: skip
        _json(folder / "rungs" / f"{step}.json",
              {"training_step": step, "images_seen": 128 * step, "cell": cell, "value": value,
               "metric": METRIC, "floor": run.floor, "nfe": 1})  # fmt: skip
    if run.rungs:
        mark = {"class": "early_stopped", "by": "asha", "step": max(run.rungs)}
        _json(folder / "stopped.json", mark)
        return
    for steps, value in run.values.items():
        cell = {"steps": steps, "times": None, "sampler": {"solver": "euler"}, "weights": "ema",
                "guidance": 1.0, "sample_set": 0, **run.cell}  # fmt: skip
        stem = f"steps{steps}-{cell['weights']}-g{cell['guidance']}-s{cell['sample_set']}"
        if (solver := (cell["sampler"] or {}).get("solver", "euler")) != "euler":
            stem += f"-{solver}"
        record = {"cell": cell, "metric": {**METRIC, **run.metric}, "value": value,
                  "floor": run.floor, "nfe": steps * run.nfe_per_step, "seconds": 2.0,
                  "images_per_second": 300.0 / steps}  # fmt: skip
        _json(folder / "evaluations" / f"{stem}.json", record)
        if steps in run.images:
            (folder / "samples").mkdir(exist_ok=True)
            labels = np.arange(len(run.images[steps]))
            np.savez(folder / "samples" / f"{stem}.npz", images=run.images[steps], labels=labels)
    if run.failure is not None:
        _json(
            folder / "failure.json",
            {
                "key": run.key,
                "class": run.failure,
                "finished": "2026-01-01T00:00:00",
                "message": f"{run.failure} | at step 200",
            },
        )
    else:
        _json(folder / "result.json",
              {"key": run.key, "steps": run.train_steps, "images_seen": 128 * run.train_steps,
               "train_seconds": run.seconds, "steps_per_second": run.train_steps / run.seconds,
               "peak_memory_bytes": 2**28, "parameters": 123456,
               "provenance": {"commit": "c0ffee" * 6, "dirty": False, "host": "laptop",
                              **run.provenance}}
              )  # fmt: skip


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
