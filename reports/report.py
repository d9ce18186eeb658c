"""Everything of a sweep in one folder: tables, figures, the frame, and a page that shows them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Unpack

import pandas as pd

from fewstep.analysis.selection import Filters, select
from fewstep.analysis.summary import summarise
from fewstep.reports import tables
from fewstep.reports.grid import Samples
from fewstep.reports.page import page

FILES = (
    "report.md", "table.md", "table.csv", "table.tex", "table_preview.tex", "runs.csv",
    "runs.parquet",
    "fd_vs_nfe.png", "fd_vs_nfe.pdf", "samples.png", "samples.pdf",
)  # fmt: skip


def write_report(
    frame: pd.DataFrame, samples: Samples, out: Path, **filters: Unpack[Filters]
) -> dict[str, Path]:
    """Write the report of a frame into the folder ``out``; returns its files by name.

    All is computed before anything is written, and each file is renamed into place. The same
    frame and samples give the same bytes. Samples are shown where there are any that
    can be drawn: images, or points in the plane.

    Args:
        samples: arrays by (method, steps), as ``analysis.load_samples`` gives them.
        filters: which cells, as for ``analysis.summarise``.

    Raises:
        UserError: the frame's cells can not stand in one table.
    """
    from fewstep.reports import figures, grid

    summary = summarise(frame, **filters)
    samples = {place: array for place, array in samples.items() if grid.drawable(array)}
    curve = figures.fd_vs_nfe(summary)
    content: dict[str, str | bytes] = {
        "table.md": tables.markdown(summary),
        "table.csv": tables.csv(summary),
        "table.tex": tables.latex(summary),
        "table_preview.tex": tables.latex_document(),
        "runs.csv": frame.to_csv(index=False, lineterminator="\n"),
        "runs.parquet": frame.to_parquet(index=False, engine="pyarrow"),
        "report.md": page(summary, frame, select(frame, filters), bool(samples)),
        "fd_vs_nfe.png": figures.render(curve, "png"),
        "fd_vs_nfe.pdf": figures.render(curve, "pdf"),
    }
    if samples:
        shown = grid.sample_grid(summary, samples)
        content["samples.png"] = figures.render(shown, "png")
        content["samples.pdf"] = figures.render(shown, "pdf")
    out.mkdir(parents=True, exist_ok=True)
    written = {name: write_file(out / name, body) for name, body in content.items()}
    for name in set(FILES) - written.keys():  # of an earlier report, and no longer true
        (out / name).unlink(missing_ok=True)
    return written


def write_file(path: Path, content: str | bytes) -> Path:
    """Write ``content`` and rename it into place."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # mkstemp makes files private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
