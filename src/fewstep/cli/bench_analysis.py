"""``fewstep bench analysis``: what reading, summarising and reporting a large sweep costs.

The store is made of the files that runs write, with numbers drawn for it, and so small that only
their count is like the real thing: no checkpoints, no curves. Making it is not counted.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from fewstep.cli.console import meter, out

STEPS = tuple(2**k for k in range(12))
RUNS = 10_000
SEEDS = 50  # of each method: 200 rows in the table
METRIC = {
    "name": "FD",
    "extractor": "cnn",
    "extractor_sha256": "0123456789abcdef" * 4,
    "data": "digits",
    "samples": 597,
    "reference": "train",
    "reference_sha256": "fedcba9876543210" * 4,
    "reference_samples": 1200,
    "resize": "none",
    "rounding": "clip-round-uint8",
    "label": "FD-digits-cnn@597",
    "id": "a1b2c3d4e5f6",
}
PROVENANCE = {
    "commit": "c0ffee" * 6, "dirty": False, "lock": "abcdef012345", "host": "bench",
    "fewstep": "0.1.0", "python": "3.11.7", "versions": {"torch": "2.13.0"},
    "job": {"launcher": "slurm", "id": "4711_2"}, "device_name": "H200", "processes": 1,
    "objective_source": "0123456789ab", "backbone_source": "ba9876543210",
    "started": "2026-11-21T10:00:00+00:00", "finished": "2026-11-21T10:01:00+00:00",
}  # fmt: skip


def bench_analysis(file: Path | None, runs: int = RUNS) -> None:
    """Make a store of ``runs`` runs, measure in this process, print; ``file``: as JSON, too."""
    found: dict[str, float] = {}

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        wall, busy = time.perf_counter(), time.process_time()
        yield
        found[f"{part} (s)"] = time.perf_counter() - wall
        found[f"{part} (CPU s)"] = time.process_time() - busy

    with tempfile.TemporaryDirectory(prefix="fewstep-bench-") as name:
        with meter("store", "runs") as progress:
            sweep = make(Path(name) / "many", runs, progress)
        begun = time.perf_counter()
        with timed("imports"):
            from fewstep.analysis import load, summarise
            from fewstep.reports.report import write_report
        with timed("frame"):
            frame = load(sweep)
        with timed("statistics"):
            summarise(frame)
        with timed("report, with its own statistics"):
            write_report(frame, {}, Path(name) / "report")
        found["all (s)"] = time.perf_counter() - begun
    found["peak memory of this process (MB)"] = peak_bytes() / 1e6
    show(runs, len(frame), found)
    if file is not None:
        file.write_text(json.dumps({"runs": runs, "cells": len(frame), **found}, indent=1) + "\n")


def show(runs: int, cells: int, found: dict[str, float]) -> None:
    """A line for each part."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(f"{runs:,} runs, {cells:,} cells")
    table.add_column("measured", justify="right")
    for what, value in found.items():
        table.add_row(what, f"{value:,.2f}")
    out.print(table)


def peak_bytes() -> int:
    """The largest resident size this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def make(folder: Path, runs: int, progress: Callable[[str, int, int, float], None]) -> Path:
    """A sweep of ``runs`` finished runs at 12 step counts: log-normal values, 50 seeds a method."""
    rng = np.random.default_rng(0)
    methods = -(-runs // SEEDS)
    level = np.exp(rng.normal(2, 0.5, (methods, 1)) - 0.1 * np.arange(len(STEPS)))
    members: list[dict[str, Any]] = []
    begun = time.perf_counter()
    for i in range(runs):
        method, seed = divmod(i, SEEDS)
        values = level[method] * np.exp(rng.normal(0, 0.1, len(STEPS)))
        choices = {"objective": f"method_{method % 10}", "training.lr": f"{1 + method // 10}e-4"}
        member = {"key": f"{i:012x}", "seed": seed, "title": f"Method {method % 10}"}
        write_run(folder / f"{i:012x}", member, choices, values)
        members.append({**member, "choices": choices})
        if i % 100 == 99 or i == runs - 1:
            progress("made", i + 1, runs, (i + 1) / (time.perf_counter() - begun))
    plan = {"name": folder.name, "axes": ["objective", "training.lr"], "runs": members}
    (folder / "sweep.json").write_text(json.dumps(plan))
    return folder


def write_run(
    folder: Path, member: dict[str, Any], choices: dict[str, str], values: np.ndarray
) -> None:
    """The files of a finished run that an analysis looks at; not synced to disk, as real ones."""
    cells = folder / "evaluations"
    cells.mkdir(parents=True)
    config = {
        "objective": {"name": choices["objective"]},
        "backbone": {"name": "dit_digits", "width": 64, "depth": 3, "heads": 4, "patch": 2},
        "data": {"name": "digits"},
        "training": {"steps": 1500, "batch_size": 64, "lr": 1e-3, "ema": 0.999},
        "evaluation": {"steps": list(STEPS), "samples": None, "extractor": "auto"},
        "seed": member["seed"],
    }
    command = f"fewstep train objective={choices['objective']} seed={member['seed']} " + " ".join(
        f"backbone.{k}={v}" for k, v in config["backbone"].items() if k != "name"
    )
    spec = {"key": member["key"], "title": member["title"], "config": config, "command": command}
    (folder / "spec.json").write_text(json.dumps(spec, indent=1))
    for steps, value in zip(STEPS, values, strict=True):
        cell = {"steps": steps, "times": None, "sampler": {}, "weights": "ema", "guidance": 1.0,
                "sample_set": 0}  # fmt: skip
        record = {"cell": cell, "metric": METRIC, "value": float(value), "floor": 3.5,
                  "nfe": steps, "seconds": 0.1, "images_per_second": 6000.0 / steps,
                  "asked": {"samples": None}, "device": "cpu",
                  "provenance": PROVENANCE}  # fmt: skip
        (cells / f"steps{steps:04d}-ema.json").write_text(json.dumps(record, indent=1))
    result = {"key": member["key"], "steps": 1500, "images_seen": 96000, "train_seconds": 50.0,
              "steps_per_second": 30.0, "peak_memory_bytes": 2**28, "parameters": 246084,
              "provenance": PROVENANCE}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result, indent=1))
