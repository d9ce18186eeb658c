"""Distance versus function evaluations, and how figures are drawn and saved.

Matplotlib's objects without pyplot: no global state, no display. It is imported when a figure is
drawn, so that tables come quickly.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.analysis.records import Cell, Summary
from fewstep.reports.captions import FLOOR
from fewstep.reports.drawn import legend_line
from fewstep.reports.text import no_value, number, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("fewstep.mplstyle")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "*")
MOST_DOTS = 500  # of one method as vectors in a PDF, which has to be opened and printed
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))  # told apart again once the colours are used up


@contextmanager
def style() -> Iterator[None]:
    """Our style on matplotlib's defaults, whatever the user's own matplotlibrc says."""
    import matplotlib.style

    with matplotlib.style.context(["default", str(STYLE)]):
        yield


def fd_vs_nfe(summary: Summary) -> Figure:
    """Log-log: a line and marker per method, its t-interval as a band, seeds as dots, the floor.

    A method without any value keeps its place in the legend, which says why.
    """
    with style():
        from matplotlib import rcParams
        from matplotlib.figure import Figure
        from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

        lines = [line for method in summary.methods for line in wrapped(method)]
        # the plot stays 3.5 inches wide, and the legend within the figure
        width = 3.5 + max(2.2, 0.7 + 0.065 * max(map(len, lines), default=0))
        height = max(3.1, 0.8 + 0.12 * len(lines) + 0.055 * len(summary.methods))
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot(xscale="log", yscale="log")
        low, high = limits(summary)
        colors = rcParams["axes.prop_cycle"].by_key()["color"]
        looks = zip(itertools.cycle(colors), itertools.cycle(MARKERS), strict=False)
        for i, (method, (color, marker)) in enumerate(zip(summary.methods, looks, strict=False)):
            dashes = DASHES[(i // len(colors)) % len(DASHES)]
            _line(axes, summary, method, low, color=color, marker=marker, linestyle=dashes)
        if summary.floor is not None and summary.floor > 0:
            label = f"{FLOOR} ({number(summary.floor)})"
            axes.axhline(summary.floor, color="0.45", linestyle=(0, (5, 3)), lw=1, label=label)
        ticks = sorted({nfe_of(s, c) for (_, s), c in summary.cells.items()})
        if ticks:
            axes.set_xlim(ticks[0] / 1.15, ticks[-1] * 1.15)
        axes.set_ylim(low, high)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        if len(ticks) > 10:  # or their numbers run into each other
            axes.tick_params(axis="x", labelsize=6)
        subs = (1, 2, 5) if high / low < 300 else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.set_xlabel("Function evaluations per sample (NFE)")
        axes.set_ylabel(summary.conditions.metric or "nothing evaluated yet")
        band = "95% t-interval of the mean"
        axes.fill_between([], [], [], label=band, facecolor="0.5", alpha=0.25, lw=0)
        for more in legend_line(summary):
            axes.plot([], [], linestyle="", label=more)
        figure.legend(loc="outside right upper")
    return figure


def nfe_of(steps: int, cell: Cell) -> int:
    """Where a cell stands on the axis: its steps where nothing was counted."""
    return steps if cell.nfe is None else cell.nfe


def limits(summary: Summary) -> tuple[float, float]:
    """The y-range of all figures: dots, the floor, what of the bands is not far above them."""
    cells = summary.cells.values()
    points = [v for cell in cells for v in cell.values.values() if v > 0]
    if summary.floor and summary.floor > 0:  # KID may be below
        points.append(summary.floor)
    if not points:
        return 0.1, 10.0
    tops = [cell.mean + cell.half_width for cell in cells if cell.half_width > 0]
    high = max(max(points), min(max(tops, default=0), 2 * max(points)))
    return min(points) / 1.4, high * 1.2


def _line(axes: Any, summary: Summary, method: str, bottom: float, **look: Any) -> None:
    cells = [(steps, summary.cells[method, steps]) for steps in summary.steps]
    with_value = [(nfe_of(steps, cell), cell) for steps, cell in cells if cell.n]
    if not with_value:
        why = no_value(cells[0][1]) if cells else "not run"
        label = "\n".join([*wrapped(method), why])
        axes.plot([], [], label=label, alpha=0.5, **look)
        return
    x = np.array([nfe for nfe, _ in with_value])
    mean = np.array([cell.mean for _, cell in with_value])
    half = np.array([cell.half_width for _, cell in with_value])
    color = look["color"]
    axes.fill_between(
        x, np.maximum(mean - half, bottom), mean + half, color=color, alpha=0.15, lw=0
    )
    axes.plot(x, mean, color=color, linestyle=look["linestyle"], zorder=3)
    # few artists, however many seeds: a hundred thousand of them take minutes to draw
    for face, complete in ((color, True), ("white", False)):
        some = [(nfe, cell.mean) for nfe, cell in with_value if cell.complete == complete]
        axes.plot(*_xy(some), marker=look["marker"], ls="", color=color, mfc=face, zorder=4)
    dots = [(nfe, value) for nfe, cell in with_value for value in cell.values.values()]
    (drawn,) = axes.plot(*_xy(dots), ".", ms=5, color=color, mec="white", mew=0.5, zorder=5)
    drawn.set_rasterized(len(dots) > MOST_DOTS)
    lost = max(cell.n_failed for _, cell in cells)
    note = [f"({lost} of {cells[0][1].n_expected} failed)"] if lost else []
    axes.plot([], [], label="\n".join([*wrapped(method), *note]), **look)


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def render(figure: Figure, kind: str) -> bytes:
    """The figure as ``png`` or ``pdf``: the same bytes for the same figure, today and tomorrow."""
    file = io.BytesIO()
    dateless = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
    with style():
        figure.savefig(file, format=kind, metadata=dateless[kind])
    return file.getvalue()
