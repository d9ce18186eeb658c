"""FD over training: cells of earlier training steps (``evaluation.at_steps``), and of the last."""

from collections.abc import Sequence

import pandas as pd

from fewstep.analysis.filters import RUN, counted, of_kinds
from fewstep.analysis.statistics import Curves, estimate


def over_training(frame: pd.DataFrame, cells: pd.DataFrame) -> dict[int, Curves]:
    """For each number of sampling steps: method -> images seen -> the mean over its seeds.

    ``cells``: the rows of ``frame`` that a table shows (``filters.select``), which give the last
    points; the others are of the same kind. Images include what teachers have seen. Empty where
    nothing was evaluated but at the end.
    """
    earlier = frame[counted(frame) & frame["at_step"].notna()]
    earlier = of_kinds(earlier, cells)
    if earlier.empty:
        return {}
    rows = pd.concat([cells, earlier], ignore_index=True)
    rows["images"] = rows["at_step"].fillna(rows["train_steps"]) * rows["batch_size"]
    rows["images"] += rows["teacher_images_seen"].fillna(0)
    return curves_by("images", rows, list(cells["method"].unique()))


def curves_by(x: str, rows: pd.DataFrame, methods: Sequence[str]) -> dict[int, Curves]:
    """For each number of steps: method -> value of column ``x`` -> the mean over its seeds.

    Of several sample sets, a run's value is their mean.
    """
    by_run = rows.groupby(["method", "steps", x, *RUN], sort=False)["value"].mean().reset_index()
    values: dict[tuple[int, str, float], list[float]] = {}
    for method, steps, at, value in by_run[["method", "steps", x, "value"]].itertuples(index=False):
        values.setdefault((int(steps), str(method), float(at)), []).append(float(value))
    curves: dict[int, Curves] = {}
    for place in sorted(values, key=lambda p: (p[0], methods.index(p[1]), p[2])):
        steps, method, at = place
        curves.setdefault(steps, {}).setdefault(method, {})[at] = estimate(values[place])
    return curves
