"""Everything of a sweep in one folder: tables, figures, the frame, and pages that show them."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import pandas as pd

from fewstep.analysis.costs import costs as summarise_costs
from fewstep.analysis.selection import Filters, select
from fewstep.analysis.summary import summarise
from fewstep.files import replacing
from fewstep.reports import apart, costs, html, methods, provenance, tables
from fewstep.reports.drawn import drawn
from fewstep.reports.grid import Samples, drawable
from fewstep.reports.page import contents, page
from fewstep.reports.published import beside, published_of
from fewstep.reports.view import View

if TYPE_CHECKING:
    from fewstep.analysis.diagnostics import Curves

PER_DATA = (
    "report.md", "table.md", "table.csv", "table.tex", "table_preview.tex", "costs.md",
    "costs.csv", "costs.tex", "methods.md", "methods.tex", "provenance.json", "runs.csv",
    "runs.parquet",
    "fd_vs_nfe.png", "fd_vs_nfe.pdf", "fd_vs_compute.png", "fd_vs_compute.pdf", "seeds.png",
    "seeds.pdf", "samples.png", "samples.pdf",
)  # fmt: skip
FILES = ("report.html", *PER_DATA)  # and where there is something to show:
OPTIONAL = (
    "loss_vs_log_snr.png", "loss_vs_log_snr.pdf", "published.md", "published.csv", "published.tex",
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
        published: numbers of papers. "auto": beside ours where they measure the same; "none";
            or a data set's name: besides, those of this data set in a table of their own.
        filters: which cells, as for ``analysis.summarise``.

    Raises:
        UserError: the frame's cells can not stand in one table, or a choice is unknown.
    """
    sweep = " + ".join(frame["sweep"].unique())
    views = views_of(frame, samples, curves, baseline, published, filters)
    content: dict[str, str | bytes] = {}
    if len(views) == 1:
        content |= _files(views[0])
    else:
        folders = [provenance.identifier(view.data) for view in views]
        content["report.md"] = contents(sweep, views, folders)
        for folder, view in zip(folders, views, strict=True):
            content |= {f"{folder}/{name}": body for name, body in _files(view).items()}
    content["report.html"] = html.page(sweep, views, frame)
    for name in content:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
    written = {name: write_file(out / name, body) for name, body in content.items()}
    for place in {(out / name).parent for name in content}:
        clear(place, keep=set(written.values()))
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
) -> list[View]:
    """What there is to show of each data set; arguments and errors as for ``write_report``."""
    return [
        _view(name, part, samples, curves or {}, baseline, published, filters or {})
        for name, part in data_sets(frame).items()
    ]


def data_sets(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs of each data set, in the sweep's order; one part where none is known."""
    names = list(frame["data"].dropna().unique())
    if len(names) < 2:
        return {"".join(names): frame}
    return {str(name): frame[frame["data"] == name] for name in names}


def _view(
    data: str,
    frame: pd.DataFrame,
    samples: Samples,
    curves: Curves,
    baseline: str | None,
    published: str,
    filters: Filters,
) -> View:
    summary = summarise(frame, **filters)
    costs_of = summarise_costs(summary, frame, baseline, **filters)
    shown = drawn(summary, costs_of.baseline)
    cells = select(frame, filters)
    return View(
        data=data,
        summary=summary,
        drawn=shown,
        frame=frame,
        cells=cells,
        costs=costs_of,
        samples={
            place: array
            for place, array in samples.items()
            if place[0] in shown.methods and drawable(array)
        },
        methods=methods.paragraphs(summary, frame),
        origins=provenance.origins(summary, cells),
        published=beside(summary.conditions, published),
        apart=published_of(published),
        curves={m: curve for m, curve in curves.items() if m in shown.methods},
    )


def _files(view: View) -> dict[str, str | bytes]:
    """The files of one data set, but for report.html."""
    summary, theirs = view.summary, view.published
    figures = _figures(view)
    pictures: Sequence[str] = list(dict.fromkeys(Path(name).stem for name in figures))
    where = provenance.document(summary, view.frame, view.origins)
    theirs_apart: dict[str, str | bytes] = {}
    if view.apart:
        theirs_apart = {
            "published.md": apart.markdown(view.apart),
            "published.csv": apart.csv(view.apart),
            "published.tex": apart.latex(view.apart),
        }
    more = ["published"] if view.apart else []
    return {
        "table.md": tables.markdown(summary, theirs),
        "table.csv": tables.csv(summary),
        "table.tex": tables.latex(summary, theirs),
        "table_preview.tex": tables.latex_document("table", "costs", *more, "methods"),
        "costs.md": costs.markdown(summary, view.costs),
        "costs.csv": costs.csv(summary, view.costs),
        "costs.tex": costs.latex(summary, view.costs),
        "methods.md": methods.markdown(view.methods),
        "methods.tex": methods.latex(view.methods),
        "provenance.json": provenance.write(where),
        "runs.csv": frame_csv(view.frame),
        "runs.parquet": view.frame.to_parquet(index=False, engine="pyarrow"),
        "report.md": page(view, pictures),
        **figures,
        **theirs_apart,
    }


def frame_csv(frame: pd.DataFrame) -> bytes:
    """The frame as CSV: text quoted, a missing value empty. A tenth of the time pandas takes."""
    import pyarrow as pa
    import pyarrow.csv

    file = io.BytesIO()
    pa.csv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), file)
    return file.getvalue()


def _figures(view: View) -> Mapping[str, bytes]:
    """PNG and PDF of each that there is something to show in."""
    from fewstep.reports import diagnostics, figures, grid, multiples

    summary = view.drawn
    pictures = {
        "fd_vs_nfe": figures.fd_vs_nfe(summary),
        "fd_vs_compute": multiples.fd_vs_compute(summary, view.cells),
        "seeds": multiples.seed_plot(summary),
        "samples": grid.sample_grid(summary, view.samples) if view.samples else None,
        "loss_vs_log_snr": diagnostics.loss_vs_log_snr(view.curves) if view.curves else None,
    }
    files = {}
    for name, figure in pictures.items():
        if figure is not None:
            files[f"{name}.png"] = figures.render(figure, "png")
            figure.set_layout_engine("none")  # it is laid out by now: no need to do it again
            files[f"{name}.pdf"] = figures.render(figure, "pdf")
    return files


def write_file(path: Path, content: str | bytes) -> Path:
    """Write ``content`` and rename it into place."""
    with replacing(path) as other:
        other.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
