"""Samples side by side: rows are methods, columns are steps, all from the same noise."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fewstep.analysis.summary_types import Samples, Summary
from fewstep.errors import UserError
from fewstep.reports.content.formatting import in_steps, wrapped
from fewstep.reports.figures.drawing import styled
from fewstep.reports.figures.image_grid import bounds_of, drawable, side_by_side

DPI = 200
TILE = 200  # about how many pixels a tile is wide; an image's pixel is a whole number of them
GAP, TOP, EDGE = 16, 44, 8
POINTS = 2000  # dots in a scatter tile


@styled
def sample_grid(
    summary: Summary, samples: Samples, block: tuple[int, int] = (4, 4), seed: int | None = None
) -> Figure:
    """A tile per (method, steps): a block of the first images, or a scatter of 2-D points.

    Args:
        samples: uint8 images (n, C, H, W) with C of 1 or 3, or points (n, 2); absent where there
            are none, which leaves a hatched tile that says why.
        block: rows and columns of images in a tile.
        seed: whose samples these are (for that reason); the lowest by default.

    Raises ``UserError``: an array is neither images nor 2-D points.
    """
    if not summary.steps:
        raise UserError(f"sweep {summary.sweep!r} has no steps to show samples of")
    tiles = {key: _content(key, array, block) for key, array in samples.items()}
    seed = min(summary.conditions.seeds, default=None) if seed is None else seed
    height, width = next((t.shape[:2] for t in tiles.values() if t.ndim == 3), (TILE, TILE))
    bounds = bounds_of(tiles.values())
    labels = ["\n".join(wrapped(method)) for method in summary.methods]
    left = 16 + 14 * max(len(line) for label in labels for line in label.split("\n"))
    total = np.array([left + len(summary.steps) * (width + GAP) + EDGE,
                      TOP + len(labels) * (height + GAP) + EDGE])  # fmt: skip
    figure = Figure(figsize=tuple(total / DPI), dpi=DPI)

    def text(x: float, y: float, words: str, ha: str, va: str) -> None:
        figure.text(x / total[0], y / total[1], words, ha=ha, va=va, size=8)

    for column, steps in enumerate(summary.steps):
        x = left + column * (width + GAP)
        nfes = {summary.cells[method, steps].nfe for method in summary.methods} - {None}
        heading = f"{nfes.pop()} NFE" if len(nfes) == 1 else in_steps(steps)
        text(x + width / 2, total[1] - TOP + 12, heading, ha="center", va="bottom")
        for row, method in enumerate(summary.methods):
            y = total[1] - TOP - (row + 1) * height - row * GAP  # whole pixels, from below
            axes = figure.add_axes((*((x, y) / total), *((width, height) / total)))
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            why = "failed" if seed in summary.cells[method, steps].failed_seeds else "missing"
            _draw(axes, tiles.get((method, steps)), bounds, why)
            if column == 0:
                text(left - 12, y + height / 2, labels[row], ha="right", va="center")
    return figure


def _content(key: tuple[str, int], array: NDArray[Any], block: tuple[int, int]) -> NDArray[Any]:
    """A mosaic (H', W', 3) in whole multiples of the images' pixels, or the points (n, 2)."""
    if not drawable(array):
        raise UserError(
            f"samples of {key[0]!r} at {key[1]} steps are neither uint8 images (n, 1 or 3, H, "
            f"W) nor points (n, 2), got {array.dtype} {array.shape}"
        )
    if array.ndim == 2:
        return np.asarray(array[:POINTS], dtype=np.float64)
    mosaic = side_by_side(array, *block, max(1, array.shape[3] // 16))
    scale = max(1, round(TILE / mosaic.shape[1]))
    return mosaic.repeat(scale, axis=0).repeat(scale, axis=1)


def _draw(axes: Axes, tile: NDArray[Any] | None, bounds: tuple[float, ...], why: str) -> None:
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
    framed = tile is not None and tile.ndim == 2
    axes.spines[:].set(visible=framed, linewidth=0.5, color="0.7")
