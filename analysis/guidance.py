"""Guidance as an axis: the distance by scale, for each number of steps."""

import pandas as pd

from fewstep.analysis.filters import counted
from fewstep.analysis.over_training import curves_by
from fewstep.analysis.statistics import Curves

KIND = ["method", "steps", "metric_id", "weights", "sample_set", "unguided", "times"]
INTERVAL = r"(?:, )?guidance_interval=[^,]*"


def over_guidance(frame: pd.DataFrame, cells: pd.DataFrame) -> dict[int, Curves]:
    """For each number of steps: method -> guidance scale -> the mean over its seeds.

    Of all that ``cells``, the rows of ``frame`` that a table shows, were also evaluated at. Empty
    where that is one scale, or one scale has several intervals.
    """
    rows = frame[counted(frame) & frame["at_step"].isna()]
    if rows["guidance"].nunique() < 2:
        return {}
    rows, cells = (_with_unguided(part) for part in (rows, cells))
    rows = rows.merge(cells[KIND].drop_duplicates(), on=KIND)
    intervals = rows.groupby("guidance")["sampler"].nunique()
    plain = rows.groupby("guidance")["unguided"].nunique()
    if rows["guidance"].nunique() < 2 or (intervals > plain).any():
        return {}
    return curves_by("guidance", rows, list(cells["method"].unique()))


def _with_unguided(rows: pd.DataFrame) -> pd.DataFrame:
    """With the sampler as it would be without guidance."""
    bare = rows["sampler"].str.replace(INTERVAL, "", regex=True).str.removeprefix(", ")
    return rows.assign(unguided=bare.mask(bare == "", "default"))
