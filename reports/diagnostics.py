"""Figures of diagnostics, from plain data. Their words and files: ``diagnostics_page``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fewstep.analysis.diagnostics import Curves
from fewstep.analysis.statistics import Estimate
from fewstep.reports.figures import DASHES, MARKERS, style
from fewstep.reports.text import fraction, number, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8  # examples side by side in a picture of images, times in one of points
UNTRAINED = "0.93"
EDGE = 12  # of log-SNR, where the open bins begin
BLUE, ORANGE = "#0072B2", "#D55E00"


def loss_vs_log_snr(curves: Curves) -> Figure:
    """A line per method over log-SNR, noise on the left; bands are the intervals of the means.

    Losses that fall below zero (by a learned weight) have a panel with a linear axis of their own.
    The outermost points stand for everything beyond them.
    """
    below = [m for m, curve in curves.items() if min(_means({m: curve})) <= 0]
    groups = [[m for m in curves if m not in below], below]
    figure, panels = _panels(curves, [group for group in groups if group])
    for axes in panels:
        axes.set_ylabel("Mean held-out loss")
    ticks = [-EDGE - 0.5, -8, -4, 0, 4, 8, EDGE + 0.5]
    panels[-1].set_xticks(ticks, [f"< −{EDGE}", "−8", "−4", "0", "4", "8", f"> {EDGE}"])
    panels[-1].set_xlabel("log-SNR  (noise ← → data)")
    return figure


def jump_error(curves: Curves, methods: Sequence[str] = ()) -> Figure:
    """Log-log: RMS error of the jump map by the jump's length.

    ``methods``: all of the sweep, so that each keeps its colour where not all are drawn.
    """
    figure, (axes,) = _panels(curves, [list(curves)], methods, markers=True)
    lengths = sorted({x for curve in curves.values() for x in curve})
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    axes.set_xticks(lengths, [fraction(length) for length in lengths], size=7)
    axes.set_xlabel("Jump length d / t_max")
    axes.set_ylabel("RMS error per coordinate")
    return figure


def tangent_norms(curves: Curves, methods: Sequence[str] = ()) -> Figure:
    """Norm of the tangent over training; ``methods`` as for ``jump_error``."""
    figure, (axes,) = _panels(curves, [list(curves)], methods)
    axes.set_xlim(left=0)
    axes.set_xlabel("Training step")
    axes.set_ylabel("Tangent norm (mean of a batch)")
    return figure


def _panels(
    curves: Curves,
    groups: Sequence[Sequence[str]],
    methods: Sequence[str] = (),
    markers: bool = False,
) -> tuple[Figure, list[Any]]:
    """A panel for each group of methods, one above the other; log where a decade is spanned."""
    with style():
        from matplotlib import rcParams
        from matplotlib.figure import Figure

        legend = max((len(line) for m in curves for line in wrapped(m)), default=0)
        size = (3.5 + max(1.4, 0.7 + 0.065 * legend), 3.1 if len(groups) == 1 else 4.6)
        figure = Figure(figsize=size, layout="constrained")
        panels = list(figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0])
        colors = rcParams["axes.prop_cycle"].by_key()["color"]
        order = list(methods) or list(curves)
        for method in curves:
            i = order.index(method)
            axes = panels[next(k for k, group in enumerate(groups) if method in group)]
            look: dict[str, Any] = {"color": colors[i % len(colors)]}
            look["linestyle"] = DASHES[(i // len(colors)) % len(DASHES)]
            if markers:
                look["marker"] = MARKERS[i % len(MARKERS)]
            _line(axes, method, curves[method], look)
        for axes, group in zip(panels, groups, strict=True):
            _scale(axes, _means({m: curves[m] for m in group}))
        figure.legend(loc="outside right upper")
    return figure, panels


def _line(axes: Any, method: str, curve: Mapping[float, Estimate], look: Mapping[str, Any]) -> None:
    x, mean = np.array(list(curve)), np.array([point.mean for point in curve.values()])
    half = np.nan_to_num([point.half_width for point in curve.values()])
    low = np.where(mean > 0, np.maximum(mean - half, mean / 10), mean - half)
    axes.fill_between(x, low, mean + half, color=look["color"], alpha=0.15, lw=0)
    axes.plot(x, mean, label="\n".join(wrapped(method)), **look)


def _means(curves: Curves) -> list[float]:
    return [point.mean for curve in curves.values() for point in curve.values()]


def _scale(axes: Any, means: Sequence[float]) -> None:
    """Log where the means are positive and span a decade."""
    if means and min(means) > 0 and max(means) > 10 * min(means):
        from matplotlib.ticker import NullLocator

        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain)
        axes.yaxis.set_minor_locator(NullLocator())


def _plain(value: float, position: int | None = None) -> str:
    """A tick's label: 0.001, not the power of ten that our style shows as it is typed."""
    return f"{value:g}"


