"""One frame -> one table's worth of numbers: mean, t-interval, ranks, ties, failures."""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fewstep.analysis.conditions import UNKNOWN, guidance_kinds, references
from fewstep.analysis.filters import RUN, Filters, select, which_data
from fewstep.analysis.significance import shown_worse
from fewstep.analysis.statistics import Spread, half_width, spread, underpowered
from fewstep.analysis.summary_types import ALPHA, Cell, Conditions, Failure
from fewstep.analysis.summary_types import Summary as Summary
from fewstep.errors import UserError

SAME_FLOOR = 0.01  # by how much two machines may differ, relative to it
Place = tuple[str, int]  # method, steps
BySeed = dict[int, dict[int, float]]  # seed -> sample set -> value


def summarise(frame: pd.DataFrame, **filters: Unpack[Filters]) -> Summary:
    """Summarise the cells that ``filters`` choose (see ``filters.Filters``).

    Only networks trained on their whole budget count towards a mean; the runs without a value are
    counted as failed or missing in every column. Only cells with all their seeds are ranked. Of
    several sample sets, a run needs every one that the table has; else its cell is missing.

    Raises ``UserError``: the frame is empty, or its cells can not stand in one table.
    """
    if frame.empty:
        raise UserError("there are no runs to summarise")
    rows = select(frame, filters)
    runs = frame.drop_duplicates(RUN)
    methods = tuple(runs["method"].unique())
    planned = (s for plan in runs["planned_cells"].dropna() for s in plan.split())
    measured = rows["steps"].unique()
    steps = tuple(sorted({int(s) for s in (measured if len(measured) else planned)}))
    floor, reconstruction = (_floor(rows, name) for name in ("floor", "reconstruction"))
    ends = _ends(runs)
    facts = runs[["key", "method", "seed", "failure_class", "failure_message"]]
    failed = facts[np.isin(ends, ("failed", "stopped"))]
    failed = failed.fillna({"failure_class": "", "failure_message": ""})
    cells = _cells(rows, runs, ends, methods, steps)
    return Summary(
        sweep=" + ".join(runs["sweep"].unique()),
        methods=methods,
        steps=steps,
        cells=_ranked(cells, methods, steps, next(iter(rows["better"].dropna()), "lower")),
        floor=floor,
        reconstruction=reconstruction,
        conditions=_conditions(rows, runs),
        failures=tuple(
            Failure(key, method, int(seed), kind, message)
            for key, method, seed, kind, message in failed.itertuples(index=False)
        ),
        two_phase=frozenset(runs.loc[runs["teacher"].notna(), "method"]),
    )


def _floor(rows: pd.DataFrame, column: str) -> float | None:
    """The metric's floor: one, but for the rounding of machines that measured it separately.

    ``UserError`` for two: then it was not one metric. ``column``: of the floor or its like.
    """
    floors = rows[[column, "key", "cell"]].dropna(subset=column).drop_duplicates(column)
    if floors.empty:
        return None
    ordered = floors.sort_values(column).to_dict("records")
    low, high = ordered[0], ordered[-1]
    if not same_floor(low[column], high[column]):
        label, identity = rows["metric"].iloc[0], rows["metric_id"].iloc[0]
        raise UserError(
            f"{label} [{identity}] has two {column}s, {low[column]:.4g} (run {low['key']}) and "
            f"{high[column]:.4g} (run {high['key']}): its code, or an extractor's, was changed "
            f"in between; remove the cells of one of them and evaluate them again"
        )
    return float(floors[column].mean())


def same_floor(one: float, other: float) -> bool:
    """Whether they differ by the rounding of two machines at most."""
    return math.isclose(one, other, rel_tol=SAME_FLOOR, abs_tol=1e-9)


def _ends(runs: pd.DataFrame) -> NDArray[Any]:
    """How each run ended: "stopped" (early, by a search), "failed", "done", or "": not yet."""
    stopped = (runs["failure_class"] == "stopped").fillna(False)
    failed = (runs["status"] == "failed") | runs["failure_class"].notna()
    ends = {"stopped": stopped, "failed": failed, "done": runs["status"] == "done"}
    return np.select([end.to_numpy(bool) for end in ends.values()], list(ends), "")


def _cells(
    rows: pd.DataFrame,
    runs: pd.DataFrame,
    ends: NDArray[Any],
    methods: Sequence[str],
    steps: Sequence[int],
) -> dict[Place, Cell]:
    """Account for every run of a method: a value, failed, stopped or missing."""
    values: dict[Place, BySeed] = defaultdict(lambda: defaultdict(dict))
    columns = (rows[name].tolist() for name in ("method", "steps", "seed", "sample_set", "value"))
    for method, step, seed, sample_set, value in zip(*columns, strict=True):
        values[method, step][seed][sample_set] = value
    nfes: dict[Place, set[int]] = defaultdict(set)
    evaluations = rows[["method", "steps", "nfe"]].drop_duplicates().dropna()
    for method, step, nfe in evaluations.itertuples(index=False):
        nfes[method, step].add(int(nfe))
    runs_of: dict[str, dict[int, tuple[str, str]]] = defaultdict(dict)
    for method, seed, key, end in zip(runs["method"], runs["seed"], runs["key"], ends, strict=True):
        runs_of[method][int(seed)] = key, end
    sets = sorted(int(s) for s in rows["sample_set"].unique())
    return _with_means({
        (method, step): _cell(values[method, step], nfes[method, step], runs_of[method], sets)
        for method in methods
        for step in steps
    })  # fmt: skip


