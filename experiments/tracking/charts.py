"""The charts of a sweep in MLflow: a view that its pages open by a key in the address.

MLflow's own layout is alphabetical: 60 charts for a sweep, of the first ten runs only. A layout
that a person has arranged is kept as a tag of the experiment, and ``?viewStateShareKey=KEY`` opens
it. We write two such tags, for methods and for single runs, in the form of MLflow 3.17's own
"share" button (``sharedViewState``); another version may show its own layout instead.
"""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.experiments.tracking.mlflow_private import view_tags

METHODS, RUNS = "fewstep", "fewstep-runs"  # averages over seeds; every run for itself
COLUMNS = 3  # of charts; a section of fewer has wider ones
METHOD_TAG = "fewstep.method"
PARAMS = 4  # in the parallel coordinates, beside three results: more cannot be read there
CURVES = ("loss", "validation_loss", "grad_norm")
COSTS = ("train_seconds", "steps_per_second", "images_per_second", "peak_memory_bytes")
Json = dict[str, Any]


@dataclass(frozen=True)
class ChartSpec:
    """What there is to draw: names as MLflow has them.

    Attributes:
        over_nfe: metrics that are curves over the number of network calls. over_training: those
            that are curves over the images seen. flat: the first of them,
            as a value for each number of calls that all finished runs have.
        hyperparameters: the params that differ between runs, and that all runs have.
    """

    over_nfe: Sequence[str]
    over_training: Sequence[str]
    flat: Sequence[str]
    hyperparameters: Sequence[str]


def chart_spec(runs: Iterable[tuple[Mapping[str, str], Sequence[str]]]) -> ChartSpec:
    """What there is to draw of runs, each given by its params and the names of its cells' values.

    The first metric, FD where there is one, is the one beside hyperparameters.
    """
    every = list(runs)
    names = [set(some) for _, some in every]
    over_nfe = {name for some in names for name in some if "_vs_nfe" in name}
    over_images = {name for some in names for name in some if "_vs_images" in name}
    first = sorted(over_nfe, key=lambda name: (not name.startswith(("fd_vs", "fid_vs")), name))
    metric = first[0].split("_vs_nfe")[0] if first else ""
    have = [{n for n in some if re.fullmatch(rf"{re.escape(metric)}_nfe_\d+", n)} for some in names]
    common = set.intersection(*(some for some in have if some)) if any(have) else set()
    flat = sorted(common, key=lambda name: int(name.rpartition("_")[2]))
    hyperparameters = [n for n in differing(params for params, _ in every) if n != "seed"]
    over_training = sorted(over_images, key=_by_number)
    return ChartSpec(first, over_training, flat, hyperparameters or ["seed"])


def _by_number(name: str) -> list[tuple[str, int]]:
    """A key that puts ``fd_nfe_4`` before ``fd_nfe_32``."""
    parts = re.findall(r"(\D+)(\d*)", name)
    return [(text, int(number or 0)) for text, number in parts]


def differing(params: Iterable[Mapping[str, str]]) -> list[str]:
    """The names that all have, with values that are not the same, in the order of the first."""
    every = list(params)
    shared = [name for name in (every[0] if every else {}) if all(name in p for p in every)]
    return [name for name in shared if len({p[name] for p in every}) > 1]


def as_written(text: str) -> str:
    """``text`` for a description, shown as it is: MLflow's pages take it for Markdown and HTML.

    Their Markdown is Showdown's, which keeps line breaks, and knows no backslash before < and &.
    """
    escaped = re.sub(r"([\\`*_\[\]#~|@])", r"\\\1", html.escape(text, quote=False))
    escaped = re.sub(r"(?m)^([ \t]*\d*)([-+=.])", r"\1\\\2", escaped)  # lists, rules, titles
    return re.sub(r"(?m)^[ \t]+", lambda indent: "&nbsp;" * len(indent[0].expandtabs(4)), escaped)


def tags(what: ChartSpec) -> dict[str, str]:
    """Of the experiment: both views."""
    return view_tags({key: layout(what, averaged=key == METHODS) for key in (METHODS, RUNS)})


def layout(what: ChartSpec, averaged: bool) -> Json:
    """The state of MLflow's page: sections of charts, ``averaged`` over seeds or of each run."""
    quality = {"Quality": [_line(name, log_x=True) for name in what.over_nfe]}
    parallel = {"Hyperparameters": [_parallel(what)] if what.flat else []}
    sections = {
        **(quality if averaged else parallel | quality),  # names cannot be averaged
        "Over training": [_line(name) for name in what.over_training],
        "Training": [_line(name) for name in CURVES],
        "Costs": [_bar(name) for name in COSTS],
    }
    charts = [
        {**chart, "uuid": f"{_uuid(section)}-{i}", "metricSectionId": _uuid(section)}
        for section, cards in sections.items()
        for i, chart in enumerate(cards)
    ]
    shown = [
        {**_section(name, name), "columns": min(len(cards), COLUMNS)}
        for name, cards in sections.items()
        if cards
    ]
    folded = [_section("rest", "Model metrics", False), _section("system", "System metrics", False)]
    keys = [{"mode": "tag", "groupByData": METHOD_TAG}]
    by_method = {"aggregateFunction": "average", "groupByKeys": keys}
    return {
        "searchFilter": "tags.`fewstep.role` = 'run'",
        # by anything but the start, else runs are folded below that of the sweep, and not drawn
        "orderByKey": f"metrics.`{what.flat[0]}`" if what.flat else "params.`seed`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": True,
        "groupBy": by_method if averaged else None,
        "isAccordionReordered": True,  # else the sections come by their names
        "compareRunCharts": charts,
        # what has no chart of its own comes last, folded
        "compareRunSections": [*shown, *folded],
    }


def _section(key: str, name: str, shown: bool = True) -> Json:
    identity = {"uuid": _uuid(key), "name": name, "display": shown}
    return {**identity, "isReordered": False, **_CARD}


def _uuid(section: str) -> str:
    return f"fewstep-{section.replace(' ', '-')}"


def _line(name: str, log_x: bool = False) -> Json:
    return _bar(name) | {
        "type": "LINE",
        "displayName": name.replace("_vs_nfe", " over network calls (NFE)") if log_x else name,
        "xAxisKey": "step",
        "xAxisScaleType": "log" if log_x else "linear",
        "scaleType": "log" if name.startswith(("fd", "fid")) else "linear",
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
        "lineSmoothness": 0,
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "range": {},
        "displayPoints": "_vs_" in name,
    }


def _parallel(what: ChartSpec) -> Json:
    return {
        "type": "PARALLEL",
        "selectedParams": list(what.hyperparameters[:PARAMS]),
        "selectedMetrics": [*what.flat[:-1][:2], what.flat[-1]],
        "showAllRuns": True,
        "displayName": "Hyperparameters and results",
        "runsCountToCompare": 1000,
        **_CARD,
    }


def _bar(name: str) -> Json:
    return {
        "type": "BAR",
        "metricKey": name,
        "selectedMetricKeys": [name],
        "displayName": name,
        "runsCountToCompare": 100,
        **_CARD,
    }


_CARD: Json = {"deleted": False, "isGenerated": False}
