"""Charts as PNG and PDF, by matplotlib without pyplot: no global state, no display."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from fewstep.analysis.summary_types import Summary
from fewstep.reports.content.captions import FLOOR
from fewstep.reports.content.formatting import no_value, number, wrapped
from fewstep.reports.figures import chart_data
from fewstep.reports.figures.chart_types import Chart, Mark, Series

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "*")
MOST_DOTS = 500  # of one method as vectors in a PDF, which has to be opened and printed
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))  # used once the colours are used up
FLOOR_LINE: dict[str, Any] = {"color": "0.45", "linestyle": (0, (5, 3)), "lw": 1}

styled = matplotlib.style.context(["default", Path(__file__).with_name("fewstep.mplstyle")])
"""Decorator: our style on matplotlib's defaults, whatever the user's own matplotlibrc says."""


@styled
def render(figure: Figure, kind: str) -> bytes:
    """The figure as ``png`` or ``pdf``: the same bytes for the same figure, today and tomorrow."""
    file = io.BytesIO()
    dateless = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
    figure.savefig(file, format=kind, metadata=dateless[kind])
    return file.getvalue()


@styled
def fd_vs_nfe(summary: Summary) -> Figure:
    """A line and marker per method, its t-interval as a band, seeds as dots, the floor.

    A method without any value keeps its place in the legend, which says why.
    """
    legend: list[Artist] = []
    for look, method in enumerate(summary.methods):
        cells = [summary.cells[method, steps] for steps in summary.steps]
        known, lost = any(cell.n for cell in cells), max((c.n_failed for c in cells), default=0)
        notes = [f"({lost} of {cells[0].n_expected} failed)"] if lost else []
        if not known:
            notes = [no_value(cells[0]) if cells else "not run"]
        legend.append(_handle(method, look, notes, alpha=1 if known else 0.5))
    chart = chart_data.fd_vs_nfe(summary)
    if chart.floor:
        legend.append(Line2D([], [], label=f"{FLOOR} ({number(chart.floor)})", **FLOOR_LINE))
    legend.append(Patch(label="95% t-interval of the mean", facecolor="0.5", alpha=0.25, lw=0))
    return _figure([[chart]], (3.5, 3.1), [*legend, *_left_out(summary)])


def fd_vs_compute(summary: Summary, cells: pd.DataFrame) -> Figure | None:
    """Rows are measures of compute, columns numbers of steps; None where none is recorded."""
    return _panels(summary, chart_data.compute(summary, cells), 1.75)


def panels(summary: Summary, charts: Sequence[Chart]) -> Figure | None:
    """Side by side, a line for each method in each; None where there is no chart."""
    return _panels(summary, [charts], 2.2, line=True)


def seed_plot(summary: Summary) -> Figure | None:
    """A dot for each method and seed; a line joins what one seed gave. None without values."""
    return _panels(summary, [chart_data.seeds(summary)], 2.2)


@styled
def _panels(
    summary: Summary, rows: Sequence[Sequence[Chart]], height: float, line: bool = False
) -> Figure | None:
    if not rows or not rows[0]:
        return None
    legend = [
        _handle(method, look, line=line)
        for look, method in enumerate(summary.methods)
        if any(summary.cells[method, s].n for s in summary.steps)
    ]
    return _figure(rows, (1.25, height), [*legend, *_left_out(summary)])


@styled
def curves(*rows: Chart) -> Figure:
    """Charts with a line for each method, one above the other."""
    legend = [_handle(s.method, s.look, mark=not c.dense) for c in rows for s in c.series]
    return _figure([[chart] for chart in rows], (3.5, 3.1 if len(rows) == 1 else 2.3), legend)


def _look(look: int) -> tuple[str, str, object]:
    """Colour, marker and dashes of a method, the same in all figures."""
    colors = rcParams["axes.prop_cycle"].by_key()["color"]
    dashes = DASHES[look // len(colors) % len(DASHES)]
    return colors[look % len(colors)], MARKERS[look % len(MARKERS)], dashes


def _handle(
    method: str,
    look: int,
    notes: Sequence[str] = (),
    line: bool = True,
    mark: bool = True,
    alpha: float = 1,
) -> Line2D:
    color, marker, dashes = _look(look)
    label = "\n".join([*wrapped(method), *notes])
    return Line2D([], [], color=color, marker=marker if mark else "", ls=dashes if line else "",
                  label=label, alpha=alpha)  # fmt: skip


def _left_out(summary: Summary) -> list[Line2D]:
    """The last line of a legend that does not hold every method; none where it does."""
    left = summary.left_out
    return [Line2D([], [], ls="", label=f"not drawn: {left} more")] if left else []


def _figure(
    rows: Sequence[Sequence[Chart]], panel: tuple[float, float], legend: Sequence[Artist]
) -> Figure:
    """Charts of a ``panel``'s size in inches, and a legend that stays within the figure."""
    lines = [line for handle in legend for line in str(handle.get_label()).split("\n")]
    width = panel[0] * len(rows[0]) + max(1.4, 0.7 + 0.065 * max(map(len, lines), default=0))
    height = panel[1] * len(rows) + 0.35 * (len(rows[0]) > 1)
    height = max(height, 0.8 + 0.12 * len(lines) + 0.055 * len(legend))
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(len(rows), len(rows[0]), sharey="row", squeeze=False)
    for row, described in zip(panels, rows, strict=True):
        for axes, chart in zip(row, described, strict=True):
            _draw(axes, chart)
        row[0].set_ylabel(described[0].y.title)
        middle = 0.5 if len(row) % 2 else 0  # of the whole row
        row[len(row) // 2].set_xlabel(described[0].x.title, x=middle)
    figure.legend(handles=legend, loc="outside right upper")
    return figure


def _draw(axes: Axes, chart: Chart) -> None:
    axes.set_title(chart.title, size=8)
    scales = [("linear", "log")[axis.log] for axis in (chart.x, chart.y)]
    axes.set(xscale=scales[0], yscale=scales[1])
    axes.set(xlim=(chart.x.low, chart.x.high), ylim=(chart.y.low, chart.y.high))
    for axis, described in ((axes.xaxis, chart.x), (axes.yaxis, chart.y)):
        axis.set_ticks([t for t, _ in described.ticks], [label for _, label in described.ticks])
        axis.set_minor_locator(NullLocator())
    if len(chart.x.ticks) > 10:  # or their numbers run into each other
        axes.tick_params(axis="x", labelsize=6)
    if chart.floor is not None:
        axes.axhline(chart.floor, **FLOOR_LINE)
    for joined in chart.joins:
        axes.plot(*zip(*joined, strict=True), color="0.8", lw=0.8)
    for series in chart.series:
        _draw_series(axes, chart, series)


def _draw_series(axes: Axes, chart: Chart, series: Series) -> None:
    """Few artists, however many seeds: a hundred thousand of them take minutes to draw."""
    color, marker, dashes = _look(series.look)
    if series.band:
        x, mean, half = np.array([(m.x, m.y, m.half) for m in series.band]).T
        low = np.maximum(mean - half, chart.y.low)
        axes.fill_between(x, low, mean + half, color=color, alpha=0.15, lw=0)
    if series.line and series.marks:
        axes.plot(*_xy(series.marks), color=color, ls=dashes, label=series.method, zorder=3)
    for face in () if chart.dense else (color, "white"):
        if marks := [mark for mark in series.marks if mark.hollow == (face == "white")]:
            edge: dict[str, Any] = {} if series.line else {"mec": "white", "mew": 0.4}
            if series.dots and not series.line:  # the mean of a scatter is larger than its dots
                edge["ms"] = 7
            axes.plot(*_xy(marks), marker, color=color, mfc=face, zorder=4, **edge)
    if series.dots:
        size = 5 if series.line else 3.5
        (dots,) = axes.plot(*_xy(series.dots), ".", ms=size, color=color, mec="white",
                            mew=size / 10, zorder=5)  # fmt: skip
        dots.set_rasterized(len(series.dots) > MOST_DOTS)


def _xy(marks: Sequence[Mark]) -> tuple[list[float], list[float]]:
    return [mark.x for mark in marks], [mark.y for mark in marks]
