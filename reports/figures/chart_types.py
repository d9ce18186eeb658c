"""A chart as plain data: ``drawing`` makes PNG and PDF of it, ``html.svg`` a part of the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high``; ``ticks`` with their labels."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    title: str = ""
    log: bool = False


@dataclass(frozen=True)
class Mark:
    """A point and its tooltip; ``half``: half-width of its interval, nan for none."""

    x: float
    y: float
    tip: str = ""
    half: float = nan
    hollow: bool = False


@dataclass(frozen=True)
class Series:
    """One method's: ``marks`` in order of x, ``dots`` of single seeds.

    ``look``: the number that its colour, marker and dashes go by.
    """

    method: str
    look: int
    marks: Sequence[Mark]
    dots: Sequence[Mark] = ()
    line: bool = True

    @property
    def band(self) -> list[Mark]:
        """The marks that have an interval; none where there are fewer than two."""
        known = [m for m in self.marks if isfinite(m.half)]
        return known if len(known) > 1 else []


@dataclass(frozen=True)
class Chart:
    """``label`` is for screen readers; ``joins``: grey lines through points of several series.

    ``dense``: the marks of lines are not drawn.
    """

    label: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    floor: float | None = None
    joins: Sequence[Sequence[Point]] = ()
    title: str = ""
    dense: bool = False
