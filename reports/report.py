"""Everything of a sweep in one folder: tables, figures, the frame, and pages that show them."""

import io
import re
from collections.abc import Collection
from pathlib import Path
from typing import Unpack

import pandas as pd

from fewstep.analysis.agreement import agreements
from fewstep.analysis.costs import costs as summarise_costs
from fewstep.analysis.filters import Filters, select
from fewstep.analysis.guidance import over_guidance
from fewstep.analysis.over_training import over_training
from fewstep.analysis.statistics import Curves
from fewstep.analysis.summary import summarise
from fewstep.analysis.summary_types import Samples
from fewstep.files import write_file
from fewstep.reports.content import methods, provenance
from fewstep.reports.content.method_selection import drawn
from fewstep.reports.content.published import apart, beside
from fewstep.reports.content.report_data import ReportData
from fewstep.reports.figures.image_grid import drawable
from fewstep.reports.html import page as html
from fewstep.reports.markdown_page import contents, page
from fewstep.reports.tables import agreement, costs, guidance, plain, published_table, quality

KINDS = ("png", "pdf")
FIGURES = (
    "fd_vs_nfe", "fd_vs_compute", "seeds", "samples", "loss_vs_log_snr", "fd_over_training",
    "fd_vs_guidance",
)  # fmt: skip
FILES = (
    "report.html", "report.md", "table.md", "table.csv", "table.tex", "table_preview.tex",
    "costs.md", "costs.csv", "costs.tex", "methods.md", "methods.tex", "provenance.json",
    "runs.csv", "runs.parquet", *(f"{name}.{kind}" for name in FIGURES[:4] for kind in KINDS),
)  # fmt: skip
OPTIONAL = (  # where there is something to show
    *(f"{name}.{kind}" for name in FIGURES[4:] for kind in KINDS),
    "published.md", "published.csv", "published.tex", "guidance.md", "guidance.csv", "guidance.tex",
    "agreement.md", "agreement.csv",
)  # fmt: skip


def write_report(
    frame: pd.DataFrame,
    samples: Samples,
    out: Path,
    *,
    curves: Curves | None = None,
    baseline: str | None = None,
    published: str = "auto",
    **filters: Unpack[Filters],
) -> dict[str, Path]:
    """Write the report of a frame into the folder ``out``; returns its files by name.

    All is computed before anything is written, and each file is renamed into place. The same
    arguments give the same bytes. A sweep over several data sets has a folder for each, and one
    ``report.html``: what was measured on different data is in no common table.

    Args:
        samples: arrays by (method, steps), as ``analysis.load_samples`` gives them; those that
            can be drawn (images, points in the plane) are shown.
        curves: held-out loss by log-SNR, as ``analysis.diagnostics.loss_curves`` gives it.
        baseline: the method that costs are compared with; the first by default.
        published: numbers of papers. "auto": beside ours where all conditions agree, the others of
            the data set in a table of their own; "none"; or a data set's name: those of it.
        filters: which cells, as for ``analysis.summarise``.

    Raises ``UserError``: the frame's cells can not stand in one table, or a choice is unknown.
    """
    sweep = " + ".join(frame["sweep"].unique())
    views = views_of(frame, samples, curves, baseline, published, filters)
    content: dict[str, str | bytes] = {}
    if len(views) == 1:
        content |= _files(views[0])
    else:
        folders = [re.sub(r"[^A-Za-z0-9]+", "-", view.data).strip("-") or "x" for view in views]
        content["report.md"] = contents(sweep, views, folders)
        for folder, view in zip(folders, views, strict=True):
            content |= {f"{folder}/{name}": body for name, body in _files(view).items()}
    content["report.html"] = html.page(sweep, views, frame)
    for name in content:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
    written = {name: write_file(out / name, body) for name, body in content.items()}
    for directory in {(out / name).parent for name in content}:
        clear(directory, keep=set(written.values()))
    return written


def clear(folder: Path, keep: Collection[Path] = ()) -> None:
    """Remove the files of an earlier report, which are no longer true."""
    for name in (*FILES, *OPTIONAL):
        if folder / name not in keep:
            (folder / name).unlink(missing_ok=True)


