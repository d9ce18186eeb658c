"""Conditions on the runs of a sweep: ``when:`` of an axis or a rule, ``exclude:``."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.errors import UserError, check_choice, unknown

AxisValues = Mapping[str, Sequence[Any]]
"""The labels and values of a run, by the name of the axis or setting."""


@dataclass(frozen=True)
class Condition:
    """Holds where every name has one of its values; without any name, everywhere."""

    terms: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def holds(self, run: AxisValues) -> bool:
        return all(
            any(same(expected, value) for expected in values for value in run.get(name, ()))
            for name, values in self.terms
        )


ALWAYS = Condition()


def same(expected: Any, value: Any) -> bool:
    """Whether ``expected`` in a file means this value: 1 is 1.0, and labels are strings."""
    return bool(expected == value) or str(expected) == str(value)


def read_condition(
    where: str,
    value: Any,
    known: AxisValues,
    free: Collection[str] = (),
    drawn: Collection[str] = (),
) -> Condition:
    """``{name: value}`` or ``{name: [one, or, another]}``, checked.

    ``where`` opens the message of an error. ``known``: names with their values; ``free``: names
    that may have any value; ``drawn``: names of random numbers, whose values cannot be named.
    """
    if not isinstance(value, dict) or not value:
        raise UserError(f"{where} must be a mapping of names to values, got {value!r}")
    terms = []
    for name, expected in ((str(k), v) for k, v in value.items()):
        if name in drawn:
            raise UserError(f"{where}: the values of {name} are drawn at random, none can be named")
        values = tuple(expected) if isinstance(expected, list) else (expected,)
        check_choice(f"name in {where}", name, [*known, *free])
        for one in values:
            if name not in free and not any(same(one, other) for other in known[name]):
                raise unknown(f"value of {name} in {where}", one, [str(v) for v in known[name]])
        terms.append((name, values))
    return Condition(tuple(terms))
