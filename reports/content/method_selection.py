"""Which methods figures show: all, or those that are ahead where colours cannot distinguish all."""

from itertools import zip_longest

from fewstep.analysis.summary_types import Summary

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
    return [m for rank in zip_longest(*columns) for m in rank if m is not None]


def note(summary: Summary) -> str:
    """What is not drawn, after a figure's caption; empty where all is."""
    if not summary.left_out:
        return ""
    count = len(summary.methods)
    return (
        f" Drawn are {count} of {count + summary.left_out} methods: the baseline, and those whose "
        f"mean is best, second best and so on at any number of steps; the table has all."
    )
