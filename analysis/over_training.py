"""FD over training: cells of earlier training steps (``evaluation.at_steps``), and of the last."""

import pandas as pd

from fewstep.analysis.filters import RUN, counted
from fewstep.analysis.statistics import Curves, estimate

KIND = ["method", "steps", "metric_id", "weights", "guidance", "sample_set", "sampler", "times"]
POINT = ["method", "steps", "images", "value"]


def over_training(frame: pd.DataFrame, cells: pd.DataFrame) -> dict[int, Curves]:
    """For each number of sampling steps: method -> images seen -> the mean over its seeds.

    ``cells``: the rows of ``frame`` that a table shows (``filters.select``), which give the last
    points; the others are of the same kind. Images include what teachers have seen. Empty where
    nothing was evaluated but at the end.
    """
    earlier = frame[counted(frame) & frame["at_step"].notna()]
    earlier = earlier.merge(cells[KIND].drop_duplicates(), on=KIND)
    if earlier.empty:
        return {}
    rows = pd.concat([cells, earlier], ignore_index=True)
    rows["images"] = rows["at_step"].fillna(rows["train_steps"]) * rows["batch_size"]
    rows["images"] += rows["teacher_images_seen"].fillna(0)
    by_run = rows.groupby(["method", "steps", "images", *RUN], sort=False)["value"].mean()
    values: dict[tuple[int, str, float], list[float]] = {}
    for method, steps, images, value in by_run.reset_index()[POINT].itertuples(index=False):
        values.setdefault((int(steps), str(method), float(images)), []).append(float(value))
    order = {method: i for i, method in enumerate(cells["method"].unique())}
    curves: dict[int, Curves] = {}
    for place in sorted(values, key=lambda place: (place[0], order[place[1]], place[2])):
        steps, method, images = place
        curves.setdefault(steps, {}).setdefault(method, {})[images] = estimate(values[place])
    return curves
