"""Samples as pictures: many images as one, each pixel enlarged to a whole number of pixels."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 64  # pixels an image gets, at least


def drawable(array: NDArray[Any]) -> bool:
    """Whether these are uint8 images or points in the plane."""
    images = array.ndim == 4 and array.shape[1] in (1, 3) and array.dtype == np.uint8
    return images or (array.ndim == 2 and array.shape[1] == 2)


def side_by_side(
    images: NDArray[Any], rows: int, columns: int, gap: int, fill: int = 255
) -> NDArray[Any]:
    """The first uint8 images of (n, C, H, W) in rows, ``gap`` pixels of ``fill`` between them.

    Returns (H', W', C), of one channel (H', W', 3).
    """
    count, channels, height, width = images.shape
    shape = (rows * columns, 3 if channels == 1 else channels, height + gap, width + gap)
    grid = np.full(shape, fill, np.uint8)
    grid[:count, :, :height, :width] = images[: len(grid)]
    grid = grid.reshape(rows, columns, *shape[1:]).transpose(0, 3, 1, 4, 2)
    return grid.reshape(rows * shape[2], columns * shape[3], -1)[:-gap, :-gap]


def mosaic(images: NDArray[Any], columns: int | None = None) -> NDArray[Any]:
    """uint8 (n, C, H, W), C of 1 or 3 -> uint8 (H', W', 3), row by row on white, 1 cell apart."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    scale = max(1, SIDE // max(images.shape[2:]))
    gap = max(1, scale // 2)
    big = images.repeat(scale, 2).repeat(scale, 3)
    grid = side_by_side(big, math.ceil(len(images) / columns), columns, gap)
    return np.pad(grid, ((gap, gap), (gap, gap), (0, 0)), constant_values=255)


def write_mosaic(images: NDArray[Any], path: Path) -> None:
    """Write ``mosaic(images)`` as a picture."""
    from PIL import Image

    Image.fromarray(mosaic(images)).save(path)


def bounds_of(samples: Iterable[NDArray[Any]]) -> tuple[float, ...]:
    """One square window (x0, x1, y0, y1) for all points (n, 2); a few strays may lie outside."""
    if not (clouds := [array for array in samples if array.ndim == 2]):
        return (0.0, 1.0, 0.0, 1.0)
    points = np.concatenate(clouds, dtype=np.float64)
    points = points[np.isfinite(points).all(axis=1)]
    low, high = np.percentile(points, [0.5, 99.5], axis=0)
    center, reach = (low + high) / 2, 0.55 * float(max(high - low)) or 1.0
    return (*(center[0] + [-reach, reach]), *(center[1] + [-reach, reach]))
