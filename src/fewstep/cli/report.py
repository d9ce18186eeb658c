"""``fewstep report``, ``fewstep compare``, and sweeps by name."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.cli.console import out
from fewstep.errors import UserError, unknown
from fewstep.experiments.rundir import SweepDirectory, find_sweeps


def report(
    directories: Sequence[SweepDirectory],
    output: Path | None,
    filters: dict[str, Any] | None = None,
    stopped: bool = False,
    baseline: str | None = None,
    published: str = "auto",
) -> None:
    """``fewstep report``: print the table of each data set, write the files, name them.

    Of one sweep they go to its own folder; of several to ``_reports/A+B/`` beside them. ``filters``
    choose among cells, as in ``analysis.summarise``; None is no choice. ``stopped``:
    count runs that a search ended early. ``baseline``, ``published``: as in ``write_report``.
    """
    from fewstep.analysis import load, load_samples, summarise
    from fewstep.analysis.diagnostics import diagnosed_runs, loss_curves
    from fewstep.analysis.samples import Samples
    from fewstep.reports import terminal
    from fewstep.reports.published import beside
    from fewstep.reports.report import data_sets, write_report

    chosen = given(filters)
    frame = load(*directories, stopped=stopped)
    samples: Samples = {}
    shown = []  # once all is known to be well
    for part in data_sets(frame).values():
        summary = summarise(part, **chosen)
        shown.append(terminal.table(summary, beside(summary.conditions, published)))
        samples |= load_samples(directories, part, **chosen)
    curves = loss_curves(diagnosed_runs(*directories))
    target = folder(directories, output)
    try:
        files = write_report(
            frame, samples, target,
            curves=curves, baseline=baseline, published=published, **chosen,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"cannot write the report to {target} ({error.strerror})") from None
    _clear_parts(target)
    for table in shown:
        out.print(table)
    out.print("report:", style="bold")
    for path in files.values():
        out.print(f"  {path}", markup=False)


def report_each(
    directories: Sequence[SweepDirectory],
    output: Path | None = None,
    filters: dict[str, Any] | None = None,
    stopped: bool = False,
    baseline: str | None = None,
    published: str = "auto",
) -> None:
    """``report``; where several kinds of cells could stand in one table, a report of each.

    They go to folders of their own, ``report/weights-ema/``, and take the place of one report.
    """
    from fewstep.analysis.selection import Mixed
    from fewstep.reports.report import clear

    try:
        report(directories, output, filters, stopped, baseline, published)
    except Mixed as mixed:
        if mixed.option in given(filters):  # no choice of it tells them apart
            raise
        for choice in mixed.choices:
            part = re.sub(r"[^A-Za-z0-9_.=@-]+", "-", f"{mixed.option}-{choice}")
            out.print(f"{mixed.option} {choice}:", style="bold", markup=False)
            chosen = {**(filters or {}), mixed.option: choice}
            place = folder(directories, output) / part
            report_each(directories, place, chosen, stopped, baseline, published)
        clear(folder(directories, output))


def _clear_parts(place: Path) -> None:
    """Remove the reports of each in ``place``, which another takes the place of."""
    from fewstep.analysis.selection import Filters
    from fewstep.reports.report import clear

    for option in Filters.__annotations__:
        for part in place.glob(f"{option}-*/"):
            _clear_parts(part)
            if (part / "report.html").is_file():
                clear(part)
            with contextlib.suppress(OSError):  # it holds something of somebody's
                part.rmdir()


def folder(directories: Sequence[SweepDirectory], output: Path | None) -> Path:
    """Where a report goes: of one sweep to its own folder; of several beside them."""
    if output is not None:
        return output
    if len(directories) == 1:
        return directories[0].report
    return directories[0].path.parent / "_reports" / "+".join(d.name for d in directories)


def compare(
    directories: Sequence[SweepDirectory],
    method: str | None,
    baseline: str | None,
    output: Path | None,
    filters: dict[str, Any] | None = None,
    stopped: bool = False,
) -> None:
    """``fewstep compare``: print the ratios of two sweeps, or of one sweep to a baseline in it."""
    from fewstep.analysis import compare as compared
    from fewstep.analysis import load, summarise
    from fewstep.reports import comparison as shown
    from fewstep.reports.report import write_file

    if len(directories) > 2:
        names = ", ".join(directory.name for directory in directories)
        raise UserError(f"one or two sweeps are compared, got {len(directories)}: {names}")
    chosen = given(filters)
    summaries = [summarise(load(d, stopped=stopped), **chosen) for d in directories]
    made = compared(summaries[0], summaries[-1], method, baseline)
    out.print(shown.terminal(made))
    if output is None:
        return
    files = {
        "comparison.md": shown.markdown(made),
        "comparison.tex": shown.latex(made),
        "comparison.csv": shown.csv(made),
    }
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            out.print(f"  {write_file(output / name, content)}", markup=False)
    except OSError as error:
        raise UserError(f"cannot write the comparison to {output} ({error.strerror})") from None


def given(filters: dict[str, Any] | None) -> Any:
    """What was chosen; None is no choice."""
    return {name: value for name, value in (filters or {}).items() if value is not None}


def find_sweeps_named(names: Sequence[str], root: Path) -> list[SweepDirectory]:
    """Their directories, each once.

    Raises:
        UserError: there is none of one of these names, or one is named twice.
    """
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"sweep {name!r} is named twice")
    return [find_sweep(name, root) for name in names]


def find_sweep(name: str, root: Path) -> SweepDirectory:
    """The directory of a sweep under ``root``.

    Raises:
        UserError: there is none of this name.
    """
    known = {sweep.name: sweep for sweep in find_sweeps(root)}
    if name not in known:
        raise unknown(f"sweep under {root}/", name, known)
    return known[name]
