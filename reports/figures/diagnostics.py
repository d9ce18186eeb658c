"""Figures of one diagnosed run, from plain data. Their words and files: ``diagnostics_page``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fewstep.reports.content.formatting import fraction, number
from fewstep.reports.figures.drawing import styled

COLUMNS = 8  # examples side by side in a picture of images, times in one of points
UNTRAINED = "0.93"
BLUE, ORANGE = "#0072B2", "#D55E00"


@styled
def loss_grid(title: str, grid: Mapping[str, Any]) -> Figure:
    """Heat map of the mean loss over time and jump length; hatched where nothing is trained."""
    values = np.array(grid["mean"], dtype=float)  # None becomes nan
    edges = grid["d_edges"]
    rows = len(values)
    figure = Figure(figsize=(5.2, 1.3 + 0.2 * rows), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=False)
    axes.set_facecolor(UNTRAINED)
    axes.patch.set(hatch="////", edgecolor="0.8", linewidth=0)
    shown = values[np.isfinite(values)]
    ratio = shown.max() / shown.min() if len(shown) and shown.min() > 0 else 0
    norm = LogNorm() if ratio > 10 else Normalize()
    image = axes.pcolormesh(
        grid["t_edges"], np.arange(rows + 1), np.ma.masked_invalid(values), norm=norm,
        cmap="viridis",
    )  # fmt: skip
    bar = figure.colorbar(image, ax=axes, pad=0.02, format="%g")
    bar.set_label("Mean held-out loss")
    bar.outline.set_linewidth(0.5)
    axes.set_xlabel(f"Time t  (0: data, {grid['t_edges'][-1]:.3g}: noise)")
    axes.set_title(title, size=9)
    if edges is None:
        axes.set_yticks([])
    else:
        names = [fraction(edge) for edge in edges]
        names[1:2] = [f"≤ {names[1]}"]
        axes.set_yticks(np.arange(rows) + 0.5, names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylabel("Jump length d / t_max")
    axes.spines[:].set_visible(False)
    return figure


@styled
def denoising(title: str, arrays: Mapping[str, NDArray[Any]], rms: list[float]) -> Figure | None:
    """One step from x_t to the data at every second time; None for what cannot be drawn.

    ``arrays``: clean (n, ...), noisy and denoised (times, n, ...) and t (times,): uint8 images
    or points. ``rms``: the error at each time.
    """
    clean = arrays["clean"]
    if (clean.ndim == 2 and clean.shape[1] != 2) or (clean.ndim == 4 and clean.dtype != np.uint8):
        return None  # vectors not in the plane, latents
    chosen = np.arange(1, len(arrays["t"]), 2)[::-1]  # the noisiest first
    labels = [f"t = {arrays['t'][i]:.2f}\nRMS {number(rms[i])}" for i in chosen]
    draw = _denoised_images if clean.ndim == 4 else _denoised_points
    return draw(title, arrays, chosen, labels)


def _denoised_images(
    title: str, arrays: Mapping[str, NDArray[Any]], chosen: NDArray[Any], labels: list[str]
) -> Figure:
    """Rows are times, under a row of clean images; the first column is x_t of the first of them."""
    clean = arrays["clean"][:COLUMNS]
    count, _, height, width = clean.shape
    rows = [("clean", None, None, *clean)]  # the second column is a gap
    for i, label in zip(chosen, labels, strict=True):
        rows.append((label, arrays["noisy"][i][0], None, *arrays["denoised"][i][:count]))
    side = 0.5  # inches of an image
    size = (1.1 + side * (count + 1.3), 0.35 + side * len(rows) * height / width)
    figure = Figure(figsize=size)
    grid = {"left": 1.05 / size[0], "right": 0.99, "bottom": 0.01, "top": 1 - 0.3 / size[1],
            "wspace": 0.06, "hspace": 0.06, "width_ratios": [1, 0.25, *[1] * count]}  # fmt: skip
    panels = figure.subplots(len(rows), count + 2, squeeze=False, gridspec_kw=grid)
    for row, (label, *images) in zip(panels, rows, strict=True):
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", size=7)
        for axes, image in zip(row, images, strict=True):
            axes.set(xticks=[], yticks=[], frame_on=False)
            if image is not None:
                picture = np.broadcast_to(image.transpose(1, 2, 0), (height, width, 3))
                axes.imshow(picture, interpolation="nearest", aspect="auto", vmin=0, vmax=255)
    panels[1, 0].set_title("x_t of\nthe first", size=7, pad=3)
    figure.suptitle(f"{title}: one step from x_t to data", size=8)
    return figure


def _denoised_points(
    title: str, arrays: Mapping[str, NDArray[Any]], chosen: NDArray[Any], labels: list[str]
) -> Figure:
    """Columns are times: x_t above, where one step takes it below, over the clean points."""
    figure = Figure(figsize=(0.4 + 1.0 * len(chosen), 2.7), layout="constrained")
    panels = figure.subplots(2, len(chosen), sharex=True, sharey=True, squeeze=False)
    reach = 1.15 * float(np.percentile(np.abs(arrays["noisy"]), 99.5))
    for column, (i, label) in enumerate(zip(chosen, labels, strict=True)):
        panels[0, column].set_title(label, size=7)
        for row, name in enumerate(("noisy", "denoised")):
            axes = panels[row, column]
            points = arrays[name][i]
            axes.plot(*arrays["clean"].T, ".", ms=1.2, mew=0, color="0.75")
            axes.plot(*points.T, ".", ms=1.6, mew=0, color=ORANGE if row == 0 else BLUE, alpha=0.7)
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect=1)
            axes.spines[:].set(visible=True, linewidth=0.5, color="0.7")
    panels[0, 0].set_ylabel("x_t", size=8)
    panels[1, 0].set_ylabel("one step\nto data", size=8)
    figure.suptitle(f"{title}: one step from x_t (grey: the data)", size=8)
    return figure
