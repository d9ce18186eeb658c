"""The charts of a report, as plain data: the same numbers in its files and on its page."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from fewstep.analysis.filters import RUN
from fewstep.analysis.statistics import Curves
from fewstep.analysis.summary_types import Cell, Summary
from fewstep.reports.content.formatting import fraction, in_steps, number, plain
from fewstep.reports.figures.axis_ticks import linear_ticks, log_ticks, short
from fewstep.reports.figures.chart_types import Axis, Chart, Mark, Point, Series

PANELS = 6  # numbers of steps that are shown, at most
EDGE = 12  # of log-SNR, where the open bins begin
SAME = 0.01  # budgets that differ by less are equal: nothing to plot against
MEASURES = {
    "images_seen": "Training images",
    "device_hours": "Training device-hours",
    "train_flops": "Training FLOPs",
}


def seed_values(cell: Cell) -> str:
    """A line for each seed: ``seed 0: 12.3``."""
    return "\n".join(f"seed {seed}: {number(value)}" for seed, value in cell.values.items())


def fd_vs_nfe(summary: Summary) -> Chart:
    """Means with their intervals, single seeds, and the floor; log-log.

    A cell stands at its steps where no function evaluations were counted.
    """
    nfe = {key: key[1] if cell.nfe is None else cell.nfe for key, cell in summary.cells.items()}
    series = []
    for look, method in enumerate(summary.methods):
        marks: list[Mark] = []
        dots: list[Mark] = []
        for steps in summary.steps:
            cell, name = summary.cells[method, steps], f"{method}, {in_steps(steps)}"
            if cell.n:
                x, tip = nfe[method, steps], f"{name}\n{plain(cell)}\n{seed_values(cell)}"
                marks.append(Mark(x, cell.mean, tip, cell.half_width, hollow=not cell.complete))
                dots += _seeds(cell, name, x)
        series.append(Series(method, look, marks, dots))
    ticks = sorted(set(nfe.values())) or [1]
    return Chart(
        f"{summary.conditions.metric} by number of function evaluations, for each method",
        x=Axis(ticks[0] / 1.2, ticks[-1] * 1.2, [(n, str(n)) for n in ticks],
               "Function evaluations per sample (NFE)", log=True),
        y=_distance(summary),
        series=series,
        floor=_floor(summary),
    )  # fmt: skip


def _seeds(cell: Cell, name: str, x: float) -> list[Mark]:
    return [Mark(x, v, f"{name}, seed {seed}: {number(v)}") for seed, v in cell.values.items()]


def seeds(summary: Summary) -> list[Chart]:
    """A panel per number of steps: methods side by side, a line through what one seed gave."""
    shown = [
        (i, m) for i, m in enumerate(summary.methods)
        if any(summary.cells[m, s].n for s in summary.steps)
    ]  # fmt: skip
    panels = []
    for steps in shown_steps(summary) if shown else ():
        series = []
        joins: dict[int, list[Point]] = {seed: [] for seed in summary.conditions.seeds}
        for x, (look, method) in enumerate(shown):
            cell = summary.cells[method, steps]
            marks = _seeds(cell, f"{method}, {in_steps(steps)}", x)
            series.append(Series(method, look, marks, line=False))
            for seed, value in cell.values.items():
                joins[seed].append((x, value))
        lines = [join for join in joins.values() if len(join) > 1]
        panels.append(_panel(summary, steps, Axis(-0.6, len(shown) - 0.4, []), series, lines))
    return panels


def compute(summary: Summary, cells: pd.DataFrame) -> list[list[Chart]]:
    """For each measure of compute a panel per number of steps: means, and single seeds."""
    return [
        [_compute_panel(summary, steps, axis, spent) for steps in shown_steps(summary)]
        for axis, spent in compute_measures(summary, cells)
    ]


def _compute_panel(
    summary: Summary, steps: int, axis: Axis, spent: Mapping[tuple[str, int], float]
) -> Chart:
    series = []
    for look, method in enumerate(summary.methods):
        cell, name = summary.cells[method, steps], f"{method}, {in_steps(steps)}"
        known = {s: v for s, v in cell.values.items() if (method, s) in spent}
        if dots := [_spent(f"{name}, seed {s}", spent[method, s], v) for s, v in known.items()]:
            x, y = (sum(at) / len(dots) for at in zip(*((d.x, d.y) for d in dots), strict=True))
            series.append(Series(method, look, [_spent(name, x, y)], dots, line=False))
    return _panel(summary, steps, axis, series)


def _spent(name: str, x: float, y: float) -> Mark:
    return Mark(x, y, f"{name}\n{number(y)} for {short(x)}")


def compute_measures(
    summary: Summary, cells: pd.DataFrame
) -> list[tuple[Axis, dict[tuple[str, int], float]]]:
    """What training took, by (method, seed), the teacher's share included, each with an axis.

    Those measures that the summary's runs among ``cells`` have recorded, and in which they differ.
    Where all have spent the same by all of them, the first that is known.
    """
    measures = []
    runs = cells[cells["method"].isin(summary.methods)].drop_duplicates(RUN)
    for column, title in MEASURES.items():
        total = runs[column].where(runs["teacher"].isna(), runs[column] + runs[f"teacher_{column}"])
        known = total.notna() & (total > 0)
        places = zip(runs["method"][known], runs["seed"][known], strict=True)
        if spent := dict(zip(places, total[known].astype(float), strict=True)):
            taught = ", the teacher's included" if summary.two_phase else ""
            measures.append((_spent_axis(f"{title}{taught}", spent.values()), spent))
    differ = [m for m in measures if max(m[1].values()) > (1 + SAME) * min(m[1].values())]
    return differ or measures[:1]


def _spent_axis(title: str, spent: Collection[float]) -> Axis:
    """Log where it spans more than a factor of 3, and has no 0 (of guidance)."""
    low, high = min(spent), max(spent)
    log = high > 3 * low > 0
    margin = 0.12 * (high - low) or 0.1 * high
    low, high = (low / 1.3, high * 1.3) if log else (low - margin, high + margin)
    ticks = (log_ticks if log else linear_ticks)(low, high, 4)
    return Axis(low, high, [(t, short(t)) for t in ticks], title, log)


def over_training(summary: Summary, curves: Mapping[int, Curves]) -> list[Chart]:
    """A panel per number of sampling steps: a line per method over the images it has seen."""
    taught = ", the teacher's included" if summary.two_phase else ""
    return _panels_of(summary, curves, f"Training images{taught}", "over training", " images")


def over_guidance(summary: Summary, curves: Mapping[int, Curves]) -> list[Chart]:
    """A panel per number of sampling steps: a line per method over the scale of guidance."""
    return _panels_of(summary, curves, "Guidance scale", "by guidance scale", " guidance")


def _panels_of(
    summary: Summary, curves: Mapping[int, Curves], x_title: str, over: str, unit: str
) -> list[Chart]:
    """``curves``: by number of steps; methods that the summary lacks are left out."""
    drawn = {
        steps: {m: curve for m, curve in curves[steps].items() if m in summary.methods}
        for steps in shown_steps(summary) if steps in curves
    }  # fmt: skip
    points = [(x, p.mean) for of in drawn.values() for c in of.values() for x, p in c.items()]
    if not points:
        return []
    x = _spent_axis(x_title, [x for x, _ in points])
    values = [mean for _, mean in points if mean > 0] + [f for f in [_floor(summary)] if f]
    low, high = min(values, default=0.1) / 1.4, max(values, default=10.0) * 1.4
    ticks = [(t, f"{t:g}") for t in log_ticks(low, high)]
    metric = summary.conditions.metric or ""
    y = Axis(low, high, ticks, metric, log=True)
    charts = []
    for steps, of in drawn.items():
        series = []
        for method, curve in of.items():
            marks = [Mark(at, p.mean, f"{method},{unit} {at:,g}: {number(p.mean)}", p.half_width)
                     for at, p in curve.items()]  # fmt: skip
            series.append(Series(method, summary.methods.index(method), marks))
        label = f"{metric} at {in_steps(steps)} {over}"
        charts.append(Chart(label, x, y, series, _floor(summary), title=in_steps(steps)))
    return charts


def shown_steps(summary: Summary) -> list[int]:
    """All numbers of steps, or ``PANELS`` of them with the first and the last."""
    steps = summary.steps
    if len(steps) <= PANELS:
        return list(steps)
    chosen = np.linspace(0, len(steps) - 1, PANELS).round().astype(int)
    return [steps[i] for i in sorted(set(chosen.tolist()))]


def _panel(
    summary: Summary,
    steps: int,
    x: Axis,
    series: Sequence[Series],
    joins: Sequence[Sequence[Point]] = (),
) -> Chart:
    label, title = f"{summary.conditions.metric} at {in_steps(steps)}", in_steps(steps)
    return Chart(label, x, _distance(summary), series, _floor(summary), joins, title)


def _distance(summary: Summary) -> Axis:
    """The y axis of all figures: dots, the floor, what of the bands is not far above them."""
    cells = summary.cells.values()
    points = [v for cell in cells for v in cell.values.values() if v > 0]
    if floor := _floor(summary):
        points.append(floor)
    low, high = 0.1, 10.0
    if points:
        tops = [cell.mean + cell.half_width for cell in cells if cell.half_width > 0]
        high = 1.2 * max(max(points), min(max(tops, default=0), 2 * max(points)))
        low = min(points) / 1.4
    ticks = [(t, f"{t:g}") for t in log_ticks(low, high)]
    return Axis(low, high, ticks, summary.conditions.metric or "nothing evaluated yet", log=True)


def _floor(summary: Summary) -> float | None:
    return summary.floor if summary.floor is not None and summary.floor > 0 else None  # KID may be


def loss(curves: Curves, methods: Sequence[str] = ()) -> list[Chart]:
    """Held-out loss over log-SNR; losses that fall below zero in a panel of their own.

    The outermost points stand for everything beyond them. ``methods``: all of the sweep, so that
    each keeps its look where not all are drawn.
    """
    end = EDGE + 0.5
    ticks = [(-end, f"< −{EDGE}"), *((t, short(t)) for t in (-8, -4, 0, 4, 8)), (end, f"> {EDGE}")]
    axis = Axis(-end, end, ticks, "log-SNR (noise ← → data)")
    below = {m for m, curve in curves.items() if min(p.mean for p in curve.values()) <= 0}
    groups = ({m: c for m, c in curves.items() if (m in below) is low} for low in (False, True))
    return [
        _curves("Held-out loss by log-SNR, for each method", group, methods or list(curves), axis,
                "Mean held-out loss", dense=True)
        for group in groups if group
    ]  # fmt: skip


def jump_error(curves: Curves, methods: Sequence[str]) -> Chart:
    """RMS error of the jump map by the jump's length, log-log; ``methods`` as for ``loss``."""
    lengths = sorted({x for curve in curves.values() for x in curve})
    ticks = [(length, fraction(length)) for length in lengths]
    axis = Axis(lengths[0] / 1.1, lengths[-1] * 1.1, ticks, "Jump length d / t_max", log=True)
    return _curves("Error of jumps by length", curves, methods, axis, "RMS error per coordinate")


