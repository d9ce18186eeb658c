"""Which cells make up one table, and the refusal to mix what can not be compared."""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import TypedDict

import pandas as pd

from fewstep.errors import UserError, nearest

RUN = ["sweep", "key"]
"""What names a run; the same configuration has the same key in two sweeps."""
KIND = ["method", "steps", "metric_id", "weights", "guidance", "sample_set", "sampler", "times"]
"""What a cell is besides its run."""
MAIN = ("FID", "FD")  # what a table holds by default
BEST = "best"


class AmbiguousCells(UserError):
    """Several kinds of cells could stand in one place.

    Attributes:
        option: the filter that chooses among them. choices: its values.
    """

    def __init__(self, message: str, option: str, choices: Sequence[object]) -> None:
        super().__init__(f"{message}; choose with --{option} (in Python {option}=)")
        self.option, self.choices = option, choices


class Filters(TypedDict, total=False):
    """What a caller may choose; None (or left out) means that there must be only one.

    Of sample sets there may be several: a run's value is its mean over all of them.
    """

    weights: str | None  # ema | raw
    guidance: float | str | None  # a scale, or "best": of each cell, by a sample set of its own
    sample_set: int | None
    metric: str | None  # label (FD-digits-cnn@597), name (kid) or beginning of an id; else FD
    sampler: str | None  # of the methods that were evaluated with it; others keep their own
    times: str | None  # "uniform" or the times, space separated; likewise


