"""The distance of each method at each scale of guidance."""

import math
from collections.abc import Mapping

from fewstep.analysis.statistics import Curves, Estimate
from fewstep.analysis.summary_types import Summary
from fewstep.reports.content import formatting
from fewstep.reports.content.formatting import exact, number
from fewstep.reports.tables import plain

NOTE = (
    "Mean ± half-width of the 95% Student-t interval over seeds, their number in parentheses. No "
    "scale is selected here, and nothing is tested."
)


def table(summary: Summary, curves: Mapping[int, Curves]) -> plain.Table:
    """A row per method and scale; ``curves``: by number of steps (``analysis.guidance``)."""
    steps = [s for s in summary.steps if s in curves]
    rows, values = [], []
    for method in summary.methods:
        for scale in sorted({x for s in steps for x in curves[s].get(method, {})}):
            points = [curves[s].get(method, {}).get(scale) for s in steps]
            rows.append((method, f"{scale:g}", *map(_shown, points)))
            values.append([scale, *(math.nan if p is None else p.mean for p in points)])
    title = f"{summary.conditions.metric_name} by guidance scale"
    header = ("Method", "Guidance", *map(formatting.in_steps, steps))
    return plain.Table(title, header, rows, NOTE, values)


def _shown(point: Estimate | None) -> str:
    if point is None:
        return "–"
    spread = f" ± {number(point.half_width)}" if point.n > 1 else ""
    return f"{number(point.mean)}{spread} ({point.n})"


def markdown(summary: Summary, curves: Mapping[int, Curves]) -> str:
    """With its note."""
    made = table(summary, curves)
    return f"{made.markdown()}\n\n{formatting.markdown(made.note)}\n"


def latex(summary: Summary, curves: Mapping[int, Curves]) -> str:
    """A ``table`` float to be \\input; its document needs booktabs and graphicx."""
    return plain.latex(table(summary, curves))


def csv(curves: Mapping[int, Curves]) -> str:
    """Tidy, at full precision: a line per method x steps x scale."""
    lines = [
        [method, *map(exact, (steps, scale, p.mean, p.half_width, p.n))]
        for steps, of in curves.items()
        for method, curve in of.items()
        for scale, p in curve.items()
    ]
    return formatting.csv_table(("method", "steps", "guidance", "mean", "half_width", "n"), lines)
