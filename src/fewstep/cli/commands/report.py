"""``fewstep report`` and ``fewstep compare``: tables, figures and pages of sweeps."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import options as opt
from fewstep.cli.views.console import out, print_lines
from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.experiments.store.run_directory import SweepDirectory


def report(
    sweep: opt.SweepName,
    others: opt.Others = None,
    output: Annotated[
        Path | None, typer.Option("--out", help="Folder; default: runs/SWEEP/report.")
    ] = None,
    weights: opt.Weights = None,
    guidance: opt.Guidance = None,
    sample_set: opt.SampleSet = None,
    metric: opt.MetricName = None,
    sampler: opt.Sampler = None,
    times: opt.Times = None,
    stopped: opt.CountStopped = False,
    baseline: Annotated[
        str | None, typer.Option(help="Method that costs are compared with; default: the first.")
    ] = None,
    published: Annotated[
        str,
        typer.Option(
            help="Numbers of papers. auto: beside ours if all conditions agree, else in a table of "
            "their own; none; or the name of a data set, for that table."
        ),
    ] = "auto",
    each: Annotated[
        bool,
        typer.Option(
            "--each",
            help="If several cells fit one place (weights, metrics, guidance), write a report "
            "for each, in a folder of its own.",
        ),
    ] = False,
    runs: opt.Runs = None,
) -> None:
    """Print a sweep's table and write its report: tables, figures, costs, an HTML page.

    Several sweeps make one table, if they have the same metric.

    Example: [bold]fewstep report digits --out paper/figures[/]
    """
    sweeps, filters = _sweeps(sweep, others, runs), _filters(locals())
    folder = output or _folder(sweeps)
    write = report_each if each else _report
    write(sweeps, folder, filters, stopped=stopped, baseline=baseline, published=published)


def compare(
    sweep: opt.SweepName,
    others: opt.Others = None,
    method: Annotated[
        str | None, typer.Option(help="Only this method, as in the first sweep's table.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Compare with this method of the second (or only) sweep.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", help="Folder for comparison.md, .tex and .csv.")
    ] = None,
    weights: opt.Weights = None,
    guidance: opt.Guidance = None,
    sample_set: opt.SampleSet = None,
    metric: opt.MetricName = None,
    sampler: opt.Sampler = None,
    times: opt.Times = None,
    stopped: opt.CountStopped = False,
    runs: opt.Runs = None,
) -> None:
    """Compare two sweeps, method by method, or a sweep's methods with a baseline.

    Prints ratios paired by seed, their intervals, and significance (Holm over the table).

    Example: [bold]fewstep compare wide narrow[/]
    Example: [bold]fewstep compare digits --baseline "Flow matching"[/]
    """
    from fewstep.analysis import compare as compared
    from fewstep.analysis import load, summarise
    from fewstep.files import write_file
    from fewstep.reports.tables import comparison

    sweeps, filters = _sweeps(sweep, others, runs), _filters(locals())
    if len(sweeps) > 2:
        names = ", ".join(directory.name for directory in sweeps)
        raise UserError(f"one or two sweeps are compared, got {len(sweeps)}: {names}")
    summaries = [summarise(load(s, stopped=stopped), **filters) for s in sweeps]
    ratios = compared(summaries[0], summaries[-1], method, baseline)
    out.print(comparison.terminal(ratios))
    if output is None:
        return
    formats = {"md": comparison.markdown, "tex": comparison.latex, "csv": comparison.csv}
    with _writing("the comparison", output):
        output.mkdir(parents=True, exist_ok=True)
        for suffix, text_of in formats.items():
            out.print(f"  {write_file(output / f'comparison.{suffix}', text_of(ratios))}")


def report_each(
    sweeps: Sequence[SweepDirectory],
    folder: Path | None = None,
    filters: Mapping[str, Any] = {},
    **options: Any,
) -> None:
    """Write a report; if several kinds of cells fit one table, write a report of each.

    They go to folders of their own, ``report/weights-ema/``, and replace the single report.
    ``filters`` choose among cells, as in ``analysis.summarise``; ``options``: as of ``_report``.
    """
    from fewstep.analysis.filters import AmbiguousCells
    from fewstep.reports.report import clear

    folder = folder or _folder(sweeps)
    try:
        _report(sweeps, folder, filters, **options)
    except AmbiguousCells as mixed:
        if mixed.option in filters:  # no value of it separates them
            raise
        for choice in mixed.choices:
            part = re.sub(r"[^A-Za-z0-9_.=@-]+", "-", f"{mixed.option}-{choice}")
            out.print(f"{mixed.option} {choice}:", style="bold")
            report_each(sweeps, folder / part, {**filters, mixed.option: choice}, **options)
        clear(folder)


def _folder(sweeps: Sequence[SweepDirectory]) -> Path:
    if len(sweeps) == 1:
        return sweeps[0].report
    return sweeps[0].path.parent / "_reports" / "+".join(sweep.name for sweep in sweeps)


def _report(
    sweeps: Sequence[SweepDirectory],
    folder: Path,
    filters: Any,
    *,
    stopped: bool = False,
    baseline: str | None = None,
    published: str = "auto",
) -> None:
    """Print the table of each data set, write the files (``write_report``), print their names."""
    from fewstep.analysis import load, load_samples, summarise
    from fewstep.analysis.diagnostics import diagnosed_runs, loss_curves
    from fewstep.analysis.summary_types import Samples
    from fewstep.reports.content.published import beside
    from fewstep.reports.report import data_sets, write_report
    from fewstep.reports.tables import terminal

    frame = load(*sweeps, stopped=stopped)
    samples: Samples = {}
    tables = []  # printed when no error can come
    for part in data_sets(frame).values():
        summary = summarise(part, **filters)
        tables.append(terminal.table(summary, beside(summary.conditions, published)))
        samples |= load_samples(sweeps, part, **filters)
    curves = loss_curves(diagnosed_runs(*sweeps))
    with _writing("the report", folder):
        files = write_report(
            frame, samples, folder, curves=curves, baseline=baseline, published=published, **filters
        )
    _clear_parts(folder)
    for table in tables:
        out.print(table)
    print_lines("report:", files.values())


def _clear_parts(folder: Path) -> None:
    """Remove the reports of each kind in ``folder``, which a single one replaces."""
    from fewstep.analysis.filters import Filters
    from fewstep.reports.report import clear

    for option in Filters.__annotations__:
        for part in folder.glob(f"{option}-*/"):
            _clear_parts(part)
            if (part / "report.html").is_file():
                clear(part)
            with contextlib.suppress(OSError):  # it has other files
                part.rmdir()


@contextlib.contextmanager
def _writing(what: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {what} to {folder} ({error.strerror})") from None


def _filters(options: Mapping[str, Any]) -> Any:
    """Those of a command's ``options`` that choose among cells, as far as they are given."""
    from fewstep.analysis.filters import BEST, Filters

    given = {n: options[n] for n in Filters.__annotations__ if options[n] is not None}
    if (scale := given.get("guidance")) not in (None, BEST):
        try:
            given["guidance"] = float(scale)
        except ValueError:
            raise UserError(f"--guidance takes a scale, or {BEST}, got {scale!r}") from None
    return given


def _sweeps(first: str, others: list[str] | None, runs: str | None) -> list[SweepDirectory]:
    """The sweeps' directories: a word without ``=`` is a name."""
    words = others or []
    names = [first, *(word for word in words if "=" not in word)]
    root = opt.only_root([word for word in words if "=" in word], runs)
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"sweep {twice[0]!r} is named twice")
    return [opt.find_sweep(name, root) for name in names]
