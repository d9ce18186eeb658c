"""The page that shows a report: table, figures, costs, what failed, and where it all came from."""

from collections.abc import Collection, Sequence

import pandas as pd

from fewstep.analysis.filters import RUN
from fewstep.reports.content import methods, provenance
from fewstep.reports.content.captions import figure_caption
from fewstep.reports.content.formatting import markdown, markdown_table
from fewstep.reports.content.method_selection import note
from fewstep.reports.content.provenance import plain_rows
from fewstep.reports.content.report_data import ReportData
from fewstep.reports.tables import agreement, costs, guidance, published_table, quality
from fewstep.reports.tables.plain import failures

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
    "fd_over_training": (
        "Quality over training",
        "Means over seeds with their 95% intervals, at the training steps that were evaluated.",
    ),
    "fd_vs_guidance": (
        "Quality versus guidance scale",
        "Means over seeds with their 95% intervals; the same numbers are in the table of scales.",
    ),
    "seeds": ("Every seed", "A mark for each training seed; grey lines join what one seed gave."),
    "loss_vs_log_snr": (
        "Loss versus log-SNR",
        "The training loss of the EMA weights on held-out data. Its level is each objective's own: "
        "compare shapes.",
    ),
}


def page(view: ReportData, figures: Collection[str]) -> str:
    """Markdown that refers to the files which ``write_report`` puts beside it.

    ``figures``: the names of those that were drawn.
    """
    summary = view.summary
    metric = markdown(summary.conditions.metric or "Nothing evaluated yet")
    parts = [f"# {markdown(summary.sweep)}", "## " + metric]
    parts += [quality.markdown(summary, view.published).rstrip()]
    if view.apart:
        apart = published_table.table(view.apart, summary.conditions)
        text = published_table.markdown(view.apart, summary.conditions)
        parts += [f"## {markdown(apart.title)}", text.rstrip()]
    if view.agreements:
        orders = agreement.table(view.agreements)
        parts += [f"## {orders.title}", orders.markdown(), markdown(orders.note)]
    if view.over_guidance:
        scales = guidance.table(summary, view.over_guidance)
        parts += [f"## {markdown(scales.title)}", scales.markdown(), markdown(scales.note)]
    for name, (title, what) in FIGURES.items():
        if name in figures:
            shown = figure_caption(view.drawn) if name == "fd_vs_nfe" else what + note(view.drawn)
            parts += [f"## {title}", f"![{title.lower()}]({name}.png)", markdown(shown)]
    parts += ["## Costs", costs.markdown(summary, view.costs).rstrip()]
    parts.append("#" + methods.markdown(view.methods).rstrip())
    if summary.failures:
        table = failures(summary)
        parts += [f"## {table.title}", table.markdown()]
    parts += ["## Where this comes from", *_provenance(view.frame)]
    return "\n\n".join(parts) + "\n"


def contents(sweep: str, views: Sequence[ReportData], folders: Sequence[str]) -> str:
    """The page above those of several data sets."""
    lines = [f"- [{markdown(view.data)}]({folder}/report.md)"
             for view, folder in zip(views, folders, strict=True)]  # fmt: skip
    return "\n".join([f"# {markdown(sweep)}", "", *lines, ""])


def _provenance(frame: pd.DataFrame) -> list[str]:
    columns = ("key", "method", "seed", "status", "commit", "dirty", "lock", "job", "host")
    rows = [
        ["–" if value is None else str(value) for value in (*run, host if job is None else job)]
        for *run, job, host in plain_rows(frame.drop_duplicates(RUN), *columns)
    ]
    header = ("Run", "Method", "Seed", "Status", "Commit", "Dirty", "Packages", "Job or host")
    return [
        markdown(provenance.summary(frame)),
        markdown_table(header, rows),
        "Every run: [runs.csv](runs.csv). Every cell, with the command that makes it again: "
        "[provenance.json](provenance.json), or a click in [report.html](report.html).",
    ]
