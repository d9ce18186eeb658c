"""What each method costs, its teacher's share included, and what it gains over a baseline."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Unpack

import pandas as pd

from fewstep.analysis.filters import RUN, Filters, select
from fewstep.analysis.statistics import PairedRatio
from fewstep.analysis.summary_types import Summary
from fewstep.errors import UserError, check_choice

MEANS = ("parameters", "train_steps", "steps_per_second", "images_seen", "train_seconds",
         "device_hours", "peak_memory_bytes", "train_flops")  # fmt: skip
TAUGHT = ("images_seen", "train_seconds", "device_hours", "train_flops")
"""What a teacher has cost, too."""
DIVERGED = "nan"  # the class of such failures


@dataclass(frozen=True)
class Cost:
    """Means over the runs of a method that are in the table; nan for what is not known.

    Attributes:
        train_seconds: wall time of training; device_hours: that by the number of processes.
        teacher_*: of the runs it learned from; 0 without any. total_*: of both together.
        flops: of training, the teacher's included.
        speedup: percent by which it does more steps a second than the baseline.
        sampling: images a second, by number of steps.
        ended: runs that were trained to the end or diverged. diverged: of these, those whose loss
            was no number any more. spiked: of these, those whose gradient has a spike, too
            (``spikes.SPIKED``).
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
    total_images_seen: float
    total_train_seconds: float
    total_device_hours: float
    flops: float
    peak_memory_bytes: float
    speedup: float
    sampling: Mapping[int, float]
    ended: int
    diverged: int
    spiked: int
    gain: Mapping[int, PairedRatio | None]

    @property
    def seconds_per_step(self) -> float:
        return 1 / self.steps_per_second


@dataclass(frozen=True)
class Costs:
    """A row for each method of a summary, in its order."""

    baseline: str
    rows: tuple[Cost, ...]
    devices: tuple[str, ...]  # on which they were trained: times of several are not compared


def costs(
    summary: Summary, frame: pd.DataFrame, baseline: str | None = None, **filters: Unpack[Filters]
) -> Costs:
    """Costs of the runs behind ``summary``, which ``frame`` and ``filters`` have given.

    ``baseline``: a method; by default the first.

    Raises ``UserError``: there is no such method.
    """
    baseline = summary.methods[0] if baseline is None else baseline
    check_choice("baseline", baseline, summary.methods)
    cells = select(frame, filters)
    teachers = [f"teacher_{name}" for name in TAUGHT]
    runs = cells.drop_duplicates(RUN)[["method", "device", "teacher", *MEANS, *teachers]]
    of = {str(method): own for method, own in runs.groupby("method", sort=False)}
    ended, diverged, spiked = _stability(frame)
    speeds = cells.groupby(["method", "steps"])["sample_images_per_second"].mean().to_dict()
    base_speed = _mean(of.get(baseline, runs[:0])["steps_per_second"])
    rows = []
    for method in summary.methods:
        own = of.get(method, runs[:0])
        taught = own[own["teacher"].notna()]
        means = {column: _mean(own[column]) for column in MEANS}
        for name in TAUGHT:
            means[f"teacher_{name}"] = _mean(taught[f"teacher_{name}"]) if len(taught) else 0.0
            means[f"total_{name}"] = means[name] + means[f"teacher_{name}"]
        del means["train_flops"], means["teacher_train_flops"]
        cost = Cost(
            method=method,
            runs=len(own),
            flops=means.pop("total_train_flops"),
            **means,
            ended=ended[method],
            diverged=diverged[method],
            spiked=spiked[method],
            speedup=100 * (means["steps_per_second"] / base_speed - 1),
            sampling={s: float(speeds.get((method, s), math.nan)) for s in summary.steps},
            gain={s: _gain(summary, method, baseline, s) for s in summary.steps},
        )
        rows.append(cost)
    return Costs(baseline, tuple(rows), tuple(runs["device"].dropna().unique()))


def _stability(frame: pd.DataFrame) -> list[Counter[str]]:
    """How many runs of each method have ended, diverged, spiked."""
    runs = frame.drop_duplicates(RUN)
    diverged = (runs["failure_class"] == DIVERGED).fillna(False).astype(bool)
    ended = diverged | (runs["train_steps"] >= runs["planned_steps"]).fillna(False).astype(bool)
    spiked = diverged | (ended & (runs["first_spike"] > 0).fillna(False).astype(bool))
    return [Counter(runs.loc[of, "method"]) for of in (ended, diverged, spiked)]


def _gain(summary: Summary, method: str, baseline: str, steps: int) -> PairedRatio | None:
    if summary.conditions.better == "neither":
        return None
    try:
        ratio = summary.compare(method, baseline, steps)
    except UserError:  # a value that has no logarithm
        return None
    return ratio if ratio.n else None


def improvement(ratio: PairedRatio, better: str | None = "lower") -> tuple[float, float, float]:
    """Percent by which a value is better than the baseline's, and its 95% interval."""
    if better == "higher":
        return 100 * (ratio.ratio - 1), 100 * (ratio.low - 1), 100 * (ratio.high - 1)
    return 100 * (1 - ratio.ratio), 100 * (1 - ratio.high), 100 * (1 - ratio.low)


def _mean(values: "pd.Series[Any]") -> float:
    mean = values.astype("Float64").mean()
    return math.nan if pd.isna(mean) else float(mean)