def views_of(
    frame: pd.DataFrame,
    samples: Samples,
    curves: Curves | None = None,
    baseline: str | None = None,
    published: str = "auto",
    filters: Filters | None = None,
) -> list[ReportData]:
    """What there is to show of each data set; arguments and errors as for ``write_report``."""
    views, filters = [], filters or {}
    for name, part in data_sets(frame).items():
        summary, cells = summarise(part, **filters), select(part, filters)
        costs_of = summarise_costs(summary, part, baseline, **filters)
        shown = drawn(summary, costs_of.baseline)
        views.append(
            ReportData(
                data=name,
                summary=summary,
                drawn=shown,
                frame=part,
                cells=cells,
                costs=costs_of,
                samples={key: array for key, array in samples.items()
                         if key[0] in shown.methods and drawable(array)},
                methods=methods.paragraphs(summary, part),
                origins=provenance.origins(summary, cells),
                published=beside(summary.conditions, published),
                apart=apart(summary.conditions, published, summary.steps),
                agreements=agreements(part, cells),
                over_training=over_training(part, cells),
                over_guidance=over_guidance(part, cells),
                curves={m: curve for m, curve in (curves or {}).items() if m in shown.methods},
            )
        )  # fmt: skip
    return views


def data_sets(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs of each data set, in the sweep's order; one part where none is known."""
    names = list(frame["data"].dropna().unique())
    if len(names) < 2:
        return {"".join(names): frame}
    return {str(name): frame[frame["data"] == name] for name in names}


def _files(view: ReportData) -> dict[str, str | bytes]:
    """The files of one data set, but for report.html."""
    summary, theirs, others = view.summary, view.published, view.apart
    figures = _figures(view)
    inputs = ("table", "costs", *(["published"] if others else []),
              *(["guidance"] if view.over_guidance else []), "methods")  # fmt: skip
    files: dict[str, str | bytes] = {
        "table.md": quality.markdown(summary, theirs),
        "table.csv": quality.csv(summary),
        "table.tex": quality.latex(summary, theirs),
        "table_preview.tex": plain.latex_document(*inputs),
        "costs.md": costs.markdown(summary, view.costs),
        "costs.csv": costs.csv(summary, view.costs),
        "costs.tex": costs.latex(summary, view.costs),
        "methods.md": methods.markdown(view.methods),
        "methods.tex": methods.latex(view.methods),
        "provenance.json": provenance.write(provenance.document(summary, view.frame, view.origins)),
        "runs.csv": frame_csv(view.frame),
        "runs.parquet": view.frame.to_parquet(index=False, engine="pyarrow"),
        "report.md": page(view, dict.fromkeys(Path(name).stem for name in figures)),
        **figures,
    }
    if others:
        ours = summary.conditions
        files["published.md"] = published_table.markdown(others, ours)
        files["published.csv"] = published_table.csv(others, ours)
        files["published.tex"] = published_table.latex(others, ours)
    if view.agreements:
        files["agreement.md"] = agreement.markdown(view.agreements)
        files["agreement.csv"] = agreement.csv(view.agreements)
    if view.over_guidance:
        files["guidance.md"] = guidance.markdown(summary, view.over_guidance)
        files["guidance.csv"] = guidance.csv(view.over_guidance)
        files["guidance.tex"] = guidance.latex(summary, view.over_guidance)
    return files


def frame_csv(frame: pd.DataFrame) -> bytes:
    """The frame as CSV: text quoted, a missing value empty. A tenth of the time pandas takes."""
    import pyarrow as pa
    import pyarrow.csv

    file = io.BytesIO()
    pa.csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), file)
    return file.getvalue()


def _figures(view: ReportData) -> dict[str, bytes]:
    """Each figure that there is something to show in, as PNG and PDF."""
    from fewstep.reports.figures import chart_data, drawing, sample_grid  # which import matplotlib

    summary = view.drawn
    pictures = (
        drawing.fd_vs_nfe(summary),
        drawing.fd_vs_compute(summary, view.cells),
        drawing.seed_plot(summary),
        sample_grid.sample_grid(summary, view.samples) if view.samples else None,
        drawing.curves(*chart_data.loss(view.curves, summary.methods)) if view.curves else None,
        drawing.panels(summary, chart_data.over_training(summary, view.over_training)),
        drawing.panels(summary, chart_data.over_guidance(summary, view.over_guidance)),
    )
    files = {}
    for name, figure in zip(FIGURES, pictures, strict=True):
        if figure is not None:
            files[f"{name}.png"] = drawing.render(figure, "png")
            figure.set_layout_engine("none")  # it is laid out by now: no need to do it again
            files[f"{name}.pdf"] = drawing.render(figure, "pdf")
    return files
