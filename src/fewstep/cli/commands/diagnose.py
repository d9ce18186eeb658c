"""``fewstep diagnose``: the errors of a finished run, or of every finished run of a sweep."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fewstep.cli.commands.evaluate import absolute
from fewstep.cli.options import Overrides, Runs, check_finished, pairs, root_and_rest
from fewstep.cli.views.console import err, new_table, out, print_lines
from fewstep.errors import UserError, check_range

if TYPE_CHECKING:
    from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory

WHERE = ("data.root", "data.cache", "data.download")


def diagnose(
    name: Annotated[
        str, typer.Argument(help="A run's directory, the beginning of its key, or a sweep's name.")
    ],
    samples: Annotated[
        int | None, typer.Option(help="Held-out examples for the loss; default: 32768.")
    ] = None,
    overrides: Overrides = None,
    runs: Runs = None,
) -> int:
    """Measure finished runs: loss over (t, d) and log-SNR, one-step denoising, jump errors.

    With a sweep's name, all its finished runs; earlier measurements are not repeated.

    Example: [bold]fewstep diagnose 3f2a[/]
    """
    from fewstep.experiments.evaluation.diagnostics import ROWS
    from fewstep.experiments.store.run_directory import find_run, find_sweeps

    root, rest = root_and_rest(overrides, runs)
    where = [absolute(key, value, Path.cwd()) for key, value in pairs("diagnose", rest, WHERE)]
    rows = ROWS if samples is None else samples
    check_range("--samples", rows, 1)
    sweeps = {sweep.name: sweep for sweep in find_sweeps(root)}
    if name in sweeps:
        return _sweep(sweeps[name], where, rows)
    try:
        run = find_run(name, root)
    except UserError as error:
        known = f", nor a sweep (choices: {', '.join(sweeps)})" if sweeps else ""
        raise UserError(f"{error}{known}") from None
    check_finished(run)
    _run(run, where, rows, again=True)
    return 0


def _run(run: RunDirectory, where: Sequence[Any], rows: int, again: bool) -> None:
    """Measure (``again``, or unless it was done); draw; print the results."""
    from fewstep.analysis.diagnostics import arrays, diagnosed_run
    from fewstep.experiments.config.run_config import amend
    from fewstep.experiments.evaluation.diagnostics import diagnose_run, is_current
    from fewstep.experiments.run import load_config
    from fewstep.reports.html import diagnostics_page as reports

    config, started = amend(load_config(run), where), time.perf_counter()
    known = not again and is_current(run.diagnosis(), config, rows)
    if not known:
        with out.status(f"diagnosing {run.key} {config.objective.title}"):
            diagnose_run(run, config, rows)
    diagnosed = diagnosed_run(run)
    files = reports.write_run(diagnosed, arrays(run), run.diagnostics)
    if again:
        out.print(_table(reports.run_table(diagnosed)))
        print_lines("diagnostics:", (run.diagnostics / "diagnostics.json", *files))
        return
    took = "measured before" if known else f"{time.perf_counter() - started:.0f} s"
    out.print(f"{run.key} {diagnosed.method}, seed {diagnosed.seed}: {took}")


def _sweep(sweep: SweepDirectory, where: Sequence[Any], rows: int) -> int:
    from fewstep.analysis.diagnostics import diagnosed_runs, jump_curves
    from fewstep.reports.html import diagnostics_page as reports

    finished = [run for run in sweep.runs() if run.status() == "done"]
    if not finished:
        raise UserError(f"sweep {sweep.name!r} has no finished run")
    failed = False
    for run in finished:
        try:
            _run(run, where, rows, again=False)
        except UserError as error:  # a damaged run must not hide the others
            err.print(f"not diagnosed: {error}")
            failed = True
    runs = diagnosed_runs(sweep)
    if jumps := jump_curves(runs):
        header, body = reports.table(jumps)
        out.print(_table([header, *body], "RMS error of a jump of length d"))
    print_lines("report:", reports.write_sweep(sweep.name, runs, sweep.report))
    return 1 if failed else 0


def _table(rows: Iterable[list[str]], title: str | None = None) -> Table:
    header, *body = rows
    cells = [dict(zip(header, map(Text, row), strict=True)) for row in body]
    return new_table(cells, right=header[1:], title=title, title_justify="left")
