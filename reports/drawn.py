"""Which methods figures show: all, or of more than can be told apart those that are ahead."""

from __future__ import annotations

from itertools import zip_longest

from fewstep.analysis.records import Summary

MOST = 21  # seven colours in three dashes


def drawn(summary: Summary, baseline: str) -> Summary:
    """The part of ``summary`` that figures show: the methods stay in their order.

    Of more than ``MOST``: the baseline, then those with the best mean at any number of steps, then
    those with the second best, and so on; where neither low nor high is better, the first ones.
    """
    if len(summary.methods) <= MOST:
        return summary
    ahead = dict.fromkeys([baseline, *_by_rank(summary), *summary.methods])
    return summary.only(list(ahead)[:MOST])


def _by_rank(summary: Summary) -> list[str]:
    """Methods by their best place in any column; one may be there more than once."""
    if summary.conditions.better == "neither":
        return []
    higher = summary.conditions.better == "higher"
    columns = []
    for steps in summary.steps:
        means = {m: summary.cells[m, steps].mean for m in summary.methods}
        known = [m for m in summary.methods if summary.cells[m, steps].n]
        columns.append(sorted(known, key=means.__getitem__, reverse=higher))
    return [m for place in zip_longest(*columns) for m in place if m is not None]


def note(summary: Summary) -> str:
    """What is not drawn, after a figure's caption; empty where all is."""
    if not summary.left_out:
        return ""
    count = len(summary.methods)
    return (
        f" Drawn are {count} of {count + summary.left_out} methods: the baseline, and those whose "
        f"mean is best, second best and so on at any number of steps; the table has all."
    )


def legend_line(summary: Summary) -> list[str]:
    """The last line of a legend that does not hold every method; none where it does."""
    return [f"not drawn: {summary.left_out} more"] if summary.left_out else []
