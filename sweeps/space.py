"""The combinations of a sweep's axes: all of them, a random part of them, or random draws."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from fewstep.errors import UserError, check_range, unknown
from fewstep.sweeps.axes import Axis, Choice, Combination, facts
from fewstep.sweeps.conditions import Condition

MOST = 100_000
TRIES = 100  # draws a wanted combination; more than enough unless there are too few to find


@dataclass(frozen=True)
class Sample:
    """``count`` of the combinations, chosen by ``seed``.

    A larger count keeps those of a smaller one, in their order.
    """

    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise UserError(f"sample.{name} must be a whole number, got {value!r}")
        check_range("sample.count", self.count, 1)


def read_sample(source: str, spec: Any) -> Sample | None:
    """``{count: N, seed: S}``; a number alone is the count."""
    if spec is None:
        return None
    if not isinstance(spec, dict):
        spec = {"count": spec}
    for name in spec:
        if name not in ("count", "seed"):
            raise unknown(f"field of sample in sweep {source}", name, ("count", "seed"))
    if "count" not in spec:
        raise UserError(f"sweep {source}: sample needs a count, got {spec!r}")
    try:
        return Sample(**spec)
    except UserError as error:
        raise UserError(f"sweep {source}: {error}") from None


def combinations(
    where: str, axes: Sequence[Axis], exclude: Sequence[Condition], sample: Sample | None
) -> list[Combination]:
    """All combinations of the axes less the excluded ones, or a sample of these.

    Raises:
        UserError: random numbers without a sample, or too many or too few combinations.
    """
    drawn = [axis for axis in axes if axis.draw is not None]
    if drawn and sample is None:
        raise UserError(
            f"{where}: axis {drawn[0].name} is drawn at random; "
            f"write sample: {{count: N}} to say how often"
        )
    if drawn and sample is not None:
        return _draws(where, axes, exclude, sample)
    size = math.prod(len(axis.choices) for axis in axes)
    if size > MOST:
        raise UserError(f"{where}: its axes have {size} combinations, more than {MOST}")
    found = [c for c in _grid(axes) if not is_excluded(axes, exclude, c)]
    if sample is None:
        return found
    # by a hash of each alone: those that were chosen stay so when the axes grow
    by_chance = sorted(found, key=lambda c: _hash(sample.seed, axes, c))
    return by_chance[: sample.count]


def complete(axes: Sequence[Axis], choices: Sequence[Choice | None]) -> Combination:
    """``choices`` with what its conditions make of it: None where an axis does not apply.

    Raises:
        LookupError: an axis that applies has no choice, and several to choose from; its name.
    """
    made: Combination = ()
    for axis, choice in zip(axes, choices, strict=True):
        if not axis.when.holds(facts(axes, made)):
            made = (*made, None)
        elif choice is None and len(axis.choices) != 1:
            raise LookupError(axis.name)
        else:
            made = (*made, choice or axis.choices[0])
    return made


def _grid(axes: Sequence[Axis]) -> list[Combination]:
    found: list[Combination] = [()]
    for axis in axes:
        found = [
            (*begun, choice)
            for begun in found
            for choice in (axis.choices if axis.when.holds(facts(axes, begun)) else (None,))
        ]
    return found


def _draws(
    where: str, axes: Sequence[Axis], exclude: Sequence[Condition], sample: Sample
) -> list[Combination]:
    found: dict[Combination, None] = {}  # an ordered set
    for i in range(sample.count * TRIES):
        # a stream for each number: another axis, or a larger count, leaves it as it is
        shares = [Random(f"{sample.seed} {i} {axis.name}").random() for axis in axes]
        drawn = complete(axes, [axis.at(share) for axis, share in zip(axes, shares, strict=True)])
        if not is_excluded(axes, exclude, drawn):
            found[drawn] = None
        if len(found) == sample.count:
            return list(found)
    raise UserError(
        f"{where}: sample.count {sample.count} is more than there are: {sample.count * TRIES} "
        f"draws found {len(found)} different combinations"
    )


def is_excluded(
    axes: Sequence[Axis], exclude: Sequence[Condition], combination: Combination
) -> bool:
    """Whether one of the exclusions holds for the combination."""
    told = facts(axes, combination)
    return any(condition.holds(told) for condition in exclude)


def _hash(seed: int, axes: Sequence[Axis], combination: Combination) -> str:
    told = [f"{axis.name}={choice.label}" for axis, choice in zip(axes, combination, strict=True)
            if choice is not None]  # fmt: skip
    return hashlib.sha256(f"{seed} {' '.join(told)}".encode()).hexdigest()
