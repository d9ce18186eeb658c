"""Charts as SVG that a page can style: colours are the page's, so light and dark are one drawing.

Every mark carries its numbers: as a <title>, which browsers show by themselves, and as data-tip for
the page's own script. Names are escaped here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf, log

from markupsafe import Markup, escape

Placing = Callable[[float, float], tuple[float, float]]
COLOURS = 7  # of the page's; then they begin again with other dashes
_SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M-3.5-3.5h7v7h-7z", "M0-4.6L4.3 3.2h-8.6z",
    "M0-4.8L4.8 0 0 4.8-4.8 0z", "M0 4.6L4.3-3.2h-8.6z",
    "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z", "M-3-4.5L0-1.5 3-4.5 4.5-3 1.5 0 4.5 3 3 4.5 0 1.5-3 "
    "4.5-4.5 3-1.5 0-4.5-3z",
)  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high``; ``ticks`` with their labels."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    title: str = ""
    log: bool = False

    def at(self, value: float) -> float:
        """Where ``value`` lies, as a share of the axis; kept within it."""
        low, high, v = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            return log(v / low) / log(high / low)
        return (v - low) / (high - low)


@dataclass(frozen=True)
class Mark:
    """A point and what to say of it; ``low`` and ``high`` bound its band."""

    x: float
    y: float
    tip: str
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Series:
    """One method's: ``marks`` in order of x, ``dots`` of single seeds. ``look``: its number."""

    look: int
    marks: Sequence[Mark] = ()
    dots: Sequence[Mark] = ()
    attributes: str = ""  # of its group, as data-objective="0"
    line: bool = True


@dataclass(frozen=True)
class Chart:
    """``joins``: grey lines through points of several series, as of one seed."""

    label: str  # what a screen reader says
    x: Axis
    y: Axis
    series: Sequence[Series]
    floor: float | None = None
    joins: Sequence[Sequence[tuple[float, float]]] = ()
    size: tuple[int, int] = (640, 360)
    margins: tuple[int, int, int, int] = (12, 14, 46, 52)  # top, right, bottom, left
    title: str = ""
    classes: str = ""
    shown_y: bool = True

    def __html__(self) -> str:
        return _draw(self)


def label_width(label: str) -> float:
    """Of a tick's label, at most, in the units of a chart."""
    return 6.8 * len(label)


def swatch(look: int) -> Markup:
    """A method's marker on a stroke of its line, for a legend."""
    dash = f" d{look // COLOURS % 3}"
    return Markup(
        f'<svg class="swatch c{look % COLOURS}{dash}" viewBox="0 0 26 12" aria-hidden="true">'
        f'<path class="line" d="M0 6H26"/><path class="mark" transform="translate(13 6)" '
        f'd="{_SHAPES[look % len(_SHAPES)]}"/></svg>'
    )


def _draw(chart: Chart) -> str:
    width, height = chart.size
    top, right, bottom, left = chart.margins
    inner = (width - left - right, height - top - bottom)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + chart.x.at(x) * inner[0], top + (1 - chart.y.at(y)) * inner[1]

    parts = [
        f'<svg class="chart {chart.classes}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(chart.label)}" xmlns="http://www.w3.org/2000/svg">',
        *_axes(chart, place),
    ]
    if chart.floor is not None:
        y = place(chart.x.low, chart.floor)[1]
        parts.append(f'<path class="floor" d="M{left} {y:.1f}H{width - right}"/>')
    for joined in chart.joins:
        parts.append(f'<path class="join" d="{_path(place(*point) for point in joined)}"/>')
    for series in chart.series:
        parts += _series(series, place)
    return "".join([*parts, "</svg>"])


def _axes(chart: Chart, place: Placing) -> Iterable[str]:
    width, height = chart.size
    top, right, bottom, left = chart.margins
    for value, label in chart.y.ticks:
        y = place(chart.x.low, value)[1]
        yield f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>'
        if chart.shown_y:
            yield f'<text class="tick y" x="{left - 8}" y="{y + 3.5:.1f}">{escape(label)}</text>'
    end = -inf  # of the label before
    for value, label in chart.x.ticks:
        x = place(value, chart.y.low)[0]
        yield f'<path class="grid" d="M{x:.1f} {top}V{height - bottom}"/>'
        half = label_width(label) / 2
        middle = min(x, width - 1 - half)  # the last stays within the picture
        if middle - half > end:
            end = middle + half + 4
            y = height - bottom + 17
            yield f'<text class="tick x" x="{middle:.1f}" y="{y}">{escape(label)}</text>'
    yield f'<path class="axis" d="M{left} {top}V{height - bottom}H{width - right}"/>'
    middle = left + (width - left - right) / 2
    if chart.title:
        yield f'<text class="head" x="{middle:.0f}" y="{top - 9}">{escape(chart.title)}</text>'
    if chart.x.title:
        yield f'<text class="name" x="{middle:.0f}" y="{height - 6}">{escape(chart.x.title)}</text>'
    if chart.y.title and chart.shown_y:
        y = top + (height - top - bottom) / 2
        yield (
            f'<text class="name" transform="translate(13 {y:.0f}) rotate(-90)">'
            f"{escape(chart.y.title)}</text>"
        )


def _series(series: Series, place: Placing) -> Iterable[str]:
    dash = f" d{series.look // COLOURS % 3}"
    yield f'<g class="series c{series.look % COLOURS}{dash}" {series.attributes}>'
    upper = [place(m.x, m.high) for m in series.marks if m.high is not None]
    lower = [place(m.x, m.low) for m in series.marks if m.low is not None]
    if len(upper) > 1:
        yield f'<path class="band" d="{_path([*upper, *reversed(lower)])}Z"/>'
    if series.line and len(series.marks) > 1:
        yield f'<path class="line" d="{_path(place(m.x, m.y) for m in series.marks)}"/>'
    for dot in series.dots:
        x, y = place(dot.x, dot.y)
        yield (
            f'<g class="point" transform="translate({x:.1f} {y:.1f})" {_told(dot)}>'
            f'<circle class="dot" r="2.6"/></g>'
        )
    shape = _SHAPES[series.look % len(_SHAPES)]
    for mark in series.marks:
        x, y = place(mark.x, mark.y)
        hollow = " hollow" if mark.hollow else ""
        yield (
            f'<g class="point" transform="translate({x:.1f} {y:.1f})" {_told(mark)}>'
            f'<circle class="hit" r="8"/><path class="mark{hollow}" d="{shape}"/></g>'
        )
    yield "</g>"


def _told(mark: Mark) -> str:
    """Attributes and, as the first child, the title."""
    return f'data-tip="{escape(mark.tip)}"><title>{escape(mark.tip)}</title'


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
