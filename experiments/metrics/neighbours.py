"""Distances between many feature vectors, a block of rows at a time, in float64."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ENTRIES = 1 << 23  # of a block of distances: 64 MB


def blocks(x: Array, y: Array) -> Iterator[tuple[slice, Array]]:
    """Squared distances of rows of ``x`` (n, D) to all of ``y`` (m, D): (rows, (rows, m)).

    By |x|^2 + |y|^2 - 2xy about the mean of ``y``, whose rounding is 1e-16 of the largest squared
    norm: two equal rows may be 1e-8 of the features' spread apart.
    """
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    norms = (y**2).sum(axis=1)
    size = max(1, ENTRIES // len(y))
    for start in range(0, len(x), size):
        rows = slice(start, min(start + size, len(x)))
        part = x[rows]
        squared = part @ y.T
        squared *= -2
        squared += norms
        squared += (part**2).sum(axis=1)[:, None]
        yield rows, np.maximum(squared, 0, out=squared)


def radii(x: Array, k: int) -> Array:
    """(n,) squared distance of each row of ``x`` to its ``k``-th nearest other row."""
    kth = np.empty(len(x))
    for rows, distances in blocks(x, x):
        # each row is its own nearest, at a distance that is 0 but for rounding
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = 0
        kth[rows] = np.partition(distances, k, axis=1)[:, k]
    return kth


def nearest(x: Array, y: Array) -> tuple[NDArray[np.int64], Array]:
    """For each row of ``x``: which row of ``y`` is nearest, and its squared distance."""
    index, smallest = np.empty(len(x), np.int64), np.empty(len(x))
    for rows, distances in blocks(x, y):
        index[rows] = distances.argmin(axis=1)
        smallest[rows] = distances[np.arange(len(distances)), index[rows]]
    return index, smallest
