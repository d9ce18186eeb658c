"""What a report shows of one data set: a summary, and all that stands around it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from fewstep.analysis.agreement import Agreement
from fewstep.analysis.costs import Costs
from fewstep.analysis.statistics import Curves
from fewstep.analysis.summary_types import Samples, Summary
from fewstep.reports.content.provenance import Origins
from fewstep.reports.content.published import Published


@dataclass(frozen=True)
class ReportData:
    """``frame``: all runs on this data; ``cells``: the rows that the summary is made of.

    ``drawn``: the part of the summary that figures show. ``origins``: where its cells come from.
    ``methods``: paragraphs. ``published`` rows stand in its columns, those ``apart`` in a table of
    their own. ``curves``: held-out loss by log-SNR, of methods whose runs were diagnosed.
    ``over_training``: the distance by images seen, for each number of steps; ``over_guidance``: by
    the scale of guidance. ``agreements``: of the extractors in which the same cells were measured.
    """

    data: str
    summary: Summary
    drawn: Summary
    frame: pd.DataFrame
    cells: pd.DataFrame
    costs: Costs
    samples: Samples
    methods: Sequence[str]
    origins: Origins
    published: Sequence[Published] = ()
    apart: Sequence[Published] = ()
    curves: Curves = field(default_factory=dict)
    agreements: Sequence[Agreement] = ()
    over_training: Mapping[int, Curves] = field(default_factory=dict)
    over_guidance: Mapping[int, Curves] = field(default_factory=dict)
