"""Two sweeps, or one's methods against a baseline: ratios paired by seed, Holm over the table."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.analysis.significance import holm
from fewstep.analysis.statistics import (
    PairedDifference,
    PairedRatio,
    paired_difference,
    paired_log_ratio,
    underpowered,
)
from fewstep.analysis.summary import same_floor
from fewstep.analysis.summary_types import ALPHA, Cell, Conditions, Summary
from fewstep.deprecation import OldName
from fewstep.errors import UserError, unknown


@dataclass(frozen=True)
class Compared:
    """One method against another at one number of steps, over the seeds that both have."""

    paired: PairedRatio | PairedDifference  # a difference where a value is not positive
    seeds: tuple[int, ...]
    p_value: float  # Holm over the whole table; nan below two seeds
    underpowered: bool  # not significant, and so few seeds could hardly have been

    distinguished = OldName("significant")

    @property
    def significant(self) -> bool:
        return self.p_value <= ALPHA


@dataclass(frozen=True)
class Comparison:
    """``first`` / ``second`` per pair of methods and number of steps."""

    summaries: tuple[Summary, Summary]  # of the methods that are compared
    pairs: tuple[tuple[str, str], ...]  # (method of the first, method of the second)
    steps: tuple[int, ...]
    cells: Mapping[tuple[str, str, int], Compared]  # a place that one of them lacks has none
    alpha: float = ALPHA

    @property
    def first(self) -> str:
        return self.summaries[0].sweep

    @property
    def second(self) -> str:
        return self.summaries[1].sweep

    @property
    def one_sweep(self) -> bool:
        return self.first == self.second

    def sides(self, cell: tuple[str, str, int]) -> tuple[Cell, Cell]:
        (a, b, steps), (first, second) = cell, self.summaries
        return first.cells[a, steps], second.cells[b, steps]

    alone = OldName("unpaired_seeds")

    def unpaired_seeds(self) -> dict[tuple[str, str], set[int]]:
        """(sweep, method) -> seeds that have a value and no partner at some number of steps."""
        seeds_of: dict[tuple[str, str], set[int]] = defaultdict(set)
        for a, b in self.pairs:
            for steps in self.steps:
                one, other = (cell.values.keys() for cell in self.sides((a, b, steps)))
                seeds_of[self.first, a] |= one - other
                seeds_of[self.second, b] |= other - one
        return {who: seeds for who, seeds in seeds_of.items() if seeds}


SAME = ("metric_id", "weights", "guidance", "sample_sets")


def compare(
    first: Summary, second: Summary, method: str | None = None, baseline: str | None = None
) -> Comparison:
    """Each method of ``first`` against the same of ``second``, or against ``baseline`` there.

    Within one sweep (``first`` is ``second``) a baseline must be named. Which methods are compared
    is chosen before their values are looked at, so the family is this table and nothing else. Seeds
    of one number share data order, noise and labels in all sweeps, and are paired.

    Args:
        method: only this one of ``first``; with its namesake in ``second``, or ``baseline``.

    Raises ``UserError``: they were not measured in the same way (the message names both), have no
    method, step or seed in common, or a name is unknown.
    """
    _refuse_unlike(first, second)
    pairs = _pairs(first, second, method, baseline)
    steps = tuple(s for s in first.steps if s in second.steps)
    if not steps:
        raise _none_in_common("number of steps", first, first.steps, second, second.steps)
    seeds, paired = {}, {}
    for a, b, s in ((a, b, s) for a, b in pairs for s in steps):
        x, y = first.cells[a, s].values, second.cells[b, s].values
        if common := sorted(x.keys() & y.keys()):
            seeds[a, b, s] = tuple(common)
            xs, ys = [x[k] for k in common], [y[k] for k in common]
            compare_pairs = paired_log_ratio if min(*xs, *ys) > 0 else paired_difference
            paired[a, b, s] = compare_pairs(xs, ys)
    if not paired:
        ones, others = first.conditions.seeds, second.conditions.seeds
        raise _none_in_common("seed", first, ones, second, others)
    adjusted = holm([p.p_value for p in paired.values()]).tolist()
    cells = {
        key: Compared(p, seeds[key], p_value, not p_value <= ALPHA and underpowered(p.n, ALPHA))
        for (key, p), p_value in zip(paired.items(), adjusted, strict=True)
    }
    firsts, seconds = zip(*pairs, strict=True)
    if first.sweep == second.sweep:
        firsts = seconds = (*firsts, *seconds)
    summaries = first.only(firsts), second.only(seconds)
    return Comparison(summaries, tuple(pairs), steps, cells)


def _refuse_unlike(first: Summary, second: Summary) -> None:
    for summary in (first, second):
        if summary.conditions.metric is None:
            raise UserError(f"{_describe(summary)} has no evaluated cells to compare")
    a, b = first.conditions, second.conditions
    for name in SAME:
        if getattr(a, name) != getattr(b, name):
            raise UserError(
                f"numbers of two kinds can not be compared: {_describe(first)} has "
                f"{_kind(a, name)}, {_describe(second)} has {_kind(b, name)}"
            )
    for which in a.data_versions.keys() & b.data_versions.keys():
        (one, key), (other, its) = a.data_versions[which], b.data_versions[which]
        if one != other:
            raise UserError(
                f"runs on two versions of the data {which.split()[0]} can not be compared: "
                f"{_describe(first)} has {one[:12]} (run {key}), {_describe(second)} has "
                f"{other[:12]} (run {its})"
            )
    floors = first.floor, second.floor
    if None not in floors and not same_floor(*floors):  # type: ignore[arg-type]
        raise UserError(
            f"{_kind(a, 'metric_id')} has two floors, {floors[0]:.4g} in {_describe(first)} and "
            f"{floors[1]:.4g} in {_describe(second)}: its code, an extractor's, or held-out data "
            f"were changed in between; evaluate one of them again"
        )


def _kind(conditions: Conditions, name: str) -> str:
    if name == "metric_id":
        return f"{conditions.metric} [{conditions.metric_id}]"
    value = getattr(conditions, name)
    return f"{name.replace('_', ' ')} {_list(value) if isinstance(value, tuple) else value}"


def _pairs(
    first: Summary, second: Summary, method: str | None, baseline: str | None
) -> list[tuple[str, str]]:
    for name, summary in ((method, first), (baseline, second)):
        if name is not None and name not in summary.methods:
            raise unknown(f"method of {_describe(summary)}", name, summary.methods)
    chosen = first.methods if method is None else (method,)
    if baseline is not None:
        same = first.sweep == second.sweep
        pairs = [(name, baseline) for name in chosen if not (same and name == baseline)]
        if not pairs:
            raise UserError(f"{baseline!r} is the only method, and its own baseline")
        return pairs
    if first.sweep == second.sweep:
        raise UserError(
            f"one sweep is compared with a baseline of its own: --baseline NAME "
            f"(choices: {_list(first.methods)})"
        )
    pairs = [(name, name) for name in chosen if name in second.methods]
    if not pairs:
        error = _none_in_common("method", first, chosen, second, second.methods)
        raise UserError(f"{error}; choose with --method and --baseline")
    return pairs


def _none_in_common(
    what: str, one: Summary, ones: Sequence[Any], other: Summary, others: Sequence[Any]
) -> UserError:
    has = f"{_describe(one)} has {_list(ones)}, {_describe(other)} has {_list(others)}"
    return UserError(f"no {what} in common: {has}")


def _describe(summary: Summary) -> str:
    return f"sweep {summary.sweep!r}"


def _list(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in values)
