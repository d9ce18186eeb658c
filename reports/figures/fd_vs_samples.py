"""The figure of FD against 1/N."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fewstep.reports.content.formatting import number
from fewstep.reports.figures.drawing import styled


@styled
def bias_figure(label: str, curves: Sequence[Mapping[str, Any]]) -> Figure:
    """Dots for the subsets, a line to 1/N = 0 and its end there, for each of ``curves``.

    A curve has ``what``, ``sizes``, ``values``, ``limit`` and ``slope``.
    """
    figure = Figure(figsize=(5.0, 3.1), layout="constrained")
    axes = figure.add_subplot()
    for curve, marker in zip(curves, "os^D", strict=False):
        inverse = 1 / np.asarray(curve["sizes"], dtype=float)
        limit, slope = curve["limit"], curve["slope"]
        name = f"{curve['what']} (N = ∞: {number(limit)})"
        (dots,) = axes.plot(inverse, curve["values"], marker, ms=4, label=name)
        ends = np.array([0, inverse.max()])
        axes.plot(ends, limit + slope * ends, "-", lw=1, color=dots.get_color())
        axes.plot([0], [limit], marker, ms=7, mfc="none", color=dots.get_color(), clip_on=False)
    sizes = np.asarray(curves[0]["sizes"])
    shown = sorted({int(sizes[0]), int(sizes[len(sizes) // 4]), int(sizes[-1])})
    axes.set_xticks([0, *(1 / n for n in shown)], ["∞", *(f"{n:,}" for n in shown)])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="Samples N (axis linear in 1/N)", ylabel=label)
    figure.legend(loc="outside upper center", ncols=2)
    return figure