def counted(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Rows that are results: cells of networks trained on their whole budget.

    A run may fail later, at another cell; what it had evaluated until then stands. Runs that were
    ended early have cells only where somebody asked for them.
    """
    whole = (frame["train_steps"] >= frame["planned_steps"]).fillna(frame["status"] == "done")
    return frame["cell"].notna() & (whole.astype(bool) | (frame["status"] == "stopped"))


def select(frame: pd.DataFrame, filters: Filters) -> pd.DataFrame:
    """The counted rows of the last training step that ``filters`` leave, all of one protocol.

    Raises ``UserError``: a filter leaves nothing, or the rows mix two metrics, weights or
    guidances, or two samplers or times for one method; the message names both.
    """
    runs = frame.drop_duplicates(RUN)
    _refuse_doubles(runs)
    _refuse_other_data(runs)
    rows = frame[counted(frame) & frame["at_step"].isna()]
    best = filters.get("guidance") == BEST
    for column in ("weights", "guidance", "sample_set"):
        if (wanted := filters.get(column)) is not None and wanted != BEST:
            rows = _narrow(rows, column, rows[column] == wanted, wanted)
    if metric := filters.get("metric"):
        named = (rows["metric"] == metric) | (rows["metric_name"].str.lower() == metric.lower())
        named |= rows["metric_id"].str.startswith(metric)
        rows = _narrow(rows, "metric", named, metric)
    elif (main := rows["metric_name"].isin(MAIN)).any():
        rows = rows[main]
    for column in ("sampler", "times"):
        if (wanted := filters.get(column)) is not None:
            has_it = rows[column] == wanted
            others = ~rows["method"].isin(rows.loc[has_it, "method"])
            rows = _narrow(rows, column, has_it, wanted, others)
    _refuse_mixtures(rows, ("weights",) if best else ("weights", "guidance"))
    return _best_guidance(rows) if best else rows


def of_kinds(rows: pd.DataFrame, cells: pd.DataFrame, *any_of: str) -> pd.DataFrame:
    """The rows of the same kinds as ``cells``, but for the columns ``any_of`` of ``KIND``."""
    columns = [column for column in KIND if column not in any_of]
    return rows.merge(cells[columns].drop_duplicates(), on=columns)


def _best_guidance(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each method and number of steps at the scale that is best on one sample set.

    That set, the lowest, is left out: a value that was chosen for being low is not shown. The
    column ``selected_from`` says among which scales. Scales that lack a seed are not chosen.

    Raises ``UserError``: there is one sample set, or neither low nor high values are better.
    """
    if rows.empty:
        return rows.assign(selected_from=pd.Series(dtype="string"))
    better, sets = str(rows["better"].iloc[0]), sorted(rows["sample_set"].unique())
    if better not in ("lower", "higher"):
        raise UserError(f"no guidance is best: of {rows['metric'].iloc[0]}, {better} is better")
    if len(sets) < 2:
        raise UserError(
            "--guidance best chooses the scale on one sample set and shows the others: "
            "evaluate with evaluation.sample_sets=2 or more"
        )
    first = rows[rows["sample_set"] == sets[0]]
    scales: dict[tuple[str, int], float] = {}
    for place, own in first.groupby(["method", "steps"], sort=False):
        by_scale = own.groupby("guidance")["value"].agg(["mean", "size"])
        whole = by_scale[by_scale["size"] == by_scale["size"].max()]["mean"]
        scales[place] = float(whole.idxmin() if better == "lower" else whole.idxmax())
    places = zip(rows["method"], rows["steps"], strict=True)
    wanted = [scales.get(place, math.nan) for place in places]
    kept = (rows["guidance"] == wanted) & (rows["sample_set"] != sets[0])
    *others, most = (f"{scale:g}" for scale in sorted(rows["guidance"].unique()))
    among = f"{', '.join(others)} and {most}" if others else f"{most} alone"
    return rows[kept].assign(selected_from=f"{among} on sample set {sets[0]}")


def _narrow(
    rows: pd.DataFrame,
    column: str,
    keep: "pd.Series[bool]",
    wanted: object,
    others: "pd.Series[bool] | bool" = False,
) -> pd.DataFrame:
    if len(rows) and not keep.any():
        choices = [str(v) for v in _distinct(rows[column])]
        message = f"no cells with {column} {wanted!r}{nearest(wanted, choices)}"
        raise UserError(f"{message} (choices: {', '.join(choices)})")
    return rows[keep | others]


def _refuse_doubles(runs: pd.DataFrame) -> None:
    """Two runs of one method and seed differ in something that is not in the labels."""
    doubled = runs[runs.duplicated(["method", "seed"], keep=False)]
    if len(doubled):
        method, seed = doubled["method"].iloc[0], doubled["seed"].iloc[0]
        keys = doubled.loc[(doubled["method"] == method) & (doubled["seed"] == seed), "key"]
        raise UserError(f"{method!r} has more than one run of seed {seed}: {_either(keys)}")


def _refuse_other_data(runs: pd.DataFrame) -> None:
    """Runs of one method, or with the same settings of their data, were trained on different data.

    Of runs of fewstep 0.2 it is not known.
    """
    known = runs[runs["data_sha256"].notna()]
    done = runs[runs["status"] == "done"]
    if (unknown := int(done["data_sha256"].isna().sum())) and len(known):
        what = "run is" if unknown == 1 else "runs are"
        warnings.warn(
            f"which data {unknown} {what} trained on is not recorded (data.json is missing, as "
            f"of fewstep 0.2): that they are those of the others is not checked",
            stacklevel=4,
        )
    for scope in (known["method"], which_data(known)):
        mixed = known[known.groupby(scope)["data_sha256"].transform("nunique") > 1]
        if len(mixed):
            same = mixed[scope[mixed.index] == scope[mixed.index[0]]].drop_duplicates("data_sha256")
            each = " and ".join(
                f"{sha256[:12]} (run {key}, {method}, seed {seed})"
                for sha256, key, method, seed in zip(
                    same["data_sha256"], same["key"], same["method"], same["seed"], strict=True
                )
            )
            raise UserError(
                f"a table holds runs on one version of the data {mixed['data'].iloc[0]}, got "
                f"{each}; train them again on one, or report them apart"
            )


def which_data(runs: pd.DataFrame) -> "pd.Series[str]":
    """Name and settings of the data of each run, which do not say where they are."""
    return runs["data"].fillna("") + " " + runs["data_settings"].fillna("")


def _refuse_mixtures(rows: pd.DataFrame, single: Sequence[str]) -> None:
    if rows["metric_id"].nunique() > 1:
        ids = dict(zip(rows["metric_id"], rows["metric"], strict=True))
        identities = " and ".join(f"{label} [{identity}]" for identity, label in ids.items())
        raise AmbiguousCells(f"a table holds one metric, got {identities}", "metric", list(ids))
    for column in single:
        if rows[column].nunique() > 1:
            kinds = _distinct(rows[column])
            raise AmbiguousCells(f"a table holds one {column}, got {_either(kinds)}", column, kinds)
    # A sampler belongs to its objective, so methods may differ in it; one method may not.
    for column, scope in (("sampler", ["method", "guidance"]), ("times", ["method", "steps"])):
        distinct = rows.drop_duplicates([*scope, column])
        mixed = distinct[distinct.duplicated(scope, keep=False)]
        if len(mixed):
            same = (mixed[scope] == mixed[scope].iloc[0]).all(axis=1)
            kinds = _distinct(mixed.loc[same, column])
            identities = f"{mixed['method'].iloc[0]!r} was evaluated with more than one {column}"
            raise AmbiguousCells(f"{identities}: {_either(kinds)}", column, kinds)


def _distinct(values: Iterable[object]) -> list[object]:
    return [value for value in dict.fromkeys(values) if not pd.isna(value)]  # type: ignore[call-overload]


def _either(values: Iterable[object]) -> str:
    return " and ".join(str(value) for value in _distinct(values))
