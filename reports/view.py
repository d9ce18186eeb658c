"""What a report shows of one data set: a summary, and all that stands around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from fewstep.analysis.costs import Costs
from fewstep.analysis.records import Summary
from fewstep.reports.grid import Samples
from fewstep.reports.provenance import Origin
from fewstep.reports.published import Published

if TYPE_CHECKING:
    from fewstep.analysis.diagnostics import Curves


@dataclass(frozen=True)
class View:
    """``frame``: all runs on this data; ``cells``: the rows that the summary is made of.

    ``drawn``: the part of the summary that figures show. ``origins``: where its cells come from.
    ``methods``: paragraphs. ``published`` rows stand in its columns, those ``apart`` in a table of
    their own. ``curves``: held-out loss by log-SNR, of methods whose runs were diagnosed.
    """

    data: str
    summary: Summary
    drawn: Summary
    frame: pd.DataFrame
    cells: pd.DataFrame
    costs: Costs
    samples: Samples
    methods: Sequence[str]
    origins: Sequence[Origin]
    published: Sequence[Published] = ()
    apart: Sequence[Published] = ()
    curves: Curves = field(default_factory=dict)
