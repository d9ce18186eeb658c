"""``fewstep diagnose``: what a finished run, or every finished run of a sweep, is good at."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from rich.table import Table
from rich.text import Text

from fewstep.cli.console import err, out
from fewstep.errors import UserError, check_range
from fewstep.experiments.rundir import RunDirectory, SweepDirectory, find_run, find_sweeps


def diagnose(name: str, root: Path, rows: int | None) -> int:
    """A run by its directory or key, or a sweep by its name; returns the exit code."""
    from fewstep.experiments.diagnostics import ROWS

    rows = ROWS if rows is None else rows
    check_range("--samples", rows, 1)
    sweeps = {sweep.name: sweep for sweep in find_sweeps(root)}
    if name in sweeps:
        return _sweep(sweeps[name], rows)
    try:
        run = find_run(name, root)
    except UserError as error:
        known = f", nor a sweep (choices: {', '.join(sweeps)})" if sweeps else ""
        raise UserError(f"{error}{known}") from None
    if run.result() is None:
        raise UserError(
            f"run {run.key} is not finished ({run.status()}): train it to its end first"
        )
    _run(run, rows, again=True)
    return 0


def _run(run: RunDirectory, rows: int, again: bool) -> None:
    """Measure, unless that was done and is not asked ``again``; draw; say what was found."""
    from fewstep.analysis.diagnostics import arrays, diagnosed_run
    from fewstep.experiments.diagnostics import diagnose_run, is_current
    from fewstep.experiments.run import load_config
    from fewstep.reports import diagnostics_page as reports

    config, begun = load_config(run), time.perf_counter()
    known = not again and is_current(run.diagnosed(), config, rows)
    if not known:
        with out.status(f"diagnosing {run.key} {config.objective.title}"):
            diagnose_run(run, config, rows)
    found = diagnosed_run(run)
    files = reports.write_run(found, arrays(run), run.diagnostics)
    if again:
        out.print(_table(reports.run_table(found)))
        _told(["diagnostics:", *map(str, (run.diagnostics / "diagnostics.json", *files))])
        return
    took = "known" if known else f"{time.perf_counter() - begun:.0f} s"
    out.print(f"{run.key} {found.method}, seed {found.seed}: {took}", markup=False)


def _sweep(sweep: SweepDirectory, rows: int) -> int:
    from fewstep.analysis.diagnostics import diagnosed_runs, jump_curves
    from fewstep.reports import diagnostics_page as reports

    finished = [run for run in sweep.runs() if run.status() == "done"]
    if not finished:
        raise UserError(f"sweep {sweep.name!r} has no finished run")
    failed = False
    for run in finished:
        try:
            _run(run, rows, again=False)
        except UserError as error:  # a damaged run must not hide the others
            err.print(f"not diagnosed: {error}", markup=False)
            failed = True
    runs = diagnosed_runs(sweep)
    if jumps := jump_curves(runs):
        header, body = reports.table(jumps)
        out.print(_table([header, *body], "RMS error of a jump of length d"))
    _told(["report:", *map(str, reports.write_sweep(sweep.name, runs, sweep.report))])
    return 1 if failed else 0


def _table(rows: Iterable[list[str]], title: str | None = None) -> Table:
    header, *body = rows
    shown = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for column in header:
        shown.add_column(Text(column), justify="left" if column == header[0] else "right")
    for row in body:
        shown.add_row(*map(Text, row))
    return shown


def _told(lines: list[str]) -> None:
    out.print(lines[0], style="bold")
    for line in lines[1:]:
        out.print(f"  {line}", markup=False)
