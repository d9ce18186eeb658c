"""Whether several extractors put the methods in the same order: one metric can mislead."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fewstep.analysis.filters import MAIN, counted, of_kinds
from fewstep.analysis.statistics import Estimate, estimate

FEWEST = 3  # methods: of two, the order is a coin


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau between two metrics: 1 for the same order of methods, -1 for the reverse.

    Attributes:
        first, second: labels of the metrics.
        by_steps: at each number of steps, the mean over seeds with its t-interval. mean: of each
            seed's mean over the numbers of steps.
        methods: how many have values of both, at most.
    """

    first: str
    second: str
    by_steps: dict[int, Estimate]
    mean: Estimate
    methods: int


def kendall_tau(x: ArrayLike, y: ArrayLike) -> float:
    """Tau-b of (n,) values (Kendall 1945): ties count as no order; nan where all of one are tied.

    Not from scipy.stats, which is slow to import.
    """
    a, b = (np.sign(np.subtract.outer(v, v)) for v in map(np.asarray, (x, y)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def agreements(frame: pd.DataFrame, cells: pd.DataFrame) -> list[Agreement]:
    """Of each two extractors in whose features the runs behind ``cells`` have a distance (FD, FID).

    Both of as many samples, against the same kind of reference.
    ``cells``: the rows of ``frame`` that a table shows; of each metric the same are compared. Empty
    where there is one extractor, or fewer than three methods.
    """
    rows = frame[counted(frame) & frame["at_step"].isna() & frame["metric_name"].isin(MAIN)]
    rows = of_kinds(rows[np.isfinite(rows["value"])], cells, "metric_id")
    values = rows.groupby(["metric_id", "seed", "steps", "method"], sort=False)["value"].mean()
    metrics = rows.drop_duplicates("metric_id").set_index("metric_id")
    labels, found = metrics["metric"], []
    for one, other in combinations(labels.index, 2):
        a, b = metrics.loc[one], metrics.loc[other]
        alike = all(str(a[column]) == str(b[column]) for column in ("samples", "reference"))
        if not alike or all(str(a[c]) == str(b[c]) for c in ("extractor", "extractor_sha256")):
            continue
        pair = pd.concat([values[one], values[other]], axis=1, join="inner")
        taus: dict[int, dict[int, float]] = {}  # steps -> seed -> tau
        most = 0
        for (seed, steps), part in pair.groupby(level=["seed", "steps"]):
            if len(part) >= FEWEST:
                tau = kendall_tau(part.iloc[:, 0], part.iloc[:, 1])
                taus.setdefault(int(steps), {})[int(seed)] = tau
                most = max(most, len(part))
        if not taus:
            continue
        by_seed = pd.DataFrame(taus).mean(axis=1)
        found.append(
            Agreement(
                labels[one], labels[other],
                {steps: estimate(list(taus[steps].values())) for steps in sorted(taus)},
                estimate(by_seed.dropna()), most,
            )
        )  # fmt: skip
    return found
