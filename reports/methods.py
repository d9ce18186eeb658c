"""The paragraph of a paper that says how the numbers were made, from what the runs recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from fewstep.analysis.records import Summary
from fewstep.reports.captions import joined, protocol
from fewstep.reports.text import latex as escape_latex
from fewstep.reports.text import markdown as escape_markdown


def markdown(summary: Summary, frame: pd.DataFrame) -> str:
    """Paragraphs under one heading."""
    told = paragraphs(summary, frame)
    return "\n\n".join(["# Methods", *map(escape_markdown, told)]) + "\n"


def latex(summary: Summary, frame: pd.DataFrame) -> str:
    r"""Paragraphs to be \\input."""
    return "\n\n".join(map(escape_latex, paragraphs(summary, frame))) + "\n"


def paragraphs(summary: Summary, frame: pd.DataFrame) -> list[str]:
    """Plain text: training, objectives, evaluation, statistics, software.

    ``frame`` holds the runs of the summary; what differs between methods is told for each.
    """
    runs = frame.drop_duplicates("key")
    written = [_training, _objectives, _evaluation, _statistics, _software]
    return [" ".join(told) for part in written if (told := list(part(summary, runs)))]


def _training(summary: Summary, runs: pd.DataFrame) -> Iterator[str]:
    data, network = _shared(runs, _with_settings("data")), _shared(runs, _with_settings("backbone"))
    yield f"Training data: {data}. Network: {network}; {_parameters(runs)}."
    if runs["lr"].notna().any():
        told = [_shared(runs, part) for part in (_adamw, _rate, _schedule, _clip, _dropout)]
        yield f"Optimisation: {', '.join(filter(None, told))}."
        yield f"{_shared(runs, _budget)}."
        yield f"Weights averaged with EMA decay {_shared(runs, _plain('ema'))}; precision " + (
            f"{_shared(runs, _plain('precision'))}."
        )
    seeds = [str(s) for s in summary.conditions.seeds]
    yield (
        f"Training seed{'s' if len(seeds) > 1 else ''}: {joined(seeds)}; of one seed, all methods "
        f"see the same order of the data and are sampled from the same noise and labels."
    )


def _parameters(runs: pd.DataFrame) -> str:
    counts = runs["parameters"].dropna()
    if counts.empty:
        return "parameters unknown"
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,} parameters" if low == high else f"{low:,} to {high:,} parameters"


def _with_settings(group: str) -> Callable[[pd.Series[Any]], str]:
    def told(run: pd.Series[Any]) -> str:
        name, settings = run[group], run[f"{group}_settings"]
        return _known(name) if pd.isna(settings) else f"{name} ({settings})"

    return told


def _adamw(run: pd.Series[Any]) -> str:
    betas = joined(str(run["betas"]).split())
    return f"AdamW with betas {betas}, eps {run['eps']:g}, weight decay {run['weight_decay']:g}"


def _rate(run: pd.Series[Any]) -> str:
    return f"learning rate {run['lr']:g}"


def _schedule(run: pd.Series[Any]) -> str:
    warmup = 0 if pd.isna(run["warmup"]) else int(run["warmup"])
    first = f"linear warm-up over {warmup:,} steps, " if warmup else ""
    return f"{first}{run['schedule']} schedule"


def _clip(run: pd.Series[Any]) -> str:
    return "no clipping" if pd.isna(run["clip"]) else f"gradient norm clipped at {run['clip']:g}"


def _dropout(run: pd.Series[Any]) -> str:
    return f"label dropout {run['label_dropout']:g}" if run["label_dropout"] else ""


def _budget(run: pd.Series[Any]) -> str:
    if pd.isna(run["planned_steps"]) or pd.isna(run["batch_size"]):
        return "Budget unknown"
    steps, batch = int(run["planned_steps"]), int(run["batch_size"])
    return f"{steps:,} steps of {batch:,} images ({steps * batch:,} images)"


def _objectives(summary: Summary, runs: pd.DataFrame) -> Iterator[str]:
    for method, own in runs.groupby("method", sort=False):
        settings = list(own["objective_settings"].dropna().unique())
        told = f"{method}: objective {_known(own['objective'].iloc[0])}"
        told += f" ({'; '.join(settings)})" if settings else ""
        if method in summary.two_phase:
            teachers = set(own["teacher"].dropna())
            among = runs.loc[runs["key"].isin(teachers), "method"].unique()
            who = (
                joined(list(among)) or f"run{'s' * (len(teachers) > 1)} {joined(sorted(teachers))}"
            )
            told += f", taught by {who}"
        yield told + "."


def _evaluation(summary: Summary, runs: pd.DataFrame) -> Iterator[str]:
    c = summary.conditions
    if c.metric is None:
        return
    yield from protocol(summary, c)
    uniform = "in uniform steps from t_max to 0"
    yield f"Times {'but for those given above ' if c.given_times else ''}{uniform}."
    if c.extractor_sha256:
        yield f"Extractor {c.extractor}: weights of sha256 {c.extractor_sha256}."


def _statistics(summary: Summary, runs: pd.DataFrame) -> Iterator[str]:
    if len(summary.conditions.seeds) < 2:
        yield "One training seed: nothing is known of the spread."
        return
    yield (
        "Means over training seeds with the half-width of the 95% Student-t interval. Each method "
        "is compared with the best of its column by a two-sided t-test on the logarithms of the "
        "ratios, paired by seed; p-values are adjusted by Holm's method over the numbers of steps, "
        f"at level {summary.alpha:g}. Runs that failed or were ended early stay in the table and "
        "enter no mean."
    )


def _software(summary: Summary, runs: pd.DataFrame) -> Iterator[str]:
    versions = [f"{name} {joined(found)}" for name in ("fewstep", "torch", "python")
                if (found := _distinct(runs, name))]  # fmt: skip
    versions += [f"commit {commit}" for commit in _distinct(runs, "commit")]
    versions += [f"packages {lock}" for lock in _distinct(runs, "lock")]
    if versions:
        yield f"Software: {', '.join(versions)}."
    dirty = int(runs["dirty"].fillna(False).sum())
    if dirty:
        yield f"{dirty} of {len(runs)} runs were made from a tree with uncommitted changes."
    if devices := _distinct(runs, "device"):
        processes = joined(_distinct(runs, "processes"))
        yield f"Hardware: {joined(devices)}, {processes} process(es) a run."


def _shared(runs: pd.DataFrame, told: Callable[[pd.Series[Any]], str]) -> str:
    """What most methods have in common, and which have something else."""
    own = {str(m): told(runs.iloc[i]) for m, i in _first_of_each(runs)}
    (common, _), *others = Counter(own.values()).most_common()
    rest = [f"{value or 'none'} for {joined([m for m, v in own.items() if v == value])}"
            for value, _ in others]  # fmt: skip
    return f"{common} ({'; '.join(rest)})" if rest else common


def _first_of_each(runs: pd.DataFrame) -> Iterator[tuple[Any, int]]:
    """Each method and the place of a run of it whose configuration is known, where there is one."""
    for method, rows in runs.reset_index(drop=True).groupby("method", sort=False):
        known = rows[rows["lr"].notna()]
        yield method, int((known if len(known) else rows).index[0])


def _plain(column: str) -> Callable[[pd.Series[Any]], str]:
    return lambda run: _known(run[column])


def _known(value: Any) -> str:
    if pd.isna(value):
        return "unknown"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _distinct(runs: pd.DataFrame, column: str) -> Sequence[str]:
    return [str(value) for value in runs[column].dropna().unique()]
