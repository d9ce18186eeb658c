"""The combinations of a sweep's axes: all of them, a random subset, or random draws."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from fewstep.errors import UserError, check_range
from fewstep.setting_types import checked
from fewstep.sweeps.definition.axes import Axis, Choice, Combination, axis_values
from fewstep.sweeps.definition.conditions import Condition

MAX_COMBINATIONS = 100_000
TRIES = 100  # draws per wanted combination; enough unless there are too few to find


@dataclass(frozen=True)
class Sample:
    """``count`` combinations, chosen by ``seed``; a larger count keeps those of a smaller one."""

    count: int
    seed: int = 0


def read_sample(spec: Any) -> Sample | None:
    """The field ``sample``, ``{count: N, seed: S}`` or the count alone, checked."""
    if spec is None:
        return None
    values = spec if isinstance(spec, dict) else {"count": spec}
    values = checked(Sample, "sample.", values, "field of sample")
    if "count" not in values:
        raise UserError(f"sample needs a count, got {spec!r}")
    check_range("sample.count", values["count"], 1)
    return Sample(**values)


def combinations(
    axes: Sequence[Axis], exclude: Sequence[Condition], sample: Sample | None
) -> list[Combination]:
    """All combinations of the axes less the excluded ones, or a sample of these.

    A UserError for random numbers without a sample, or too many or too few combinations.
    """
    drawn = [axis for axis in axes if axis.draw is not None]
    if drawn and sample is None:
        raise UserError(
            f"axis {drawn[0].name} is drawn at random; write sample: {{count: N}} to say how often"
        )
    if drawn and sample is not None:
        return _draws(axes, exclude, sample)
    size = math.prod(len(axis.choices) for axis in axes)
    if size > MAX_COMBINATIONS:
        raise UserError(f"its axes have {size} combinations, more than {MAX_COMBINATIONS}")
    grid = [c for c in _grid(axes) if not is_excluded(axes, exclude, c)]
    if sample is None:
        return grid
    # by a hash of each combination: the chosen ones stay chosen when the axes grow
    return sorted(grid, key=lambda c: _hash(sample.seed, axes, c))[: sample.count]


def complete(axes: Sequence[Axis], choices: Sequence[Choice | None]) -> Combination:
    """``choices`` with None where an axis does not apply.

    A LookupError with the name of an axis that applies, has no choice, and several values.
    """
    combination: Combination = ()
    for axis, choice in zip(axes, choices, strict=True):
        if not axis.when.holds(axis_values(axes, combination)):
            combination = (*combination, None)
        elif choice is None and len(axis.choices) != 1:
            raise LookupError(axis.name)
        else:
            combination = (*combination, choice or axis.choices[0])
    return combination


def _grid(axes: Sequence[Axis]) -> list[Combination]:
    grid: list[Combination] = [()]
    for axis in axes:
        grid = [
            (*prefix, choice)
            for prefix in grid
            for choice in (axis.choices if axis.when.holds(axis_values(axes, prefix)) else (None,))
        ]
    return grid


def _draws(axes: Sequence[Axis], exclude: Sequence[Condition], sample: Sample) -> list[Combination]:
    drawn: dict[Combination, None] = {}  # an ordered set
    for i in range(sample.count * TRIES):
        # a stream for each number: another axis, or a larger count, leaves it as it is
        shares = [Random(f"{sample.seed} {i} {axis.name}").random() for axis in axes]
        values = [axis.at(share) for axis, share in zip(axes, shares, strict=True)]
        combination = complete(axes, values)
        if not is_excluded(axes, exclude, combination):
            drawn[combination] = None
        if len(drawn) == sample.count:
            return list(drawn)
    raise UserError(
        f"sample.count {sample.count} is more than there are: {sample.count * TRIES} "
        f"draws found {len(drawn)} different combinations"
    )


def is_excluded(
    axes: Sequence[Axis], exclude: Sequence[Condition], combination: Combination
) -> bool:
    """Whether one of the exclusions holds for the combination."""
    values = axis_values(axes, combination)
    return any(condition.holds(values) for condition in exclude)


def _hash(seed: int, axes: Sequence[Axis], combination: Combination) -> str:
    labels = [f"{axis.name}={choice.label}" for axis, choice in zip(axes, combination, strict=True)
              if choice is not None]  # fmt: skip
    return hashlib.sha256(f"{seed} {' '.join(labels)}".encode()).hexdigest()
