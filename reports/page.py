"""The page that shows a report: table, figures, costs, what failed, and where it all came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from fewstep.analysis.records import Summary
from fewstep.reports import tables
from fewstep.reports.captions import figure_caption
from fewstep.reports.text import markdown, number


def page(summary: Summary, frame: pd.DataFrame, cells: pd.DataFrame, with_samples: bool) -> str:
    """Markdown that refers to the files which ``write_report`` puts beside it.

    ``frame`` holds all runs of the sweep, ``cells`` the rows that the summary is made of.
    """
    metric = markdown(summary.conditions.metric or "Nothing evaluated yet")
    parts = [f"# {markdown(summary.sweep)}", "## " + metric, tables.markdown(summary).rstrip()]
    parts += [
        "## Quality versus function evaluations",
        "![metric versus NFE](fd_vs_nfe.png)",
        markdown(figure_caption(summary)),
    ]
    if with_samples:
        parts += [
            "## Samples",
            "![samples](samples.png)",
            "The first samples of one seed, from the same noise and labels in every tile; not "
            "chosen by eye.",
        ]
    parts += ["## Costs", _costs(summary, cells)]
    if summary.failures:
        rows = [(f.method, f.seed, f.kind, f.message, f.key) for f in summary.failures]
        header = ("Method", "Seed", "Failure", "Message", "Run")
        parts += ["## Failures", _table(header, rows)]
    parts += ["## Where this comes from", *_provenance(frame)]
    return "\n\n".join(parts) + "\n"


def _costs(summary: Summary, cells: pd.DataFrame) -> str:
    """Means over the runs in the table; sampling speed per number of steps."""
    rows = []
    by_method = dict(iter(cells.drop_duplicates(["sweep", "key"]).groupby("method", sort=False)))
    speed = cells.groupby(["method", "steps"], sort=False)["sample_images_per_second"]
    by_place, nothing = dict(iter(speed)), cells["sample_images_per_second"].iloc[:0]
    for method in summary.methods:
        runs = by_method.get(method, cells.iloc[:0])
        speeds = [_mean(by_place.get((method, s), nothing)) for s in summary.steps]
        rows.append((
            method, _mean(runs["parameters"], "{:,.0f}"), _mean(runs["train_steps"], "{:,.0f}"),
            _mean(runs["images_seen"], "{:,.0f}"), _mean(runs["train_seconds"]),
            _mean(runs["steps_per_second"]), _mean(runs["peak_memory_bytes"] / 2**20, "{:,.0f}"),
            *speeds,
        ))  # fmt: skip
    header = ("Method", "Parameters", "Training steps", "Images seen", "Training (s)", "Steps/s",
              "Peak memory (MiB)", *(f"Images/s at {s}" for s in summary.steps))  # fmt: skip
    return _table(header, rows)


def _mean(values: pd.Series[Any], form: str = "") -> str:
    mean: Any = values.astype("Float64").mean()
    if pd.isna(mean):
        return "–"
    return form.format(float(mean)) if form else number(float(mean))


def _provenance(frame: pd.DataFrame) -> list[str]:
    runs = frame.drop_duplicates(["sweep", "key"])
    commits = [str(c) for c in runs["commit"].dropna().unique()]
    hosts = [str(h) for h in runs["host"].dropna().unique()]
    dirty = int(runs["dirty"].fillna(False).sum())
    facts = f"Commits: {markdown(', '.join(commits) or 'unknown')}. "
    facts += f"Hosts: {markdown(', '.join(hosts) or 'unknown')}. "
    facts += f"Runs from a tree with uncommitted changes: {dirty} of {len(runs)}."
    rows = [
        (run["key"], run["method"], run["seed"], run["status"], run["commit"], run["dirty"],
         run["host"])
        for run in runs.to_dict("records")
    ]  # fmt: skip
    header = ("Run", "Method", "Seed", "Status", "Commit", "Dirty", "Host")
    return [facts, _table(header, rows), "Every cell: [runs.csv](runs.csv)."]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    body = [["–" if pd.isna(value) else markdown(str(value)) for value in row] for row in rows]
    lines = [list(header), ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
