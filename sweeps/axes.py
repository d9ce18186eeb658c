"""The axes of a sweep as its file writes them: lists, ranges, zips, random numbers, conditions.

::

    axes:
      objective: [flow_matching, shortcut]                  # a list
      training.batch_size: {range: [64, 257, 64]}           # 64, 128, 192, 256: as Python's range
      training.lr: {logspace: [1.0e-4, 1.0e-2, 5]}          # both ends are in
      size: {zip: {backbone.width: [64, 96], backbone.depth: [4, 6]}}     # varied in step
      objective.bootstrap_share: {values: [0.25, 0.5], when: {objective: shortcut}}
      training.ema: {uniform: [0.99, 0.9999]}               # drawn, in a sweep with sample:
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fewstep.errors import UserError, unknown
from fewstep.sweeps.conditions import ALWAYS, Condition, Facts, read_condition, same

LISTS = ("values", "range", "logspace", "zip")
DRAWS = ("uniform", "loguniform")
FORMS = (*LISTS, *DRAWS)
DIGITS = 4  # of numbers made here: short enough to be told, and typed again on a command line
MOST_VALUES = 10_000


@dataclass(frozen=True)
class Choice:
    """One value of an axis: how it is told, and the settings it stands for.

    ``named``: the label was given in the file, and is to be the method's name.
    """

    label: str
    settings: tuple[tuple[str, Any], ...]
    named: bool = False


@dataclass(frozen=True)
class Draw:
    """A random number from ``low`` to ``high``, uniform or (``log``) uniform in its logarithm.

    Whole, and both ends possible, where both ends are whole numbers.
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
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
            scale = min(value, high - low)
        else:
            value = low + share * (high - low)
            scale = high - low
        told = round(value) if self.whole else _short(value, scale)
        return min(max(told, self.low), self.high)


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


def facts(axes: Iterable[Axis], combination: Combination) -> dict[str, list[Any]]:
    """What conditions can ask of a combination, whole or only begun."""
    found: dict[str, list[Any]] = {}
    for axis, choice in zip(axes, combination, strict=False):
        if choice is not None:
            found.setdefault(axis.name, []).append(choice.label)
            for name, value in choice.settings:
                found.setdefault(name, []).append(value)
    return found


def known_facts(axes: Iterable[Axis]) -> tuple[Facts, set[str]]:
    """All that conditions can name: names with their values, and the names of random numbers."""
    found: dict[str, list[Any]] = {}
    drawn = set()
    for axis in axes:
        if axis.draw is not None:
            drawn.add(axis.name)
        for choice in axis.choices:
            for name, values in facts([axis], (choice,)).items():
                mine = found.setdefault(name, [])
                for value in values:  # a label and the value that it tells are one
                    if not any(same(value, other) for other in mine):
                        mine.append(value)
    return found, drawn


def read_axes(source: str, axes: Mapping[Any, Any]) -> dict[str, Axis]:
    """The axes of the sweep file ``source``.

    Raises:
        UserError: an axis that is not written as one of ``FORMS``.
    """
    found: dict[str, Axis] = {}
    for name, spec in ((str(k), v) for k, v in axes.items()):
        found[name] = _axis(f"sweep {source}: axis {name}", name, spec, list(found.values()))
    return found


def _axis(where: str, name: str, spec: Any, before: Sequence[Axis]) -> Axis:
    if not isinstance(spec, dict):
        return Axis(name, _choices(where, name, spec))
    for key in spec:
        if key not in (*FORMS, "when"):
            raise unknown(f"field of {where.removeprefix('sweep ')}", key, (*FORMS, "when"))
    given = [form for form in FORMS if form in spec]
    if len(given) != 1:
        told = f"{' and '.join(given)} at once" if given else "none of them"
        raise UserError(f"{where} must be a list or one of {', '.join(FORMS)}, got {told}")
    (form,) = given
    when = ALWAYS
    if "when" in spec:  # only what stands before it: so there can be no circle
        known, drawn = known_facts(before)
        when = read_condition(f"{where}, when (axes before it)", spec["when"], known, (), drawn)
    if form in DRAWS:
        return Axis(name, (), _draw(f"{where}: {form}", spec[form], form == "loguniform"), when)
    return Axis(name, _choices(where, name, _values(where, form, spec[form])), None, when)


def _values(where: str, form: str, spec: Any) -> Any:
    """The list that a form of list stands for."""
    if form == "range":
        return _range(f"{where}: range", spec)
    if form == "logspace":
        return _logspace(f"{where}: logspace", spec)
    return _zip(f"{where}: zip", spec) if form == "zip" else spec


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
        told = value.get("label", value.get(axis))
        if told is None:
            told = ",".join(f"{k}={v}" for k, v in settings.items())
        choices.append(Choice(str(told), tuple(settings.items()), "label" in value))
    labels = [choice.label for choice in choices]
    for label in labels:
        if labels.count(label) > 1:  # two methods under one name would be averaged as one
            raise UserError(
                f"{where.replace(': axis', ': two values of axis', 1)} are both called {label!r}; "
                f"tell them apart with label: NAME"
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
            values = _values(f"{where}, {name}", form, values[form])
        if not isinstance(values, list) or not values:
            raise UserError(
                f"{where}: {name} must be a list of values, a range or a logspace, got {values!r}"
            )
        columns[str(name)] = values
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise UserError(f"{where} needs as many values of each setting: {told}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _range(where: str, spec: Any) -> list[float]:
    """As Python's range: the stop is left out. In decimals, so that 0.1 + 0.2 is 0.3."""
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


def _draw(where: str, spec: Any, log: bool) -> Draw:
    low, high = _numbers(where, spec, "[low, high]", (2,))
    if not low < high:
        raise UserError(f"{where} {spec}: low must be below high")
    if log and low <= 0:
        raise UserError(f"{where} {spec}: low must be above 0")
    return Draw(low, high, log)


def _numbers(where: str, spec: Any, form: str, lengths: tuple[int, ...]) -> list[float]:
    good = isinstance(spec, list) and len(spec) in lengths
    if not good or not all(_is_number(n) for n in spec):
        raise UserError(f"{where} takes {form}, got {spec!r}")
    return list(spec)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: float, scale: float) -> float:
    """``value`` to ``DIGITS`` digits of ``scale``: an EMA of 0.99995 does not become 1."""
    return round(value, DIGITS - 1 - math.floor(math.log10(scale)))
