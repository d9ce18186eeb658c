"""Which runs of a sweep something is about: ``when:`` of an axis or a rule, ``exclude:``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.errors import UserError, unknown

Facts = Mapping[str, Sequence[Any]]
"""What a run is told by: the name of an axis or of a setting -> its label, its value."""


@dataclass(frozen=True)
class Condition:
    """Holds where every name has one of its values; without any name, everywhere."""

    terms: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def holds(self, facts: Facts) -> bool:
        return all(
            any(same(wanted, fact) for wanted in values for fact in facts.get(name, ()))
            for name, values in self.terms
        )


ALWAYS = Condition()


def same(wanted: Any, fact: Any) -> bool:
    """Whether a value in a file means this one: 1 is 1.0, and a label is told in words."""
    return bool(wanted == fact) or str(wanted) == str(fact)


def read_condition(
    where: str, value: Any, known: Facts, free: Collection[str] = (), drawn: Collection[str] = ()
) -> Condition:
    """``{name: value}`` or ``{name: [one, or, another]}``, checked.

    ``where`` opens the message of an error. ``known``: names with their values; ``free``: names
    that may have any value; ``drawn``: names of numbers drawn at random, which have none to name.

    Raises:
        UserError: not a mapping, or a name or a value that is not there.
    """
    if not isinstance(value, dict) or not value:
        raise UserError(f"{where} must be a mapping of names to values, got {value!r}")
    terms = []
    for name, wanted in ((str(k), v) for k, v in value.items()):
        if name in drawn:
            raise UserError(f"{where}: the values of {name} are drawn at random, none can be named")
        values = tuple(wanted) if isinstance(wanted, list) else (wanted,)
        if name not in known and name not in free:
            raise unknown(f"name in {where}", name, [*known, *free])
        for one in values:
            if name not in free and not any(same(one, fact) for fact in known[name]):
                raise unknown(f"value of {name} in {where}", one, [str(v) for v in known[name]])
        terms.append((name, values))
    return Condition(tuple(terms))
