"""One frame -> one table's worth of numbers: mean, t-interval, ranks, ties, failures."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import numpy as np
import pandas as pd

from fewstep.analysis.ranking import shown_worse
from fewstep.analysis.records import ALPHA, Cell, Conditions, Failure
from fewstep.analysis.records import Summary as Summary
from fewstep.analysis.selection import RUN, Filters, select
from fewstep.analysis.statistics import half_width, spread, underpowered
from fewstep.errors import UserError

Place = tuple[str, int]  # method, steps


def summarise(frame: pd.DataFrame, **filters: Unpack[Filters]) -> Summary:
    """Summarise the cells that ``filters`` choose (see ``selection.Filters``).

    Only networks trained on their whole budget count towards a mean; the runs without a value are
    counted as failed or missing in every column. Only cells with all their seeds are ranked. Of
    several sample sets, a run needs every one that the table has; else its cell is missing.

    Raises:
        UserError: the frame is empty, or its cells can not stand in one table.
    """
    if frame.empty:
        raise UserError("there are no runs to summarise")
    rows = select(frame, filters)
    runs = frame.drop_duplicates(RUN)
    methods = tuple(runs["method"].unique())
    steps = tuple(sorted(int(s) for s in rows["steps"].unique())) or _planned_steps(runs)
    floors = rows["floor"].dropna().unique()
    lost = _lost(runs)
    cells = _cells(rows, runs, lost, methods, steps)
    return Summary(
        sweep=" + ".join(runs["sweep"].unique()),
        methods=methods,
        steps=steps,
        cells=_ranked(cells, methods, steps, _better(rows)),
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
            for run in runs[lost != ""].to_dict("records")
        ),
        two_phase=frozenset(runs.loc[runs["teacher"].notna(), "method"]),
    )


def _better(rows: pd.DataFrame) -> str:
    return str(next(iter(rows["better"].dropna()), "lower"))


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)


def _lost(runs: pd.DataFrame) -> pd.Series[str]:
    """How a run ended without a result: "failed", "stopped" (early, by a search), or ""."""
    stopped = (runs["failure_class"] == "stopped").fillna(False).astype(bool)
    failed = ((runs["status"] == "failed") | runs["failure_class"].notna()) & ~stopped
    ends = pd.Series("", index=runs.index)
    return ends.mask(failed.fillna(False).astype(bool), "failed").mask(stopped, "stopped")


@dataclass
class _Found:
    """What was found of a place, by seed."""

    sets: dict[int, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    keys: dict[int, str] = field(default_factory=dict)
    nfe: set[int] = field(default_factory=set)


def _cells(
    rows: pd.DataFrame,
    runs: pd.DataFrame,
    lost: pd.Series[str],
    methods: Sequence[str],
    steps: Sequence[int],
) -> dict[Place, Cell]:
    """Account for every run of a method: a value, failed, stopped or missing."""
    found: dict[Place, _Found] = defaultdict(_Found)
    wanted = ("method", "steps", "seed", "sample_set", "value", "key")
    for method, step, seed, sample_set, value, key in zip(
        *(rows[name].tolist() for name in wanted), strict=True
    ):
        place = found[method, step]
        place.sets[seed][sample_set] = value
        place.keys[seed] = key
    evaluations = rows[["method", "steps", "nfe"]].drop_duplicates().dropna()
    for method, step, nfe in evaluations.itertuples(index=False):
        found[method, step].nfe.add(int(nfe))
    seeds: dict[str, dict[int, str]] = defaultdict(dict)  # of all runs, and how it ended
    ends = lost.mask((lost == "") & (runs["status"] == "done"), "done")
    for method, seed, end in zip(runs["method"], runs["seed"], ends, strict=True):
        seeds[method][int(seed)] = end
    sets = sorted(int(s) for s in rows["sample_set"].unique())
    return _with_means({
        (method, step): _cell(found.get((method, step), _Found()), seeds[method], sets)
        for method in methods
        for step in steps
    })  # fmt: skip


def _cell(found: _Found, runs: Mapping[int, str], sets: Sequence[int]) -> Cell:
    """All but the means: those are taken of many cells at once."""
    # a distance that is nan is a failure, not a value
    broken = {s for s, values in found.sets.items() if not all(map(math.isfinite, values.values()))}
    whole = {
        seed: [values[s] for s in sets]
        for seed, values in found.sets.items()
        if seed not in broken and len(values) == len(sets)
    }
    values = {seed: v[0] if len(v) == 1 else float(np.mean(v)) for seed, v in whole.items()}
    without = runs.keys() - values.keys()
    failed = {seed for seed in without if runs[seed] == "failed" or seed in broken}
    stopped = {seed for seed in without - failed if runs[seed] == "stopped"}
    spreads = spread(list(whole.values())) if len(sets) > 1 and whole else None
    return Cell(
        values=values,
        failed_seeds=tuple(sorted(failed)),
        stopped_seeds=tuple(sorted(stopped)),
        missing_seeds=tuple(sorted(without - failed - stopped)),
        unevaluated_seeds=tuple(sorted(s for s in without - failed - stopped if runs[s] == "done")),
        mean=math.nan,
        half_width=math.nan,
        keys=tuple(found.keys[seed] for seed in values),
        nfe=next(iter(found.nfe)) if len(found.nfe) == 1 else None,
        seed_sd=spreads.seed_sd if spreads else math.nan,
        sampling_sd=spreads.sampling_sd if spreads else math.nan,
    )


def _with_means(cells: dict[Place, Cell]) -> dict[Place, Cell]:
    """Mean and half-width of every cell with values, those of one n together."""
    by_n: dict[int, list[Place]] = defaultdict(list)
    for place, cell in cells.items():
        by_n[cell.n].append(place)
    for n, places in by_n.items():
        if n:
            values = np.array([list(cells[place].values.values()) for place in places])
            summary = zip(
                places, values.mean(-1).tolist(), half_width(values).tolist(), strict=True
            )
            for place, mean, half in summary:
                cells[place] = replace(cells[place], mean=mean, half_width=half)
    return cells


def _ranked(
    cells: Mapping[Place, Cell], methods: Sequence[str], steps: Sequence[int], better: str
) -> dict[Place, Cell]:
    """Mark best, second and ties. Ranks are of unrounded means; equal means share a rank.

    Where neither low nor high values are better, nothing is ranked.
    """
    if better == "neither":
        return dict(cells)
    sign = -1 if better == "higher" else 1
    seeds = {s: i for i, s in enumerate(sorted({s for c in cells.values() for s in c.values}))}
    table = np.full((len(methods), len(steps), len(seeds)), np.nan)
    for i, method in enumerate(methods):
        for j, step in enumerate(steps):
            if (cell := cells[method, step]).complete:
                table[i, j, [seeds[s] for s in cell.values]] = list(cell.values.values())
    p_values = shown_worse(sign * table)
    # beside cells of several seeds, one that could not be tested is not shown to be worse
    several = any(cell.n > 1 for cell in cells.values())
    ranked = dict(cells)
    for j, step in enumerate(steps):
        order = sorted(sign * cells[m, step].mean for m in methods if cells[m, step].complete)
        for i, method in enumerate(methods):
            cell = cells[method, step]
            if not cell.complete:
                continue
            rank = bisect_left(order, sign * cell.mean)  # two bests leave no second
            p = math.nan if rank == 0 else float(p_values[i, j])
            tie = several and rank > 0 and not p <= ALPHA
            ranked[method, step] = replace(
                cell, best=rank == 0, second=rank == 1, p_value=p, tie=tie,
                underpowered=tie and underpowered(cell.n, ALPHA),
            )  # fmt: skip
    return ranked


def _planned_steps(runs: pd.DataFrame) -> tuple[int, ...]:
    """The columns of a table in which nothing has been measured yet."""
    return tuple(sorted({int(s) for plan in runs["planned_cells"].dropna() for s in plan.split()}))


def _conditions(rows: pd.DataFrame, runs: pd.DataFrame) -> Conditions:
    def distinct(table: pd.DataFrame, column: str) -> tuple[Any, ...]:
        return tuple(table[column].dropna().unique().tolist())

    def only(column: str) -> Any:
        return next(iter(distinct(rows, column)), None)

    places = rows.drop_duplicates(["method", "steps"])
    single = ("metric", "metric_id", "metric_name", "better", "extractor", "extractor_sha256",
              "samples", "reference", "reference_samples", "weights", "guidance")  # fmt: skip
    return Conditions(
        **{column: only(column) for column in single},
        sample_sets=tuple(sorted(distinct(rows, "sample_set"))),
        data=distinct(runs, "data"),
        backbones=distinct(runs, "backbone"),
        seeds=tuple(sorted(distinct(runs, "seed"))),
        seeds_differ=runs.groupby("method")["seed"].agg(frozenset).nunique() > 1,
        shared=int((runs.groupby("key")["sweep"].nunique() > 1).sum()),
        budgets=distinct(runs, "budget"),
        train_steps=tuple(sorted(distinct(rows, "train_steps"))),
        images_seen=tuple(sorted(distinct(rows, "images_seen"))),
        samplers=dict(zip(places["method"], places["sampler"], strict=True)),
        given_times=tuple(
            (place["method"], int(place["steps"]), place["times"])
            for place in places.to_dict("records")
            if place["times"] != "uniform"
        ),
    )
