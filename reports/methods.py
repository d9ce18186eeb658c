"""The paragraph of a paper that says how the numbers were made, from what the runs recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import pandas as pd

from fewstep.analysis.records import Summary
from fewstep.analysis.selection import RUN
from fewstep.reports.captions import protocol
from fewstep.reports.text import enumerated, listed
from fewstep.reports.text import latex as escape_latex
from fewstep.reports.text import markdown as escape_markdown

Run = dict[Hashable, Any]


def markdown(paragraphs: Sequence[str]) -> str:
    """Paragraphs under one heading."""
    return "\n\n".join(["# Methods", *map(escape_markdown, paragraphs)]) + "\n"


def latex(paragraphs: Sequence[str]) -> str:
    r"""Paragraphs to be \\input."""
    told = "\n\n".join(map(escape_latex, paragraphs))
    return f"{{\\sloppy\n{told}\n\n}}\n"  # long names of settings do not hyphenate


def paragraphs(summary: Summary, frame: pd.DataFrame) -> list[str]:
    """Plain text: training, objectives, evaluation, statistics, software.

    ``frame`` holds the runs of the summary; what differs between methods is told for each.
    """
    runs = frame.drop_duplicates(RUN)
    parts = (
        _training(summary, runs),
        _objectives(summary, runs),
        _evaluation(summary),
        _statistics(summary),
        _software(runs),
    )
    return [" ".join(told) for part in parts if (told := list(part))]


def _training(summary: Summary, runs: pd.DataFrame) -> Iterator[str]:
    own = _one_of_each(runs)
    data, network = _shared(own, _with_settings("data")), _shared(own, _with_settings("backbone"))
    yield f"Training data: {data}. Network: {network}; {_parameters(runs)}."
    if runs["lr"].notna().any():
        told = [_shared(own, part) for part in (_adamw, _rate, _schedule, _clip, _dropout)]
        yield f"Optimisation: {', '.join(filter(None, told))}."
        yield f"{_shared(own, _budget)}."
        yield f"Weights averaged with EMA decay {_shared(own, _plain('ema'))}; precision " + (
            f"{_shared(own, _plain('precision'))}."
        )
    seeds = summary.conditions.seeds
    yield (
        f"Training seed{'s' if len(seeds) > 1 else ''}: {listed(seeds)}; of one seed, all "
        f"methods see the same order of the data and are sampled from the same noise and labels."
    )


def _parameters(runs: pd.DataFrame) -> str:
    counts = runs["parameters"].dropna()
    if counts.empty:
        return "parameters unknown"
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,} parameters" if low == high else f"{low:,} to {high:,} parameters"


def _with_settings(group: str) -> Callable[[Run], str]:
    def told(run: Run) -> str:
        name, settings = run[group], run[f"{group}_settings"]
        return _known(name) if _lacks(settings) else f"{name} ({settings})"

    return told


def _adamw(run: Run) -> str:
    betas = enumerated(str(run["betas"]).split())
    return f"AdamW with betas {betas}, eps {run['eps']:g}, weight decay {run['weight_decay']:g}"


def _rate(run: Run) -> str:
    return f"learning rate {run['lr']:g}"


def _schedule(run: Run) -> str:
    warmup = 0 if _lacks(run["warmup"]) else int(run["warmup"])
    first = f"linear warm-up over {warmup:,} steps, " if warmup else ""
    return f"{first}{run['schedule']} schedule"


def _clip(run: Run) -> str:
    return "no clipping" if _lacks(run["clip"]) else f"gradient norm clipped at {run['clip']:g}"


def _dropout(run: Run) -> str:
    share = run["label_dropout"]
    return "" if _lacks(share) or share == 0 else f"label dropout {share:g}"


def _budget(run: Run) -> str:
    if _lacks(run["planned_steps"]) or _lacks(run["batch_size"]):
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
                enumerated(list(among))
                or f"run{'s' * (len(teachers) > 1)} {enumerated(sorted(teachers))}"
            )
            told += f", taught by {who}"
        yield told + "."


def _evaluation(summary: Summary) -> Iterator[str]:
    c = summary.conditions
    if c.metric is None:
        return
    yield from protocol(summary)
    uniform = "in uniform steps from t_max to 0"
    yield f"Times {'but for those given above ' if c.given_times else ''}{uniform}."
    if c.extractor_sha256:
        yield f"Extractor {c.extractor}: weights of sha256 {c.extractor_sha256}."


def _statistics(summary: Summary) -> Iterator[str]:
    if len(summary.conditions.seeds) < 2:
        yield "One training seed: nothing is known of the spread."
        return
    yield "Means over training seeds with the half-width of the 95% Student-t interval."
    if summary.tested:
        yield (
            "At each number of steps all pairs of methods are compared by two-sided t-tests on the "
            "logarithms of the ratios, paired by seed (on the differences where a value is not "
            "positive); p-values are adjusted by Holm's method over all pairs and numbers of steps "
            f"of the table, at level {summary.alpha:g}."
        )
    else:
        yield "No methods are tested against each other."
    yield "Runs that failed or were ended early stay in the table and enter no mean."


def _software(runs: pd.DataFrame) -> Iterator[str]:
    versions = [f"{name} {enumerated(found)}" for name in ("fewstep", "torch", "python")
                if (found := _distinct(runs, name))]  # fmt: skip
    versions += [f"commit {commit}" for commit in _distinct(runs, "commit")]
    versions += [f"packages {lock}" for lock in _distinct(runs, "lock")]
    if versions:
        yield f"Software: {', '.join(versions)}."
    dirty = int(runs["dirty"].fillna(False).sum())
    if dirty:
        yield f"{dirty} of {len(runs)} runs were made from a tree with uncommitted changes."
    if devices := _distinct(runs, "device"):
        processes = enumerated(_distinct(runs, "processes"))
        yield f"Hardware: {enumerated(devices)}, {processes} process(es) a run."


def _shared(runs: Sequence[Run], told: Callable[[Run], str]) -> str:
    """What most methods have in common, and which have something else."""
    own = {str(run["method"]): told(run) for run in runs}
    (common, _), *others = Counter(own.values()).most_common()
    rest = [f"{value or 'none'} for {enumerated([m for m, v in own.items() if v == value])}"
            for value, _ in others]  # fmt: skip
    return f"{common} ({'; '.join(rest)})" if rest else common


def _one_of_each(runs: pd.DataFrame) -> list[Run]:
    """A run of each method, one whose configuration is known where there is one."""
    order = {method: i for i, method in enumerate(runs["method"].unique())}
    known = runs.sort_values("lr", na_position="last", kind="stable").drop_duplicates("method")
    return sorted(known.to_dict("records"), key=lambda run: order[run["method"]])


def _plain(column: str) -> Callable[[Run], str]:
    return lambda run: _known(run[column])


def _lacks(value: Any) -> bool:
    return bool(pd.isna(value))


def _known(value: Any) -> str:
    if _lacks(value):
        return "unknown"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _distinct(runs: pd.DataFrame, column: str) -> Sequence[str]:
    return [str(value) for value in runs[column].dropna().unique()]
