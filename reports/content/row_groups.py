"""The rows of a table, in groups: trained in one phase, or in two, from a finished run."""

from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.analysis.summary_types import Summary
from fewstep.reports.content.published import ONE_PHASE, TWO_PHASE, Published

TITLES = {ONE_PHASE: "One phase", TWO_PHASE: "Two phases (needs a finished run)"}


@dataclass(frozen=True)
class Group:
    """``title`` is empty where there is only one group, which needs none."""

    title: str
    methods: tuple[str, ...]
    published: tuple[Published, ...]


def groups(summary: Summary, published: Sequence[Published] = ()) -> list[Group]:
    """Our methods in the sweep's order, then the published ones that share a column with ours.

    Known from the runs: a method whose runs have a teacher is of two phases.
    """
    shown = [row for row in published if row.values.keys() & set(summary.steps)]
    nonempty = []
    for name, title in TITLES.items():
        methods = tuple(m for m in summary.methods if group_of(summary, m) == name)
        theirs = tuple(row for row in shown if row.group == name)
        if methods or theirs:
            nonempty.append(Group(title, methods, theirs))
    if len(nonempty) == 1:
        return [Group("", nonempty[0].methods, nonempty[0].published)]
    return nonempty


def group_of(summary: Summary, method: str) -> str:
    """One of ``published.GROUPS``."""
    return TWO_PHASE if method in summary.two_phase else ONE_PHASE


def published_value(row: Published, steps: int) -> str:
    """As papers print it: in parentheses for steps that the method was not made for."""
    if steps not in row.values:
        return "–"
    shown = row.values[steps]
    return f"({shown})" if steps in row.unintended else shown
