"""Guidance as an axis: the distance by scale, for each number of steps."""

import pandas as pd

from fewstep.analysis.filters import counted, of_kinds
from fewstep.analysis.over_training import curves_by
from fewstep.analysis.statistics import Curves

INTERVAL = r"(?:, )?guidance_interval=[^,]*"


def over_guidance(frame: pd.DataFrame, cells: pd.DataFrame) -> dict[int, Curves]:
    """For each number of steps: method -> guidance scale -> the mean over its seeds.

    Of all that ``cells``, the rows of ``frame`` that a table shows, were also evaluated at. Empty
    where that is one scale, or one scale has several intervals.
    """
    rows = frame[counted(frame) & frame["at_step"].isna()]
    if rows["guidance"].nunique() < 2:
        return {}
    guided = rows["sampler"]
    rows, cells = (part.assign(sampler=_unguided(part["sampler"])) for part in (rows, cells))
    rows = of_kinds(rows.assign(guided=guided), cells, "guidance")
    intervals = rows.groupby("guidance")["guided"].nunique()
    plain = rows.groupby("guidance")["sampler"].nunique()
    if rows["guidance"].nunique() < 2 or (intervals > plain).any():
        return {}
    return curves_by("guidance", rows, list(cells["method"].unique()))


def _unguided(samplers: "pd.Series[str]") -> "pd.Series[str]":
    """Each sampler as it would be without guidance."""
    bare = samplers.str.replace(INTERVAL, "", regex=True).str.removeprefix(", ")
    return bare.mask(bare == "", "default")
