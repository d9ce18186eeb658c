"""What each method costs, its teacher's share included, and what it gains over a baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fewstep.analysis.records import Summary
from fewstep.analysis.selection import RUN, Filters, select
from fewstep.analysis.statistics import PairedRatio
from fewstep.errors import UserError, unknown

MEANS = ("parameters", "train_steps", "steps_per_second", "images_seen", "train_seconds",
         "device_hours", "peak_memory_bytes", "train_flops")  # fmt: skip
TEACHERS = tuple(f"teacher_{name}" for name in
                 ("images_seen", "train_seconds", "device_hours", "train_flops"))  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Means over the runs of a method that are in the table; nan for what is not known.

    Attributes:
        train_seconds: wall time of training; device_hours: that by the number of processes.
        teacher_*: of the runs it learned from; 0 without any.
        flops: of training, the teacher's included.
        speedup: percent by which it does more steps a second than the baseline.
        sampling: images a second, by number of steps.
        gain: method / baseline at each number of steps; None where there is no pair of seeds, or
            neither low nor high values are better.
    """

    method: str
    runs: int
    parameters: float
    train_steps: float
    steps_per_second: float
    images_seen: float
    train_seconds: float
    device_hours: float
    teacher_images_seen: float
    teacher_train_seconds: float
    teacher_device_hours: float
    flops: float
    peak_memory_bytes: float
    speedup: float
    sampling: Mapping[int, float]
    gain: Mapping[int, PairedRatio | None]

    @property
    def seconds_per_step(self) -> float:
        return 1 / self.steps_per_second

    @property
    def total_images_seen(self) -> float:
        return self.images_seen + self.teacher_images_seen

    @property
    def total_train_seconds(self) -> float:
        return self.train_seconds + self.teacher_train_seconds

    @property
    def total_device_hours(self) -> float:
        return self.device_hours + self.teacher_device_hours


@dataclass(frozen=True)
class Costs:
    """A row for each method of a summary, in its order."""

    baseline: str
    rows: tuple[Cost, ...]
    devices: tuple[str, ...]  # on which they were trained: times of several are not compared

    def of(self, method: str) -> Cost:
        return next(row for row in self.rows if row.method == method)


def costs(
    summary: Summary, frame: pd.DataFrame, baseline: str | None = None, **filters: Any
) -> Costs:
    """Costs of the runs behind ``summary``, which ``frame`` and ``filters`` have given.

    ``baseline``: a method; by default the first.

    Raises:
        UserError: there is no such method.
    """
    baseline = summary.methods[0] if baseline is None else baseline
    if baseline not in summary.methods:
        raise unknown("baseline", baseline, summary.methods)
    chosen: Filters = filters  # type: ignore[assignment]
    cells = select(frame, chosen)
    runs = cells.drop_duplicates(RUN)[["method", "device", "teacher", *MEANS, *TEACHERS]]
    of = {str(method): rows for method, rows in runs.groupby("method", sort=False)}
    means = cells.groupby(["method", "steps"])["sample_images_per_second"].mean().reset_index()
    speeds = {
        (str(method), int(steps)): float(mean)
        for method, steps, mean in means.itertuples(index=False, name=None)
    }
    none = runs.iloc[:0]
    base = _mean(of.get(baseline, none)["steps_per_second"])
    rows = tuple(
        _cost(summary, method, baseline, base, of.get(method, none), speeds)
        for method in summary.methods
    )
    return Costs(baseline, rows, tuple(runs["device"].dropna().unique()))


def _cost(
    summary: Summary,
    method: str,
    baseline: str,
    base_speed: float,
    runs: pd.DataFrame,
    speeds: Mapping[tuple[str, int], float],
) -> Cost:
    taught = runs[runs["teacher"].notna()]

    def teachers(column: str) -> float:
        return _mean(taught[f"teacher_{column}"]) if len(taught) else 0.0

    means = {column: _mean(runs[column]) for column in MEANS}
    flops, speed = means.pop("train_flops"), means["steps_per_second"]
    return Cost(
        method=method,
        runs=len(runs),
        **means,
        teacher_images_seen=teachers("images_seen"),
        teacher_train_seconds=teachers("train_seconds"),
        teacher_device_hours=teachers("device_hours"),
        flops=flops + teachers("train_flops"),
        speedup=100 * (speed / base_speed - 1),
        sampling={steps: speeds.get((method, steps), math.nan) for steps in summary.steps},
        gain={steps: _gain(summary, method, baseline, steps) for steps in summary.steps},
    )  # fmt: skip


def _gain(summary: Summary, method: str, baseline: str, steps: int) -> PairedRatio | None:
    if summary.conditions.better == "neither":
        return None
    try:
        found = summary.compare(method, baseline, steps)
    except UserError:  # a value that has no logarithm
        return None
    return found if found.n else None


def improvement(ratio: PairedRatio, better: str | None = "lower") -> tuple[float, float, float]:
    """Percent by which a value is better than the baseline's, and its 95% interval."""
    if better == "higher":
        return 100 * (ratio.ratio - 1), 100 * (ratio.low - 1), 100 * (ratio.high - 1)
    return 100 * (1 - ratio.ratio), 100 * (1 - ratio.high), 100 * (1 - ratio.low)


def _mean(values: pd.Series[Any]) -> float:
    mean = values.astype("Float64").mean()
    return math.nan if pd.isna(mean) else float(mean)