def _cell(
    by_seed: BySeed, nfes: Collection[int], runs: Mapping[int, tuple[str, str]], sets: Sequence[int]
) -> Cell:
    """All but the means, which are taken of many cells at once; ``runs``: key and end by seed."""
    finite = {seed: all(map(math.isfinite, by_set.values())) for seed, by_set in by_seed.items()}
    whole = {
        seed: [by_set[s] for s in sets]
        for seed, by_set in by_seed.items()
        if finite[seed] and len(by_set) == len(sets)
    }
    values = {seed: v[0] if len(v) == 1 else float(np.mean(v)) for seed, v in whole.items()}
    # a distance that is nan is a failure, not a value
    lost = {seed: end if finite.get(seed, True) else "failed"
            for seed, (_, end) in sorted(runs.items()) if seed not in values}  # fmt: skip

    def seeds(*ends: str) -> tuple[int, ...]:
        return tuple(seed for seed, end in lost.items() if end in ends)

    several = len(sets) > 1 and whole
    spreads = spread(list(whole.values())) if several else Spread(math.nan, math.nan)
    return Cell(
        values=values,
        failed_seeds=seeds("failed"),
        stopped_seeds=seeds("stopped"),
        missing_seeds=seeds("", "done"),
        unevaluated_seeds=seeds("done"),
        mean=math.nan,
        half_width=math.nan,
        keys=tuple(runs[seed][0] for seed in values),
        nfe=next(iter(nfes)) if len(nfes) == 1 else None,
        seed_sd=spreads.seed_sd,
        sampling_sd=spreads.sampling_sd,
    )


def _with_means(cells: dict[Place, Cell]) -> dict[Place, Cell]:
    """Mean and half-width of every cell with values, those of one n together."""
    by_n: dict[int, list[Place]] = defaultdict(list)
    for key, cell in cells.items():
        by_n[cell.n].append(key)
    for n, places in by_n.items():
        if n:
            values = np.array([list(cells[key].values.values()) for key in places])
            summary = zip(
                places, values.mean(-1).tolist(), half_width(values).tolist(), strict=True
            )
            for key, mean, half in summary:
                cells[key] = replace(cells[key], mean=mean, half_width=half)
    return cells


def _ranked(
    cells: Mapping[Place, Cell], methods: Sequence[str], steps: Sequence[int], better: str
) -> dict[Place, Cell]:
    """Mark best, second and ties by unrounded means; nothing where ``better`` is "neither"."""
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


def _starts_at_random(runs: pd.DataFrame) -> pd.Series:
    """Whether each run has a teacher whose weights it did not take, as far as it is recorded."""
    return runs["taught"].fillna(False).astype(bool) & runs["initialised"].isna()


def _data_versions(runs: pd.DataFrame) -> dict[str, tuple[str, str]]:
    known = runs[runs["data_sha256"].notna()]
    versions = zip(which_data(known), known["data_sha256"], known["key"], strict=True)
    return {which: (sha256, key) for which, sha256, key in versions}


def _conditions(rows: pd.DataFrame, runs: pd.DataFrame) -> Conditions:
    def distinct(table: pd.DataFrame, column: str) -> tuple[Any, ...]:
        return tuple(table[column].dropna().unique().tolist())

    def only(column: str) -> Any:
        return next(iter(distinct(rows, column)), None)

    cells = rows.drop_duplicates(["method", "steps"])
    chosen = "selected_from" in rows  # by each cell's own scale
    single = ("metric", "metric_id", "metric_name", "better", "extractor", "extractor_sha256",
              "samples", "reference", "reference_samples", "weights", "guidance")  # fmt: skip
    facts: dict[str, Any] = {column: only(column) for column in single}
    if chosen:
        scales = cells[["method", "steps", "guidance"]].itertuples(index=False)
        facts |= {"guidance": None, "selected_from": only("selected_from")}
        facts["guidances"] = {(str(m), int(s)): float(scale) for m, s, scale in scales}
    return Conditions(
        **facts,
        sample_sets=tuple(sorted(distinct(rows, "sample_set"))),
        data=distinct(runs, "data"),
        data_versions=_data_versions(runs),
        backbones=distinct(runs, "backbone"),
        seeds=tuple(sorted(distinct(runs, "seed"))),
        seeds_differ=runs.groupby("method")["seed"].agg(frozenset).nunique() > 1,
        shared=int((runs.groupby("key")["sweep"].nunique() > 1).sum()),
        budgets=distinct(runs, "budget"),
        recipes=distinct(runs, "recipe"),
        train_steps=tuple(sorted(distinct(rows, "train_steps"))),
        images_seen=tuple(sorted(distinct(rows, "images_seen"))),
        samplers=dict(zip(cells["method"], cells["sampler"], strict=True)),
        initialised=dict(
            runs.dropna(subset="initialised")[["method", "initialised"]].itertuples(index=False)
        ),
        random_starts=tuple(runs.loc[_starts_at_random(runs), "method"].unique()),
        given_times=tuple(
            (cell["method"], int(cell["steps"]), cell["times"])
            for cell in cells.to_dict("records")
            if cell["times"] != "uniform"
        ),
        data_is=tuple(rows["data_is"].fillna(UNKNOWN).unique().tolist()),
        conditional=tuple(rows["conditional"].fillna(UNKNOWN).unique().tolist()),
        references=references(rows),
        guidance_kinds=guidance_kinds(rows),
    )
