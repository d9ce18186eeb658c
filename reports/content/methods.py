"""The paragraph of a paper that says how the numbers were made, from what the runs recorded."""

import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from fewstep.analysis.filters import RUN
from fewstep.analysis.summary_types import Summary
from fewstep.reports.content.captions import budget, measured
from fewstep.reports.content.formatting import enumerated, listed
from fewstep.reports.content.formatting import latex as escape_latex
from fewstep.reports.content.formatting import markdown as escape_markdown

Run = dict[Hashable, Any]
OPTIMISERS = {"adam": "Adam", "adamw": "AdamW", "muon": "Muon", "radam": "RAdam"}


def markdown(paragraphs: Sequence[str]) -> str:
    """Paragraphs under one heading."""
    return "\n\n".join(["# Methods", *map(escape_markdown, paragraphs)]) + "\n"


def latex(paragraphs: Sequence[str]) -> str:
    r"""Paragraphs to be \\input."""
    text = "\n\n".join(map(escape_latex, paragraphs))
    hexadecimal = r"(?<![0-9a-f])[0-9a-f]{32,}(?![0-9a-f])"  # longer than a narrow column
    text = re.sub(hexadecimal, lambda m: r"\allowbreak ".join(re.findall(".{1,8}", m[0])), text)
    return f"{{\\sloppy\n{text}\n\n}}\n"  # long names of settings do not hyphenate


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
    return [" ".join(sentences) for part in parts if (sentences := list(part))]


def _training(summary: Summary, runs: pd.DataFrame) -> Iterator[str]:
    # a run of each method, one whose configuration is known where there is one
    known = runs.sort_values("lr", kind="stable").drop_duplicates("method").set_index("method")
    methods = runs["method"].unique()
    described = map(_described, known.loc[methods].to_dict("records"))
    data, network, budget, ema, precision, *optimisation = (
        _shared(dict(zip(methods, texts, strict=True))) for texts in zip(*described, strict=True)
    )
    counts = runs["parameters"].dropna()
    low_and_high = dict.fromkeys(f"{int(n):,}" for n in (counts.min(), counts.max()) if len(counts))
    parameters = f"{' to '.join(low_and_high)} parameters" if len(counts) else "parameters unknown"
    yield f"Training data: {data}. Network: {network}; {parameters}."
    if runs["lr"].notna().any():
        yield f"Optimisation: {', '.join(filter(None, optimisation))}."
        yield f"{budget}."
        yield f"Weights averaged with EMA decay {ema}; precision {precision}."
    seeds = summary.conditions.seeds
    yield (
        f"Training seed{'s' if len(seeds) > 1 else ''}: {listed(seeds)}; of one seed, all "
        f"methods see the same order of the data and are sampled from the same noise and labels."
    )


def _described(run: Run) -> list[str]:
    """Data, network, budget, averaging, precision; optimiser and all that belongs to it."""
    betas, warmup, clip = enumerated(str(run["betas"]).split()), run["warmup"], run["clip"]
    first = "" if _lacks(warmup) or not warmup else f"linear warm-up over {int(warmup):,} steps, "
    start, augment = run["decay_from"], run["augment"]
    others = {"auxiliary module": run["auxiliary_lr"], "companion": run["companion_lr"]}
    dropout, steps, batch = run["label_dropout"], run["planned_steps"], run["batch_size"]
    unknown = _lacks(steps) or _lacks(batch)
    return [
        *(_known(run[group]) if _lacks(run[f"{group}_settings"])
          else f"{run[group]} ({run[f'{group}_settings']})" for group in ("data", "backbone")),
        "Budget unknown" if unknown
        else f"{steps:,} steps of {batch:,} images ({steps * batch:,} images)",
        _known(run["ema"]) + (" without warm-up" if run["ema_warmup"] is False else ""),
        _known(run["precision"]),
        f"{_optimiser(run['optimiser'])} with betas {betas}, eps {run['eps']:g}, "
        f"weight decay {run['weight_decay']:g}",
        f"learning rate {run['lr']:g}"
        + "".join(f" and {lr:g} of the {of}" for of, lr in others.items() if not _lacks(lr)),
        f"{first}{run['schedule']} schedule"
        + ("" if _lacks(start) else f" from step {int(start):,}"),
        "no clipping" if _lacks(clip) else f"gradient norm clipped at {clip:g}",
        "" if _lacks(dropout) or dropout == 0 else f"label dropout {dropout:g}",
        "horizontal flips" if run["flip"] is True else "",
        "" if _lacks(augment) or augment == 0
        else f"EDM's augmentation with probability {augment:g}",
    ]  # fmt: skip


