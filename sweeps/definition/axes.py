"""The axes of a sweep, in the forms of docs/sweeps.md: lists, ranges, random numbers, ..."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from fewstep.errors import UserError, check_choice
from fewstep.sweeps.definition.conditions import ALWAYS, AxisValues, Condition, read_condition, same

DIGITS = 4  # of generated numbers: short enough to read and to type on a command line
MOST_VALUES = 10_000


@dataclass(frozen=True)
class Choice:
    """A value of an axis; ``named``: its label is in the file, and names the method."""

    label: str
    settings: tuple[tuple[str, Any], ...]
    named: bool = False


@dataclass(frozen=True)
class Draw:
    """A random number from ``low`` to ``high``, uniform or (``log``) uniform in its logarithm.

    A whole number, and both ends possible, if both ends are whole numbers.
    """

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> float:
        """The number below which ``share``, in [0, 1), of all draws lie."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        value = low + share * (high - low)
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        scale = min(value, high - low) if self.log else high - low
        rounded = round(value) if self.whole else _short(value, scale)
        return min(max(rounded, self.low), self.high)


@dataclass(frozen=True)
class Axis:
    """What varies: values to choose from, or a number to draw. ``when``: where it applies."""

    name: str
    choices: tuple[Choice, ...] = ()
    draw: Draw | None = None
    when: Condition = ALWAYS

    @property
    def labels(self) -> list[str]:
        return [choice.label for choice in self.choices]

    def at(self, share: float) -> Choice:
        """The value below which ``share``, in [0, 1), of all random values lie."""
        if self.draw is None:
            return self.choices[int(share * len(self.choices))]
        value = self.draw.at(share)
        return Choice(str(value), ((self.name, value),))


Combination = tuple[Choice | None, ...]
"""A value for each axis, in the order of the axes; None where an axis does not apply."""


def axis_values(axes: Iterable[Axis], combination: Combination) -> dict[str, list[Any]]:
    """The values of a combination, complete or partial, that conditions can name."""
    values: dict[str, list[Any]] = {}
    for axis, choice in zip(axes, combination, strict=False):
        if choice is not None:
            for name, value in ((axis.name, choice.label), *choice.settings):
                values.setdefault(name, []).append(value)
    return values


def known_values(axes: Iterable[Axis]) -> tuple[AxisValues, set[str]]:
    """All that conditions can name: names with their values, and the names of random numbers."""
    known: dict[str, list[Any]] = {}
    axes = list(axes)
    choices = [(axis, choice) for axis in axes for choice in axis.choices]
    for axis, choice in choices:
        for name, value in ((axis.name, choice.label), *choice.settings):
            merged = known.setdefault(name, [])
            if not any(same(value, other) for other in merged):  # as a label and its value
                merged.append(value)
    return known, {axis.name for axis in axes if axis.draw is not None}


def read_axes(axes: Mapping[Any, Any]) -> dict[str, Axis]:
    """The field ``axes`` of a sweep file; a UserError for one not written as in ``FORMS``."""
    read: dict[str, Axis] = {}
    for name, spec in axes.items():
        read[str(name)] = _axis(str(name), spec, list(read.values()))
    return read


def _axis(name: str, spec: Any, before: Sequence[Axis]) -> Axis:
    where = f"axis {name}"
    if not isinstance(spec, dict):
        return Axis(name, _choices(where, name, spec))
    for key in spec:
        check_choice(f"field of {where}", key, (*FORMS, "when"))
    given = [form for form in FORMS if form in spec]
    if len(given) != 1:
        got = f"{' and '.join(given)} at once" if given else "none of them"
        raise UserError(f"{where} must be a list or one of {', '.join(FORMS)}, got {got}")
    (form,) = given
    when = ALWAYS
    if "when" in spec:  # only axes before it, so that there is no cycle
        known, drawn = known_values(before)
        when = read_condition(f"{where}, when (axes before it)", spec["when"], known, (), drawn)
    values = FORMS[form](f"{where}: {form}", spec[form])
    if isinstance(values, Draw):
        return Axis(name, draw=values, when=when)
    return Axis(name, _choices(where, name, values), when=when)


