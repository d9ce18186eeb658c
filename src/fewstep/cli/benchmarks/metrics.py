"""Our Fréchet distance beside the matrix square root of SciPy; other metrics."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy
import scipy.linalg

from fewstep.cli.benchmarks import timed
from fewstep.cli.views.console import out
from fewstep.experiments.metrics import KID, Coverage, Recall
from fewstep.experiments.metrics.frechet_distance import GaussianStats, frechet_distance

ROUNDS = {512: 5, 1024: 3, 2048: 2}  # a round of 2,048 dimensions takes minutes
SAMPLES, DIMENSIONS = 5000, 64


def frechet_times() -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """For each number of dimensions, a row of the table and the record.

    CPU seconds of ours and SciPy's in turns, as wall-clock time depends on other processes (ratios
    from 0.5 to 1.4): their medians, the median ratio in a round, and how much the values differ.
    """
    for d, rounds in ROUNDS.items():
        a, b = gaussian(d, 0), gaussian(d, 1)
        times = []
        for i in range(rounds):
            with out.status(f"{d} dimensions, round {i + 1} of {rounds}"):
                value, _, ours = timed(lambda a=a, b=b: frechet_distance(a, b))  # type: ignore[misc]
                other, _, theirs = timed(lambda a=a, b=b: textbook(a, b))  # type: ignore[misc]
                times.append((ours, theirs))
        ours, theirs = np.median(times, axis=0)
        ratio = float(np.median([first / second for first, second in times]))
        row = {
            "dimensions": str(d),
            "ours (CPU s)": f"{ours:.2f}",
            "sqrtm (CPU s)": f"{theirs:.2f}",
            "ours / sqrtm": f"{ratio:.2f}",
            "difference": f"{abs(value / other - 1):.0e}",
        }
        yield row, {"dimensions": d, "rounds": times, "ratio": ratio, "scipy": scipy.__version__}


def other_times() -> dict[str, float]:
    """CPU seconds of other metrics, by name and size."""
    x, y = (np.random.default_rng(i).standard_normal((SAMPLES, DIMENSIONS)) for i in range(2))
    metrics = {"KID": KID(), "recall": Recall(), "coverage": Coverage()}
    size = f"{SAMPLES:,} and {SAMPLES:,} in {DIMENSIONS} dimensions"
    return {
        f"{name}, {size}": timed(lambda m=metric: m.of(x, y))[2]  # type: ignore[misc]
        for name, metric in metrics.items()
    }


def gaussian(d: int, seed: int) -> GaussianStats:
    """Statistics of 2 d + 100 samples whose spectrum falls as that of image features does."""
    g = np.random.default_rng(seed)
    x = g.standard_normal((2 * d + 100, d)) * np.logspace(0, -2, d)
    return GaussianStats.from_features(x @ g.standard_normal((d, d)), "bench", "none")


def textbook(a: GaussianStats, b: GaussianStats) -> float:
    """The distance by ``scipy.linalg.sqrtm``, as in pytorch-fid."""
    root: Any = scipy.linalg.sqrtm(a.sigma @ b.sigma)
    gap = np.sum((a.mu - b.mu) ** 2)
    return float(gap + np.trace(a.sigma) + np.trace(b.sigma) - 2 * np.trace(root.real))
