"""Samples side by side: rows are methods, columns are steps, all from the same noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fewstep.analysis.records import Summary
from fewstep.errors import UserError
from fewstep.reports.figures import style
from fewstep.reports.text import in_steps, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Samples = Mapping[tuple[str, int], NDArray[Any]]
DPI = 200
TILE = 200  # about how many pixels a tile is wide; an image's pixel is a whole number of them
GAP = 16
POINTS = 2000  # dots in a scatter tile


def sample_grid(
    summary: Summary, samples: Samples, block: tuple[int, int] = (4, 4), seed: int | None = None
) -> Figure:
    """A tile per (method, steps): a block of the first images, or a scatter of 2-D points.

    Args:
        samples: uint8 images (n, C, H, W) with C of 1 or 3, or points (n, 2); absent where there
            are none, which leaves a hatched tile that says why.
        block: rows and columns of images in a tile.
        seed: whose samples these are (for that reason); the lowest by default.

    Raises:
        UserError: an array is neither images nor 2-D points.
    """
    if not summary.steps:
        raise UserError(f"sweep {summary.sweep!r} has no steps to show samples of")
    tiles = {place: _content(place, array, block) for place, array in samples.items()}
    seed = min(summary.conditions.seeds, default=None) if seed is None else seed
    images = [tile for tile in tiles.values() if tile.ndim == 3]
    height, width = images[0].shape[:2] if images else (TILE, TILE)
    bounds = bounds_of([tile for tile in tiles.values() if tile.ndim == 2])
    with style():
        from matplotlib.figure import Figure

        rows, columns = len(summary.methods), len(summary.steps)
        labels = ["\n".join(wrapped(method)) for method in summary.methods]
        left = 16 + 14 * max(len(line) for label in labels for line in label.split("\n"))
        top, edge = 44, 8
        total = (left + columns * (width + GAP) + edge, top + rows * (height + GAP) + edge)
        figure = Figure(figsize=(total[0] / DPI, total[1] / DPI), dpi=DPI)
        for column, steps in enumerate(summary.steps):
            x = left + column * (width + GAP)
            figure.text(
                (x + width / 2) / total[0], 1 - (top - 12) / total[1],
                _heading(summary, steps), ha="center", va="bottom", size=8,
            )  # fmt: skip
            for row, method in enumerate(summary.methods):
                y = total[1] - top - (row + 1) * height - row * GAP  # whole pixels, from below
                box = (x / total[0], y / total[1], width / total[0], height / total[1])
                axes = figure.add_axes(box)
                axes.set(xticks=[], yticks=[])
                axes.grid(visible=False)
                cell = summary.cells[method, steps]
                why = "failed" if seed in cell.failed_seeds else "missing"
                _draw(axes, tiles.get((method, steps)), bounds, why)
                if column == 0:
                    figure.text(
                        (left - 12) / total[0], (y + height / 2) / total[1],
                        labels[row], ha="right", va="center", size=8,
                    )  # fmt: skip
    return figure


def drawable(array: NDArray[Any]) -> bool:
    """Whether these are uint8 images or points in the plane."""
    images = array.ndim == 4 and array.shape[1] in (1, 3) and array.dtype == np.uint8
    return images or (array.ndim == 2 and array.shape[1] == 2)


def _content(place: tuple[str, int], array: NDArray[Any], block: tuple[int, int]) -> NDArray[Any]:
    """A mosaic (H', W', 3) in whole multiples of the images' pixels, or the points (n, 2)."""
    if not drawable(array):
        raise UserError(
            f"samples of {place[0]!r} at {place[1]} steps are neither uint8 images (n, 1 or 3, H, "
            f"W) nor points (n, 2), got {array.dtype} {array.shape}"
        )
    if array.ndim == 2:
        return np.asarray(array[:POINTS], dtype=np.float64)
    _, _, h, w = array.shape
    (rows, columns), line = block, max(1, w // 16)  # white lines between images
    mosaic = np.full((rows * (h + line) - line, columns * (w + line) - line, 3), 255, np.uint8)
    for i, image in enumerate(array[: rows * columns]):
        y, x = (i // columns) * (h + line), (i % columns) * (w + line)
        mosaic[y : y + h, x : x + w] = image.transpose(1, 2, 0)  # one channel spreads over three
    scale = max(1, round(TILE / mosaic.shape[1]))
    return mosaic.repeat(scale, axis=0).repeat(scale, axis=1)


def _draw(axes: Any, tile: NDArray[Any] | None, bounds: tuple[float, ...], why: str) -> None:
    if tile is None:
        axes.set_facecolor("0.95")
        axes.patch.set(hatch="////", edgecolor="0.8", linewidth=0)
        axes.text(
            0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", size=7,
            color="0.25", bbox={"facecolor": "0.95", "edgecolor": "none", "pad": 2},
        )  # fmt: skip
    elif tile.ndim == 2:
        size = np.clip(60 / np.sqrt(len(tile)), 1.3, 4)
        axes.plot(tile[:, 0], tile[:, 1], ".", ms=size, mew=0, color="#0072B2", alpha=0.6)
        axes.set(xlim=bounds[:2], ylim=bounds[2:])
    else:
        axes.imshow(tile, interpolation="nearest", aspect="auto")
    for spine in axes.spines.values():
        spine.set_visible(tile is not None and tile.ndim == 2)
        spine.set(linewidth=0.5, color="0.7")


def bounds_of(clouds: list[NDArray[Any]]) -> tuple[float, ...]:
    """One square window (x0, x1, y0, y1) for all clouds; a few strays may lie outside."""
    if not clouds:
        return (0.0, 1.0, 0.0, 1.0)
    points = np.concatenate(clouds)
    points = points[np.isfinite(points).all(axis=1)]
    low, high = np.percentile(points, [0.5, 99.5], axis=0)
    center, reach = (low + high) / 2, 0.55 * float(max(high - low)) or 1.0
    return (*(center[0] + [-reach, reach]), *(center[1] + [-reach, reach]))


def _heading(summary: Summary, steps: int) -> str:
    """The NFE where all methods agree on it, else the steps."""
    nfes = {summary.cells[method, steps].nfe for method in summary.methods} - {None}
    if len(nfes) == 1:
        return f"{nfes.pop()} NFE"
    return in_steps(steps)
