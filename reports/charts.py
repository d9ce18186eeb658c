"""The page's figures as SVG charts: the same numbers as the figures in files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from fewstep.analysis.records import Cell, Summary
from fewstep.reports import text
from fewstep.reports.figures import limits, nfe_of
from fewstep.reports.multiples import measures, shown_steps, span
from fewstep.reports.svg import Axis, Chart, Mark, Series, label_width
from fewstep.reports.ticks import linear_ticks, log_ticks, short

if TYPE_CHECKING:
    from fewstep.analysis.diagnostics import Curves

Attributes = Mapping[str, str]
"""Of the group of each method: what the page's filters look for."""


def fd_vs_nfe(summary: Summary, attributes: Attributes) -> Chart:
    """Means with their intervals, single seeds, and the floor; log-log."""
    low, high = limits(summary)
    nfes = sorted({nfe_of(s, c) for (_, s), c in summary.cells.items()}) or [1]
    return Chart(
        label=f"{summary.conditions.metric} by number of function evaluations, for each method",
        x=Axis(nfes[0] / 1.25, nfes[-1] * 1.25, [(n, str(n)) for n in nfes],
               "Function evaluations per sample (NFE)", log=True),
        y=_distance(summary, low, high),
        series=[_curve(summary, i, low, high, attributes) for i in range(len(summary.methods))],
        floor=_floor(summary),
        size=(760, 420),
    )  # fmt: skip


def _curve(summary: Summary, look: int, low: float, high: float, attributes: Attributes) -> Series:
    method = summary.methods[look]
    marks, dots = [], []
    for steps in summary.steps:
        cell = summary.cells[method, steps]
        if not cell.n:
            continue
        x, half = nfe_of(steps, cell), cell.half_width
        bounds: tuple[float | None, float | None] = (None, None)
        if math.isfinite(half):
            bounds = (max(cell.mean - half, low), min(cell.mean + half, high))
        tip = f"{method}, {text.in_steps(steps)}\n{text.plain(cell)}"
        tip += "".join(f"\nseed {s}: {text.number(v)}" for s, v in cell.values.items())
        marks.append(Mark(x, cell.mean, tip, *bounds, hollow=not cell.complete))
        dots += [Mark(x, v, f"{method}, {text.in_steps(steps)}, seed {s}: {text.number(v)}")
                 for s, v in cell.values.items()]  # fmt: skip
    return Series(look, marks, dots, attributes[method])


def seeds(summary: Summary, attributes: Attributes) -> list[Chart]:
    """A panel per number of steps: methods side by side, a line through what one seed gave."""
    low, high = limits(summary)
    methods = [m for m in summary.methods if any(summary.cells[m, s].n for s in summary.steps)]
    panels = []
    for steps in shown_steps(summary):
        cells = {m: summary.cells[m, steps] for m in methods}
        joins = [
            [(float(i), c.values[seed]) for i, c in enumerate(cells.values()) if seed in c.values]
            for seed in summary.conditions.seeds
        ]
        panels.append(
            _panel(
                summary,
                steps,
                Axis(-0.6, len(methods) - 0.4, []),
                _distance(summary, low, high),
                [
                    Series(
                        summary.methods.index(m),
                        [Mark(i, v, f"{m}, {text.in_steps(steps)}, seed {s}: {text.number(v)}")
                         for s, v in cells[m].values.items()],
                        attributes=attributes[m],
                        line=False,
                    )
                    for i, m in enumerate(methods)
                ],
                [join for join in joins if len(join) > 1],
            )
        )  # fmt: skip
    return panels