def _choices(where: str, axis: str, values: Any) -> tuple[Choice, ...]:
    if not isinstance(values, list) or not values:
        raise UserError(
            f"{where} must be a list of values, got {values!r}, "
            f"or a mapping with one of {', '.join(FORMS)}"
        )
    choices = []
    for value in values:
        if not isinstance(value, dict):
            choices.append(Choice(str(value), ((axis, value),)))
            continue
        settings = {str(k): v for k, v in value.items() if k != "label"}
        label = value.get("label", value.get(axis))
        if label is None:
            label = ",".join(f"{k}={v}" for k, v in settings.items())
        choices.append(Choice(str(label), tuple(settings.items()), "label" in value))
    labels = [choice.label for choice in choices]
    for label in labels:
        if labels.count(label) > 1:  # two methods of one name would be averaged
            raise UserError(
                f"two values of {where} are both called {label!r}; tell them apart with label: NAME"
            )
    return tuple(choices)


def _zip(where: str, spec: Any) -> list[dict[str, Any]]:
    """``{a: [1, 2], b: [3, 4]}`` -> ``[{a: 1, b: 3}, {a: 2, b: 4}]``."""
    if not isinstance(spec, dict) or not spec:
        raise UserError(f"{where} must be a mapping of settings to their values, got {spec!r}")
    columns = {}
    for name, values in spec.items():
        if isinstance(values, dict) and len(values) == 1 and set(values) <= {"range", "logspace"}:
            (form,) = values
            values = FORMS[form](f"{where}, {name}: {form}", values[form])
        if not isinstance(values, list) or not values:
            raise UserError(
                f"{where}: {name} must be a list of values, a range or a logspace, got {values!r}"
            )
        columns[str(name)] = values
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise UserError(f"{where} needs as many values of each setting: {counts}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _range(where: str, spec: Any) -> list[float]:
    """As Python's range, without the stop. In decimals, so that 0.1 + 0.2 is 0.3."""
    numbers = _numbers(where, spec, "[start, stop] or [start, stop, step]", (2, 3))
    start, stop, step = (Decimal(str(n)) for n in (numbers if len(numbers) == 3 else [*numbers, 1]))
    if step == 0:
        raise UserError(f"{where} {spec}: the step is 0")
    count = math.ceil((stop - start) / step)
    if not 1 <= count <= MOST_VALUES:
        many = "no value" if count < 1 else f"{count} values, more than {MOST_VALUES}"
        raise UserError(f"{where} {spec} has {many} (the stop is left out, as in Python)")
    whole = all(isinstance(n, int) for n in numbers)
    values = [start + i * step for i in range(count)]
    return [int(v) if whole else float(v) for v in values]


def _logspace(where: str, spec: Any) -> list[float]:
    """``n`` numbers from ``low`` to ``high``, each the same multiple of the one before."""
    low, high, n = _numbers(where, spec, "[low, high, how many]", (3,))
    if low <= 0 or high <= 0 or low == high:
        raise UserError(f"{where} goes between two numbers above 0, not exponents, got {spec}")
    if not isinstance(n, int) or not 2 <= n <= MOST_VALUES:
        raise UserError(f"{where}: how many must be a whole number from 2, got {n!r}")
    values = [low * (high / low) ** (i / (n - 1)) for i in range(1, n - 1)]
    if isinstance(low, int) and isinstance(high, int):
        return list(dict.fromkeys([low, *(round(value) for value in values), high]))
    span = abs(high - low)
    return [float(low), *(_short(value, min(value, span)) for value in values), float(high)]


def _draw(where: str, spec: Any, log: bool = False) -> Draw:
    low, high = _numbers(where, spec, "[low, high]", (2,))
    if not low < high:
        raise UserError(f"{where} {spec}: low must be below high")
    if log and low <= 0:
        raise UserError(f"{where} {spec}: low must be above 0")
    return Draw(low, high, log)


def _numbers(where: str, spec: Any, form: str, lengths: tuple[int, ...]) -> list[float]:
    good = isinstance(spec, list) and len(spec) in lengths
    if not good or not all(type(n) in (int, float) and math.isfinite(n) for n in spec):
        raise UserError(f"{where} takes {form}, got {spec!r}")
    return list(spec)


FORMS: dict[str, Callable[[str, Any], Any]] = {
    "values": lambda where, spec: spec,
    "range": _range,
    "logspace": _logspace,
    "zip": _zip,
    "uniform": _draw,
    "loguniform": partial(_draw, log=True),
}
"""How an axis is written: what makes a list of values, or a ``Draw``, of its specification."""


def _short(value: float, scale: float) -> float:
    """``value`` to ``DIGITS`` digits of ``scale``: an EMA of 0.99995 does not become 1."""
    return round(value, DIGITS - 1 - math.floor(math.log10(scale)))
