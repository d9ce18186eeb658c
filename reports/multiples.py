"""Small multiples, a panel per number of steps: distance versus training compute, and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fewstep.analysis.records import Summary
from fewstep.analysis.selection import RUN
from fewstep.reports.drawn import legend_line
from fewstep.reports.figures import MARKERS, limits, style
from fewstep.reports.text import in_steps, wrapped
from fewstep.reports.ticks import linear_ticks, log_ticks, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = 6  # numbers of steps that are shown, at most
SAME = 0.01  # budgets that differ by less are equal: nothing to plot against
MEASURES = {
    "images_seen": "Training images",
    "device_hours": "Training device-hours",
    "train_flops": "Training FLOPs",
}


@dataclass(frozen=True)
class Measure:
    """What training took, by (method, seed), the teacher's share included."""

    title: str
    values: Mapping[tuple[str, int], float]


def measures(summary: Summary, cells: pd.DataFrame) -> list[Measure]:
    """Those that the summary's runs among ``cells`` have recorded, and in which they differ.

    Where all have spent the same by all of them, the first that is known.
    """
    found = []
    runs = cells[cells["method"].isin(summary.methods)].drop_duplicates(RUN)
    for column, title in MEASURES.items():
        total = runs[column].where(runs["teacher"].isna(), runs[column] + runs[f"teacher_{column}"])
        known = total.notna() & (total > 0)
        places = zip(runs["method"][known], runs["seed"][known], strict=True)
        spent = dict(zip(places, total[known].astype(float), strict=True))
        if spent:
            taught = ", the teacher's included" if summary.two_phase else ""
            found.append(Measure(f"{title}{taught}", spent))
    differ = [m for m in found if max(m.values.values()) > (1 + SAME) * min(m.values.values())]
    return differ or found[:1]


def shown_steps(summary: Summary) -> list[int]:
    """All numbers of steps, or ``PANELS`` of them with the first and the last."""
    steps = summary.steps
    if len(steps) <= PANELS:
        return list(steps)
    chosen = np.linspace(0, len(steps) - 1, PANELS).round().astype(int)
    return [steps[i] for i in sorted(set(chosen.tolist()))]


def fd_vs_compute(summary: Summary, cells: pd.DataFrame) -> Figure | None:
    """Rows are measures of compute, columns numbers of steps; None where none is recorded.

    A dot for each seed, a large marker at the means over seeds.
    """
    taken, steps = measures(summary, cells), shown_steps(summary)
    if not taken or not steps:
        return None
    with style():
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

        figure, panels = _panels(len(taken), steps, 1.75, summary)
        for measure, row in zip(taken, panels, strict=True):
            (low, high), log = span(measure)
            ticks = (log_ticks if log else linear_ticks)(low, high, 4)
            for steps_here, axes in zip(steps, row, strict=True):
                axes.set_xscale("log" if log else "linear")
                axes.set_xlim(low, high)
                axes.xaxis.set_major_locator(FixedLocator(ticks))
                axes.xaxis.set_minor_locator(NullLocator())
                axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
                for method, look in looks(summary):
                    _points(axes, summary, measure, method, steps_here, look)
            row[0].figure.supxlabel(measure.title, size=9)
        _legend(figure, summary)
    return figure


def span(measure: Measure) -> tuple[tuple[float, float], bool]:
    """The range to show, and whether on a log axis: where it spans more than a factor of 3."""
    low, high = min(measure.values.values()), max(measure.values.values())
    if high > 3 * low:
        return (low / 1.3, high * 1.3), True
    margin = 0.12 * (high - low) or 0.1 * high
    return (low - margin, high + margin), False


def seed_plot(summary: Summary) -> Figure | None:
    """A dot for each method and seed; a line joins what one seed gave. None without values."""
    steps = shown_steps(summary)
    if not steps or not any(cell.n for cell in summary.cells.values()):
        return None
    with style():
        methods = [m for m in summary.methods if any(summary.cells[m, s].n for s in summary.steps)]
        shown = [(method, look) for method, look in looks(summary) if method in methods]
        figure, (row,) = _panels(1, steps, 2.2, summary)
        for steps_here, axes in zip(steps, row, strict=True):
            for seed in summary.conditions.seeds:
                at = [(i, summary.cells[m, steps_here].values.get(seed))
                      for i, m in enumerate(methods)]  # fmt: skip
                joined = [(i, v) for i, v in at if v is not None]
                axes.plot([i for i, _ in joined], [v for _, v in joined], color="0.8", lw=0.8)
            for i, (method, look) in enumerate(shown):
                values = list(summary.cells[method, steps_here].values.values())
                axes.plot([i] * len(values), values, linestyle="", mec="white", mew=0.4, ms=4.5,
                          **look)  # fmt: skip
            axes.set_xticks([])
            axes.set_xlim(-0.6, len(methods) - 0.4)
        _legend(figure, summary)
    return figure


def looks(summary: Summary) -> list[tuple[str, dict[str, Any]]]:
    """Each method's colour and marker, as in all figures of the report."""
    from matplotlib import rcParams

    colors = rcParams["axes.prop_cycle"].by_key()["color"]
    return [
        (method, {"color": colors[i % len(colors)], "marker": MARKERS[i % len(MARKERS)]})
        for i, method in enumerate(summary.methods)
    ]


def _points(
    axes: Any, summary: Summary, measure: Measure, method: str, steps: int, look: Mapping[str, Any]
) -> None:
    cell = summary.cells[method, steps]
    seeds = [seed for seed in cell.values if (method, seed) in measure.values]
    if not seeds:
        return
    x, y = [measure.values[method, s] for s in seeds], [cell.values[s] for s in seeds]
    axes.plot(x, y, ".", ms=3.5, color=look["color"], mec="white", mew=0.3, zorder=4)
    axes.plot([np.mean(x)], [np.mean(y)], linestyle="", ms=5.5, alpha=0.75, **look)


def _panels(
    rows: int, steps: Sequence[int], height: float, summary: Summary
) -> tuple[Figure, list[list[Any]]]:
    """Log panels that share the distance's axis, each column under its number of steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    legend = [line for method in summary.methods for line in wrapped(method)]
    width = 1.25 * len(steps) + max(1.4, 0.7 + 0.065 * max(map(len, legend)))
    tall = max(height * rows + 0.35, 0.4 + 0.17 * len(legend))
    figure = Figure(figsize=(width, tall), layout="constrained")
    low, high = limits(summary)
    panels = []
    for part in figure.subfigures(rows, 1, squeeze=False)[:, 0]:
        row = part.subplots(1, len(steps), sharey=True, squeeze=False)[0]
        panels.append(list(row))
        for axes, k in zip(row, steps, strict=True):
            axes.set_yscale("log")
            axes.set_ylim(low, high)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.set_title(in_steps(k), size=8)
            if summary.floor is not None and summary.floor > 0:
                axes.axhline(summary.floor, color="0.45", linestyle=(0, (5, 3)), lw=0.8)
        row[0].set_ylabel(summary.conditions.metric or "")
    return figure, panels


def _legend(figure: Figure, summary: Summary) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", label="\n".join(wrapped(method)), **look)
        for method, look in looks(summary)
        if any(not math.isnan(summary.cells[method, s].mean) for s in summary.steps)
    ]
    handles += [Line2D([], [], linestyle="", label=more) for more in legend_line(summary)]
    figure.legend(handles=handles, loc="outside right upper")
