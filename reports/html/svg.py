"""Where the parts of a chart lie on the page; ``chart.html.j2`` draws them as SVG."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil, inf, log

from fewstep.reports.figures.chart_types import Axis, Chart, Point, Series


@dataclass(frozen=True)
class Placed:
    """A chart in a picture of a ``size``; a small one leaves out the title of its y axis."""

    chart: Chart
    size: tuple[int, int]

    @property
    def small(self) -> bool:
        return self.size[0] < 400

    @property
    def margins(self) -> tuple[int, int, int, int]:
        """Top, right, bottom, left."""
        widest = max((label_width(label) for _, label in self.chart.y.ticks), default=0)
        return (24, 8, 26, max(34, 12 + ceil(widest))) if self.small else (12, 14, 46, 52)

    def path(self, points: Iterable[Point]) -> str:
        """The line through ``points``: ``M10.0 20.5L...``."""
        (width, height), (top, right, bottom, left) = self.size, self.margins
        across, up = width - left - right, height - top - bottom
        return "M" + "L".join(
            f"{left + at(self.chart.x, x) * across:.1f} {top + (1 - at(self.chart.y, y)) * up:.1f}"
            for x, y in points
        )

    def place(self, x: float, y: float) -> str:
        """``10.0 20.5``."""
        return self.path([(x, y)])[1:]

    def line(self, series: Series) -> str:
        """The line through the marks."""
        return self.path((mark.x, mark.y) for mark in series.marks)

    def band(self, series: Series) -> str:
        """The outline of the intervals."""
        upper = [(m.x, m.y + m.half) for m in series.band]
        return self.path([*upper, *((m.x, m.y - m.half) for m in reversed(series.band))]) + "Z"

    def x_labels(self) -> Iterator[tuple[float, str]]:
        """The labels of the x axis that have room, and the middle of each."""
        (width, _), (_, right, _, left) = self.size, self.margins
        end = -inf  # of the label before
        for value, label in self.chart.x.ticks:
            half = label_width(label) / 2
            middle = left + at(self.chart.x, value) * (width - left - right)
            middle = min(middle, width - 1 - half)  # the last stays within the picture
            if middle - half > end:
                end = middle + half + 4
                yield middle, label


def at(axis: Axis, value: float) -> float:
    """Where ``value`` lies, as a share of the axis; kept within it."""
    low, high, v = axis.low, axis.high, min(max(value, axis.low), axis.high)
    return log(v / low) / log(high / low) if axis.log else (v - low) / (high - low)


def label_width(label: str) -> float:
    """Of a tick's label, at most, in the units of a picture."""
    return 6.8 * len(label)
