"""One frame -> one table's worth of numbers: mean, t-interval, ranks, ties, failures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import pandas as pd

from fewstep.analysis.records import ALPHA, Cell, Conditions, Failure
from fewstep.analysis.records import Summary as Summary
from fewstep.analysis.selection import Filters, select
from fewstep.analysis.statistics import (
    estimate,
    holm,
    paired_log_ratio,
    t_test,
    underpowered,
)
from fewstep.errors import UserError


def summarise(frame: pd.DataFrame, **filters: Unpack[Filters]) -> Summary:
    """Summarise the cells that ``filters`` choose (see ``selection.Filters``).

    Only networks trained on their whole budget count towards a mean; the runs without a value are
    counted as failed or missing in every column. Only cells with all their seeds are ranked.

    Raises:
        UserError: the frame is empty, or its cells can not stand in one table.
    """
    if frame.empty:
        raise UserError("there are no runs to summarise")
    rows = select(frame, filters)
    runs = frame.drop_duplicates("key")
    methods = tuple(runs["method"].unique())
    steps = tuple(sorted(int(s) for s in rows["steps"].unique())) or _planned_steps(runs)
    by_place = dict(iter(rows.groupby(["method", "steps"], sort=False)))
    by_method = dict(iter(runs.groupby("method", sort=False)))
    nothing = rows.iloc[:0]
    cells = {
        (method, step): _cell(by_method[method], by_place.get((method, step), nothing))
        for method in methods
        for step in steps
    }
    floors = rows["floor"].dropna().unique()
    lost = runs[_failed(runs) | _stopped(runs)]
    return Summary(
        sweep=str(frame["sweep"].iloc[0]),
        methods=methods,
        steps=steps,
        cells=_ranked(cells, methods, steps),
        # one metric has one floor; should runs have measured it apart, their mean
        floor=float(np.mean(floors)) if len(floors) else None,
        conditions=_conditions(rows, runs),
        failures=tuple(
            Failure(
                key=run["key"],
                method=run["method"],
                seed=int(run["seed"]),
                kind=_text(run["failure_class"]),
                message=_text(run["failure_message"]),
            )
            for run in lost.to_dict("records")
        ),
        two_phase=frozenset(runs.loc[runs["teacher"].notna(), "method"]),
    )


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)


def _failed(runs: pd.DataFrame) -> pd.Series[bool]:
    return ((runs["status"] == "failed") | runs["failure_class"].notna()) & ~_stopped(runs)


def _stopped(runs: pd.DataFrame) -> pd.Series[bool]:
    return (runs["failure_class"] == "stopped").fillna(False).astype(bool)


def _cell(runs: pd.DataFrame, rows: pd.DataFrame) -> Cell:
    """Account for every run of a method: a value, failed or missing."""
    finite = rows[np.isfinite(rows["value"])]  # a distance that is nan is a failure, not a value
    values = {int(seed): float(v) for seed, v in zip(finite["seed"], finite["value"], strict=True)}
    failed = [*runs.loc[_failed(runs), "seed"], *rows.loc[~np.isfinite(rows["value"]), "seed"]]
    failed_seeds = tuple(sorted({int(seed) for seed in failed if seed not in values}))
    stopped = {int(seed) for seed in runs.loc[_stopped(runs), "seed"] if seed not in values}
    accounted = {*values, *failed_seeds, *stopped}
    mean = estimate(list(values.values()))
    nfe = rows["nfe"].dropna().unique()
    return Cell(
        values=values,
        failed_seeds=failed_seeds,
        stopped_seeds=tuple(sorted(stopped - set(failed_seeds))),
        missing_seeds=tuple(sorted(int(s) for s in runs["seed"] if s not in accounted)),
        mean=mean.mean,
        half_width=mean.half_width,
        keys=tuple(finite["key"]),
        nfe=int(nfe[0]) if len(nfe) == 1 else None,
    )


def _ranked(
    cells: Mapping[tuple[str, int], Cell], methods: Sequence[str], steps: Sequence[int]
) -> dict[tuple[str, int], Cell]:
    """Mark best, second and ties. Ranks are of unrounded means; equal means share a rank."""
    ranked = dict(cells)
    p_values: dict[tuple[str, int], float] = {}
    for step in steps:
        means = {m: cells[m, step].mean for m in methods if cells[m, step].complete}
        order = sorted(means.values())
        for method, mean in means.items():
            rank = order.index(mean)  # two bests leave no second
            ranked[method, step] = replace(ranked[method, step], best=rank == 0, second=rank == 1)
        if len(means) > 1:
            best = min(means, key=means.__getitem__)
            for method in means.keys() - {best}:
                p_values[method, step] = _paired_p(cells[method, step], cells[best, step])
    for method in methods:  # one family per method: its comparisons across the step grid
        places = [(method, step) for step in steps if (method, step) in p_values]
        adjusted = holm([p_values[place] for place in places])
        for place, p in zip(places, adjusted, strict=True):
            tie = bool(p > ALPHA)
            weak = tie and underpowered(ranked[place].n, ALPHA)
            ranked[place] = replace(ranked[place], p_value=float(p), tie=tie, underpowered=weak)
    return ranked


def _paired_p(cell: Cell, best: Cell) -> float:
    seeds = sorted(cell.values.keys() & best.values.keys())
    a, b = [cell.values[s] for s in seeds], [best.values[s] for s in seeds]
    if len(seeds) < 2:
        return math.nan
    if min([*a, *b]) > 0:
        return paired_log_ratio(a, b).p_value
    return float(t_test(np.subtract(a, b)))  # an unbiased KID may be negative: no logarithm


def _planned_steps(runs: pd.DataFrame) -> tuple[int, ...]:
    """The columns of a table in which nothing has been measured yet."""
    return tuple(sorted({int(s) for plan in runs["planned_cells"].dropna() for s in plan.split()}))


def _conditions(rows: pd.DataFrame, runs: pd.DataFrame) -> Conditions:
    def distinct(table: pd.DataFrame, column: str) -> tuple[Any, ...]:
        return tuple(table[column].dropna().unique().tolist())

    def only(column: str) -> Any:
        return next(iter(distinct(rows, column)), None)

    places = rows.drop_duplicates(["method", "steps"])
    single = ("metric", "metric_id", "metric_name", "extractor", "extractor_sha256", "samples",
              "reference", "reference_samples", "weights", "guidance", "sample_set")  # fmt: skip
    return Conditions(
        **{column: only(column) for column in single},
        data=distinct(runs, "data"),
        backbones=distinct(runs, "backbone"),
        seeds=tuple(sorted(distinct(runs, "seed"))),
        train_steps=tuple(sorted(distinct(rows, "train_steps"))),
        images_seen=tuple(sorted(distinct(rows, "images_seen"))),
        samplers=dict(zip(places["method"], places["sampler"], strict=True)),
        given_times=tuple(
            (place["method"], int(place["steps"]), place["times"])
            for place in places.to_dict("records")
            if place["times"] != "uniform"
        ),
    )