def loss_grid(title: str, grid: Mapping[str, Any]) -> Figure:
    """Heat map of the mean loss over time and jump length; hatched where nothing is trained."""
    values = np.array(grid["mean"], dtype=float)  # None becomes nan
    edges = grid["d_edges"]
    rows = len(values)
    with style():
        from matplotlib.colors import LogNorm, Normalize
        from matplotlib.figure import Figure

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
        bar = figure.colorbar(image, ax=axes, pad=0.02, format=_plain)
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
    with style():
        return draw(title, arrays, chosen, labels)


def _denoised_images(
    title: str, arrays: Mapping[str, NDArray[Any]], chosen: NDArray[Any], labels: list[str]
) -> Figure:
    """Rows are times, under a row of clean images; the first column is x_t of the first of them."""
    from matplotlib.figure import Figure

    clean = arrays["clean"][:COLUMNS]
    count, (height, width) = len(clean), clean.shape[2:]
    rows = len(chosen) + 1
    side = 0.5  # inches of an image
    figure = Figure(figsize=(1.1 + side * (count + 1.3), 0.35 + side * rows * height / width))
    left, top = 1.05 / figure.get_figwidth(), 1 - 0.3 / figure.get_figheight()
    grid = figure.add_gridspec(
        rows, count + 2, left=left, right=0.99, bottom=0.01, top=top, wspace=0.06, hspace=0.06,
        width_ratios=[1, 0.25, *[1] * count],
    )  # fmt: skip
    for row in range(rows):
        shown = clean if row == 0 else arrays["denoised"][chosen[row - 1]][:count]
        tiles = [(column + 2, image) for column, image in enumerate(shown)]
        if row:
            tiles.append((0, arrays["noisy"][chosen[row - 1]][0]))
        for column, image in tiles:
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(_picture(image), interpolation="nearest", aspect="auto", vmin=0, vmax=255)
            axes.axis("off")
        place = grid[row, 0].get_position(figure)
        label = "clean" if row == 0 else labels[row - 1]
        figure.text(left * 0.92, (place.y0 + place.y1) / 2, label, ha="right", va="center", size=7)
    first, last = grid[0, 2].get_position(figure), grid[0, count + 1].get_position(figure)
    input_place = grid[1, 0].get_position(figure)
    center = (input_place.x0 + input_place.x1) / 2
    figure.text(center, input_place.y1 + 0.01, "x_t of\nthe first", ha="center", size=7)
    heading = f"{title}: one step from x_t to data"
    figure.text((first.x0 + last.x1) / 2, first.y1 + 0.012, heading, ha="center", size=8)
    return figure


def _picture(image: NDArray[Any]) -> NDArray[Any]:
    """(1 or 3, H, W) uint8 -> (H, W, 3)."""
    return np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3))


def _denoised_points(
    title: str, arrays: Mapping[str, NDArray[Any]], chosen: NDArray[Any], labels: list[str]
) -> Figure:
    """Columns are times: x_t above, where one step takes it below, over the clean points."""
    from matplotlib.figure import Figure

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
