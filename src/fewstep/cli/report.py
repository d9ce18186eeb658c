"""``fewstep report``, and sweeps by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.cli.console import out
from fewstep.errors import UserError, unknown
from fewstep.experiments.rundir import SweepDirectory, find_sweeps


def report(
    directory: SweepDirectory,
    output: Path | None,
    filters: dict[str, Any] | None = None,
    stopped: bool = False,
    baseline: str | None = None,
    published: str = "auto",
) -> None:
    """``fewstep report``: print the table of each data set, write the files, name them.

    ``filters`` choose among cells, as in ``analysis.summarise``; None is no choice. ``stopped``:
    count runs that a search ended early. ``baseline``, ``published``: as in ``write_report``.
    """
    from fewstep.analysis import load, load_samples, summarise
    from fewstep.analysis.diagnostics import diagnosed_runs, loss_curves
    from fewstep.analysis.samples import Samples
    from fewstep.reports import terminal
    from fewstep.reports.published import beside
    from fewstep.reports.report import data_sets, write_report

    chosen: Any = {name: value for name, value in (filters or {}).items() if value is not None}
    frame = load(directory, stopped)
    samples: Samples = {}
    for part in data_sets(frame).values():
        summary = summarise(part, **chosen)
        out.print(terminal.table(summary, beside(summary.conditions, published)))
        samples |= load_samples(directory, part, **chosen)
    curves = loss_curves(diagnosed_runs(directory))
    target = output or directory.report
    try:
        files = write_report(
            frame, samples, target,
            curves=curves, baseline=baseline, published=published, **chosen,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"cannot write the report to {target} ({error.strerror})") from None
    out.print("report:", style="bold")
    for path in files.values():
        out.print(f"  {path}", markup=False)


def find_sweep(name: str, root: Path) -> SweepDirectory:
    """The directory of a sweep under ``root``.

    Raises:
        UserError: there is none of this name.
    """
    known = {sweep.name: sweep for sweep in find_sweeps(root)}
    if name not in known:
        raise unknown(f"sweep under {root}/", name, known)
    return known[name]
