"""``fewstep bench metrics``: our Frechet distance beside the square root that others take."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import scipy.linalg
from rich.table import Table

from fewstep.cli.bench import check_writable
from fewstep.cli.console import out
from fewstep.experiments.frechet import GaussianStats, frechet_distance
from fewstep.experiments.metrics import KID, Coverage, Recall
from fewstep.experiments.provenance import environment, now

ROUNDS = {512: 5, 1024: 3, 2048: 2}  # a round of 2,048 dimensions takes minutes
SAMPLES, DIMENSIONS = 5000, 64


def bench_metrics(file: Path | None) -> None:
    """Measure and print; ``file``: all numbers as JSON.

    Ours and SciPy's by turns, and the ratio within each turn. Seconds are the process' own on all
    its threads: on a machine that others are busy on, those of the clock said 0.5 and 1.4 in turn.
    """
    check_writable(file)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in (
        "Frechet distance in",
        "ours (CPU s)",
        "sqrtm (CPU s)",
        "ours / sqrtm",
        "differ by",
    ):
        table.add_column(column, justify="right")
    record: dict[str, Any] = {"frechet": []}
    for d, rounds in ROUNDS.items():
        a, b = gaussian(d, 0), gaussian(d, 1)
        times: list[tuple[float, float]] = []
        for turn in range(rounds):
            with out.status(f"{d} dimensions, round {turn + 1} of {rounds}"):
                mine, ours = timed(lambda a=a, b=b: frechet_distance(a, b))  # type: ignore[misc]
                other, theirs = timed(lambda a=a, b=b: textbook(a, b))  # type: ignore[misc]
                times.append((ours, theirs))
        ratio = statistics.median(ours / theirs for ours, theirs in times)
        ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
        table.add_row(
            f"{d} dimensions", f"{ours:.2f}", f"{theirs:.2f}", f"{ratio:.2f}",
            f"{abs(mine / other - 1):.0e}",
        )  # fmt: skip
        record["frechet"].append({"dimensions": d, "rounds": times, "ratio": ratio})
    out.print(table)
    x, y = (np.random.default_rng(i).standard_normal((SAMPLES, DIMENSIONS)) for i in range(2))
    record["others"] = {}
    for name, work in (
        ("KID", lambda: KID().of(x, y)),
        ("recall", lambda: Recall().of(x, y)),
        ("coverage", lambda: Coverage().of(x, y)),
    ):
        _, seconds = timed(work)
        record["others"][name] = seconds
        out.print(f"{name} of {SAMPLES:,} and {SAMPLES:,} in {DIMENSIONS}: {seconds:.2f} CPU s")
    if file is not None:
        record |= {"scipy": scipy.__version__, "finished": now(), **environment()}
        file.write_text(json.dumps(record, indent=1) + "\n")
        out.print(f"written: {file}", markup=False)


def gaussian(d: int, seed: int) -> GaussianStats:
    """Statistics of 2 d + 100 samples whose spectrum falls as that of image features does."""
    g = np.random.default_rng(seed)
    x = g.standard_normal((2 * d + 100, d)) * np.logspace(0, -2, d)
    return GaussianStats.from_features(x @ g.standard_normal((d, d)), "bench", "none")


def textbook(a: GaussianStats, b: GaussianStats) -> float:
    """The distance by ``scipy.linalg.sqrtm``, as pytorch-fid takes it."""
    root: Any = scipy.linalg.sqrtm(a.sigma @ b.sigma)
    gap = np.sum((a.mu - b.mu) ** 2)
    return float(gap + np.trace(a.sigma) + np.trace(b.sigma) - 2 * np.trace(root.real))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its seconds of CPU time."""
    begun = time.process_time()
    found = work()
    return found, time.process_time() - begun