def tangent_norms(curves: Curves, methods: Sequence[str]) -> Chart:
    """Norm of the tangent over training; ``methods`` as for ``loss``."""
    end = max(x for curve in curves.values() for x in curve)
    axis = Axis(0, end, [(t, short(t)) for t in linear_ticks(0, end)], "Training step")
    title = "Tangent norm (mean of a batch)"
    return _curves("Tangent norm over training", curves, methods, axis, title, dense=True)


def _curves(
    label: str, curves: Curves, methods: Sequence[str], x: Axis, y_title: str, dense: bool = False
) -> Chart:
    """A line per method with its band; the y axis is log where the means span a decade."""
    series = []
    for method, curve in curves.items():
        marks = [Mark(at, p.mean, f"{method}, {at:g}: {number(p.mean)}", p.half_width)
                 for at, p in curve.items()]  # fmt: skip
        series.append(Series(method, methods.index(method), marks))
    points = np.array([(mark.y, mark.half) for one in series for mark in one.marks])
    mean, half = np.nan_to_num(points).T
    log = bool(mean.min() > 0 and mean.max() > 10 * mean.min())
    low = float(np.where(mean > 0, np.maximum(mean - half, mean / 10), mean - half).min())
    high = float((mean + half).max())
    margin = 0.05 * (high - low) or 0.1
    low, high = (low / 1.2, high * 1.2) if log else (low - margin, high + margin)
    ticks = [(t, f"{t:g}") for t in (log_ticks if log else linear_ticks)(low, high)]
    return Chart(label, x, Axis(low, high, ticks, y_title, log), series, dense=dense)