def _optimiser(value: Any) -> str:
    name, *settings = ("adamw" if _lacks(value) else str(value)).split(" ", 1)
    return " ".join([OPTIMISERS.get(name, name), *settings])


def _objectives(summary: Summary, runs: pd.DataFrame) -> Iterator[str]:
    for method, own in runs.groupby("method", sort=False):
        settings = list(own["objective_settings"].dropna().unique())
        text = f"{method}: objective {_known(own['objective'].iloc[0])}"
        text += f" ({'; '.join(settings)})" if settings else ""
        if method in summary.two_phase:
            teachers = sorted(set(own["teacher"].dropna()))
            among = list(runs.loc[runs["key"].isin(teachers), "method"].unique())
            keys = f"run{'s' * (len(teachers) > 1)} {enumerated(teachers)}"
            asks = own["taught"].fillna(True).any()  # what is not recorded was a distillation
            how = "taught by" if asks else "from the weights of"
            text += f", {how} {enumerated(among) or keys}"
        yield text + "."


def _evaluation(summary: Summary) -> Iterator[str]:
    c = summary.conditions
    if c.metric is None:
        return
    yield from [*measured(summary), *budget(summary)]
    uniform = "in uniform steps from t_max to 0"
    yield f"Times {'but for those given above ' if c.given_times else ''}{uniform}."
    if c.extractor_sha256:
        yield f"Extractor {c.extractor}: weights of sha256 {c.extractor_sha256}."


def _statistics(summary: Summary) -> Iterator[str]:
    if len(summary.conditions.seeds) < 2:
        yield "One training seed: nothing is known of the spread."
        return
    yield "Means over training seeds with the half-width of the 95% Student-t interval."
    yield (
        "At each number of steps all pairs of methods are compared by two-sided t-tests on the "
        "logarithms of the ratios, paired by seed (on the differences where a value is not "
        "positive); p-values are adjusted by Holm's method over all pairs and numbers of steps "
        f"of the table, at level {summary.alpha:g}."
        if summary.tested
        else "No methods are tested against each other."
    )
    yield "Runs that failed or were ended early stay in the table and enter no mean."


def _software(runs: pd.DataFrame) -> Iterator[str]:
    versions = [f"{name} {enumerated(values)}" for name in ("fewstep", "torch", "python")
                if (values := _distinct(runs, name))]  # fmt: skip
    versions += [f"commit {commit}" for commit in _distinct(runs, "commit")]
    versions += [f"packages {lock}" for lock in _distinct(runs, "lock")]
    if versions:
        yield f"Software: {', '.join(versions)}."
    if dirty := int(runs["dirty"].fillna(False).sum()):
        yield f"{dirty} of {len(runs)} runs were made from a tree with uncommitted changes."
    if devices := _distinct(runs, "device"):
        processes = enumerated(_distinct(runs, "processes"))
        yield f"Hardware: {enumerated(devices)}, {processes} process(es) a run."


def _shared(own: Mapping[str, str]) -> str:
    """What most methods have in common, and which have something else."""
    (common, _), *others = Counter(own.values()).most_common()
    rest = [f"{value or 'none'} for {enumerated([m for m, v in own.items() if v == value])}"
            for value, _ in others]  # fmt: skip
    if not common:
        return "; ".join(rest)
    return f"{common} ({'; '.join(rest)})" if rest else common


def _lacks(value: Any) -> bool:
    return bool(pd.isna(value))


def _known(value: Any) -> str:
    if _lacks(value):
        return "unknown"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _distinct(runs: pd.DataFrame, column: str) -> Sequence[str]:
    return [str(value) for value in runs[column].dropna().unique()]
