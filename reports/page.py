"""The page that shows a report: table, figures, costs, what failed, and where it all came from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pandas as pd

from fewstep.analysis.selection import RUN
from fewstep.reports import apart, costs, methods, tables
from fewstep.reports.captions import figure_caption
from fewstep.reports.drawn import note
from fewstep.reports.html import origin
from fewstep.reports.provenance import plain_rows
from fewstep.reports.text import markdown
from fewstep.reports.view import View

FIGURES = {  # file, title, what it shows
    "fd_vs_nfe": ("Quality versus function evaluations", ""),
    "samples": (
        "Samples",
        "The first samples of one seed, from the same noise and labels in every tile; not chosen "
        "by eye.",
    ),
    "fd_vs_compute": (
        "Quality versus training compute",
        "Large markers: means over seeds; dots: single seeds.",
    ),
    "seeds": ("Every seed", "A mark for each training seed; grey lines join what one seed gave."),
    "loss_vs_log_snr": (
        "Loss versus log-SNR",
        "The training loss of the EMA weights on held-out data. Its level is each objective's own: "
        "compare shapes.",
    ),
}


def page(view: View, figures: Collection[str]) -> str:
    """Markdown that refers to the files which ``write_report`` puts beside it.

    ``figures``: the names of those that were drawn.
    """
    summary = view.summary
    metric = markdown(summary.conditions.metric or "Nothing evaluated yet")
    parts = [f"# {markdown(summary.sweep)}", "## " + metric]
    parts += [tables.markdown(summary, view.published).rstrip()]
    if view.apart:
        parts += [
            f"## {markdown(apart.title(view.apart))}",
            apart.markdown(view.apart).rstrip(),
        ]
    for name, (title, what) in FIGURES.items():
        if name in figures:
            shown = figure_caption(view.drawn) if name == "fd_vs_nfe" else what + note(view.drawn)
            parts += [f"## {title}", f"![{title.lower()}]({name}.png)", markdown(shown)]
    parts += ["## Costs", costs.markdown(summary, view.costs).rstrip()]
    parts.append("#" + methods.markdown(view.methods).rstrip())
    if summary.failures:
        rows = [(f.method, f.seed, f.kind, f.message, f.key) for f in summary.failures]
        header = ("Method", "Seed", "What", "Message", "Run")
        parts += ["## Failed and stopped runs", _table(header, rows)]
    parts += ["## Where this comes from", *_provenance(view.frame)]
    return "\n\n".join(parts) + "\n"


def contents(sweep: str, views: Sequence[View], folders: Sequence[str]) -> str:
    """The page above those of several data sets."""
    lines = [f"- [{markdown(view.data)}]({folder}/report.md)"
             for view, folder in zip(views, folders, strict=True)]  # fmt: skip
    return "\n".join([f"# {markdown(sweep)}", "", *lines, ""])


def _provenance(frame: pd.DataFrame) -> list[str]:
    told = ("key", "method", "seed", "status", "commit", "dirty", "lock", "job", "host")
    rows = [
        (*run, host if job is None else job)
        for *run, job, host in plain_rows(frame.drop_duplicates(RUN), *told)
    ]
    header = ("Run", "Method", "Seed", "Status", "Commit", "Dirty", "Packages", "Job or host")
    return [
        markdown(origin(frame)),
        _table(header, rows),
        "Every run: [runs.csv](runs.csv). Every cell, with the command that makes it again: "
        "[provenance.json](provenance.json), or a click in [report.html](report.html).",
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    body = [["–" if value is None else markdown(str(value)) for value in row] for row in rows]
    lines = [list(header), ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
