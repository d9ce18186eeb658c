"""The commands that make tables: ``report`` and ``compare``, and how they choose cells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.arguments import (
    CountStopped,
    Guidance,
    MetricName,
    Others,
    Runs,
    Sampler,
    SampleSet,
    SweepName,
    Times,
    Weights,
    names_and_root,
)


def report(
    sweep: SweepName,
    others: Others = None,
    output: Annotated[
        Path | None, typer.Option("--out", help="Folder; default: runs/SWEEP/report.")
    ] = None,
    weights: Weights = None,
    guidance: Guidance = None,
    sample_set: SampleSet = None,
    metric: MetricName = None,
    sampler: Sampler = None,
    times: Times = None,
    stopped: CountStopped = False,
    baseline: Annotated[
        str | None, typer.Option(help="Method that costs are compared with; default: the first.")
    ] = None,
    published: Annotated[
        str,
        typer.Option(
            help="Papers' numbers. auto: beside ours where they measure the same; none; or the "
            "name of a data set, whose numbers come in a table of their own."
        ),
    ] = "auto",
    each: Annotated[
        bool,
        typer.Option(
            "--each",
            help="Where several could stand in one place (weights, metrics, guidance), a report "
            "of each, in a folder of its own.",
        ),
    ] = False,
    runs: Runs = None,
) -> None:
    """Print a sweep's table and write its report: tables, figures, costs, an HTML page.

    Several sweeps make one table, if they were measured by one metric.

    Example: [bold]fewstep report digits --out paper/figures[/]
    """
    from fewstep.cli import report as reporting

    names, root = names_and_root(sweep, others, runs)
    filters = {"weights": weights, "guidance": guidance, "sample_set": sample_set,
               "metric": metric, "sampler": sampler, "times": times}  # fmt: skip
    found = reporting.find_sweeps_named(names, root)
    made = reporting.report_each if each else reporting.report
    made(found, output, filters, stopped, baseline, published)


def compare(
    sweep: SweepName,
    others: Others = None,
    method: Annotated[
        str | None, typer.Option(help="Only this method, as the first sweep's table calls it.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Against this method of the second (or only) sweep.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", help="Folder for comparison.md, .tex and .csv.")
    ] = None,
    weights: Weights = None,
    guidance: Guidance = None,
    sample_set: SampleSet = None,
    metric: MetricName = None,
    sampler: Sampler = None,
    times: Times = None,
    stopped: CountStopped = False,
    runs: Runs = None,
) -> None:
    """Compare two sweeps, method by method, or a sweep's methods with a baseline.

    Ratios paired by seed with their intervals, Holm over the table.

    Example: [bold]fewstep compare wide narrow[/]
    Example: [bold]fewstep compare digits --baseline "Flow matching"[/]
    """
    from fewstep.cli import report as reporting

    names, root = names_and_root(sweep, others, runs)
    filters = {"weights": weights, "guidance": guidance, "sample_set": sample_set,
               "metric": metric, "sampler": sampler, "times": times}  # fmt: skip
    directories = reporting.find_sweeps_named(names, root)
    reporting.compare(directories, method, baseline, output, filters, stopped)