def compute(
    summary: Summary, cells: pd.DataFrame, attributes: Attributes
) -> list[tuple[str, list[Chart]]]:
    """For each measure of compute its title, and a panel per number of steps."""
    low, high = limits(summary)
    found = []
    for measure in measures(summary, cells):
        (left, right), log = span(measure)
        ticks = (log_ticks if log else linear_ticks)(left, right, 4)
        axis = Axis(left, right, [(t, short(t)) for t in ticks], log=log)
        panels = []
        for steps in shown_steps(summary):
            series = []
            for i, method in enumerate(summary.methods):
                cell = summary.cells[method, steps]
                spent = {s: measure.values[method, s] for s in cell.values
                         if (method, s) in measure.values}  # fmt: skip
                if spent:
                    series.append(_spent(i, method, steps, cell, spent, attributes[method]))
            panels.append(_panel(summary, steps, axis, _distance(summary, low, high), series))
        found.append((measure.title, panels))
    return found


def _spent(
    look: int, method: str, steps: int, cell: Cell, spent: Mapping[int, float], attributes: str
) -> Series:
    def told(x: float, y: float, who: str) -> str:
        return f"{method}, {text.in_steps(steps)}{who}\n{text.number(y)} for {short(x)}"

    x = sum(spent.values()) / len(spent)
    y = sum(cell.values[s] for s in spent) / len(spent)
    dots = [Mark(v, cell.values[s], told(v, cell.values[s], f", seed {s}"))
            for s, v in spent.items()]  # fmt: skip
    return Series(look, [Mark(x, y, told(x, y, ""))], dots, attributes)


def loss(summary: Summary, curves: Curves, attributes: Attributes) -> list[Chart]:
    """Held-out loss over log-SNR; losses that fall below zero in a panel of their own."""
    shown = {m: c for m, c in curves.items() if m in summary.methods and c}
    below = {m for m, curve in shown.items() if min(p.mean for p in curve.values()) <= 0}
    charts = []
    for group in ([m for m in shown if m not in below], [m for m in shown if m in below]):
        if not group:
            continue
        means = [p.mean for m in group for p in shown[m].values()]
        low, high, log = min(means), max(means), min(means) > 0 and max(means) > 10 * min(means)
        margin = 0.05 * (high - low) or 0.1
        low, high = (low / 1.2, high * 1.2) if log else (low - margin, high + margin)
        ticks = (log_ticks if log else linear_ticks)(low, high)
        edges = [x for m in group for x in shown[m]]
        series = [
            Series(
                summary.methods.index(m),
                [Mark(x, p.mean, f"{m}, log-SNR {x:g}: {text.number(p.mean)}",
                      *_band(p.mean, p.half_width, low, high)) for x, p in shown[m].items()],
                attributes=attributes[m],
            )
            for m in group
        ]  # fmt: skip
        charts.append(
            Chart(
                label="Held-out loss by log-SNR, for each method",
                x=Axis(min(edges), max(edges),
                       [(t, short(t)) for t in linear_ticks(min(edges), max(edges), 8)],
                       "log-SNR (noise ← → data)"),
                y=Axis(low, high, [(t, f"{t:g}") for t in ticks], "Held-out loss", log),
                series=series,
                size=(760, 320),
                classes="dense",
            )
        )  # fmt: skip
    return charts


def _band(mean: float, half: float, low: float, high: float) -> tuple[float, float]:
    half = half if math.isfinite(half) else 0.0
    return max(mean - half, low), min(mean + half, high)


def _panel(
    summary: Summary, steps: int, x: Axis, y: Axis, series: list[Series],
    joins: list[list[tuple[float, float]]] | None = None,
) -> Chart:  # fmt: skip
    gutter = max(34, 12 + math.ceil(max((label_width(label) for _, label in y.ticks), default=0)))
    return Chart(
        label=f"{summary.conditions.metric} at {text.in_steps(steps)}",
        x=x, y=replace(y, title=""), series=series, floor=_floor(summary), joins=joins or (),
        size=(240, 220), margins=(24, 8, 26, gutter), title=text.in_steps(steps),
    )  # fmt: skip


def _distance(summary: Summary, low: float, high: float) -> Axis:
    ticks = [(t, f"{t:g}") for t in log_ticks(low, high)]
    return Axis(low, high, ticks, summary.conditions.metric or "", log=True)


def _floor(summary: Summary) -> float | None:
    return summary.floor if summary.floor is not None and summary.floor > 0 else None
