"""Samplers of the same networks, compared at equal numbers of network calls (NFE)."""

from typing import Unpack

import pandas as pd

from fewstep.analysis.filters import RUN, Filters, select
from fewstep.analysis.statistics import estimate


def over_nfe(frame: pd.DataFrame, **filters: Unpack[Filters]) -> pd.DataFrame:
    """A row per method, NFE and sampler, with ``steps``, ``mean``, ``half_width`` and ``n``.

    In the order of methods, then NFE, then of the means. A run's value is that over its sample
    sets; mean and 95% t-interval are over seeds. What a trained solver's training took is in the
    cells' files and not in the NFE.

    Raises ``UserError``: the cells of one sampler mix two metrics, weights, guidances or times.
    """
    parts = []
    for sampler in frame["sampler"].dropna().unique():
        rows = select(frame, {**filters, "sampler": sampler})
        parts.append(rows[rows["sampler"] == sampler])
    rows = pd.concat(parts) if parts else frame.iloc[:0]
    kind = ["method", "nfe", "sampler", "steps"]
    by_run = rows.groupby([*kind, *RUN])["value"].mean().reset_index()
    lines = []
    for place, own in by_run.groupby(kind, sort=False):
        mean = estimate(own["value"])
        lines.append((*place, mean.mean, mean.half_width, mean.n))
    table = pd.DataFrame(lines, columns=[*kind, "mean", "half_width", "n"])
    return table.sort_values(["method", "nfe", "mean"], ignore_index=True)
