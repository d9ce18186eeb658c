"""What a report shows of one data set: a summary, and all that stands around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from fewstep.analysis.costs import Costs
from fewstep.analysis.diagnostics import Curves
from fewstep.analysis.records import Summary
from fewstep.reports.grid import Samples
from fewstep.reports.published import Published


@dataclass(frozen=True)
class View:
    """``frame``: all runs on this data; ``cells``: the rows that the summary is made of.

    ``published`` rows stand in its columns, those ``apart`` in a table of their own. ``curves``:
    held-out loss by log-SNR, of methods whose runs were diagnosed.
    """

    data: str
    summary: Summary
    frame: pd.DataFrame
    cells: pd.DataFrame
    costs: Costs
    samples: Samples
    published: Sequence[Published] = ()
    apart: Sequence[Published] = ()
    curves: Curves = field(default_factory=dict)
