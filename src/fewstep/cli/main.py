"""The commands. Their names are a contract with users' scripts: add, do not rename."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from fewstep import __version__
from fewstep.cli import evaluating, tables
from fewstep.cli.arguments import (
    OneSweep,
    OnlyRuns,
    Overrides,
    RunName,
    Runs,
    SweepName,
    only_root,
    root_and_rest,
    with_root,
)
from fewstep.cli.benching import bench
from fewstep.cli.console import data_meter, err, out
from fewstep.errors import UserError
from fewstep.experiments.preparation import listen

BAD_INPUT = 2

app = typer.Typer(
    name="fewstep",
    help="Compare few-step generative objectives fairly, on one shared backbone.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point: runs the command; the user's errors become one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    listen(data_meter())
    try:
        app(standalone_mode=True)
    except UserError as error:
        err.print("error: ", style="bold red", end="")
        err.print(" ".join(str(error).split()), markup=False)
        sys.exit(BAD_INPUT)
    except BrokenPipeError:  # fewstep ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def show_version(value: bool) -> None:
    """``fewstep --version``."""
    if value:
        out.print(f"fewstep {__version__}")
        raise typer.Exit


@app.callback()
def callback(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Compare few-step generative objectives fairly, on one shared backbone."""


@app.command()
def train(overrides: Overrides = None, runs: Runs = None) -> None:
    """Train one run and evaluate it. Run again, it continues where it was.

    Example: [bold]fewstep train objective=scm data=digits training.steps=200 seed=1[/]
    """
    from fewstep.cli import single

    sys.exit(single.train(with_root(overrides, runs)))


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(help="A sweep's name, or the path of its YAML file.")],
    overrides: Overrides = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would run; start nothing.")
    ] = False,
    launcher: Annotated[str, typer.Option(help="local, ray or slurm.")] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Processes at a time; default: as many as fit.")
    ] = None,
    stopped: Annotated[
        bool, typer.Option("--stopped", help="Go on with runs that were ended early, too.")
    ] = False,
    runs: Runs = None,
) -> None:
    """Run a sweep here, on Ray or on SLURM; record it in MLflow, write its report.

    Finished runs are not repeated; interrupted ones go on, wherever they were begun; failed ones
    are tried again, but for those that ran out of memory, disk or numbers (fewstep retry).

    Example: [bold]fewstep sweep digits training.steps=500 seeds=5 --plan[/]
    """
    from fewstep.cli import launch

    chosen = with_root(overrides, runs)
    sys.exit(launch.sweep(name, chosen, plan, launcher, workers, stopped))


@app.command()
def retry(
    sweep: SweepName,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Only failures of this class, as oom.")
    ] = None,
    run: OnlyRuns = None,
    overrides: Overrides = None,
    runs: Runs = None,
) -> None:
    """Try failed runs again, with the launcher and settings of the last time.

    Cancelled ones only with --class cancelled or --run.

    Example: [bold]fewstep retry digits --class oom[/]
    """
    from fewstep.cli import launch

    sys.exit(launch.retry(sweep, only_root(overrides, runs), classes or [], run or []))


@app.command()
def cancel(
    sweep: SweepName,
    run: OnlyRuns = None,
    former: Annotated[
        bool, typer.Option("--former", help="Only runs that are no longer in the sweep.")
    ] = False,
    overrides: Overrides = None,
    runs: Runs = None,
) -> None:
    """Stop a sweep's runs, wherever they are; they save, and can be continued.

    Example: [bold]fewstep cancel digits --run 3f2a[/]
    """
    from fewstep.cli import jobs

    sys.exit(jobs.cancel(sweep, only_root(overrides, runs), run or [], former))


@app.command()
def logs(
    run: RunName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    overrides: Overrides = None,
    runs: Runs = None,
) -> None:
    """Show what a run printed.

    Example: [bold]fewstep logs 3f2a --follow[/]
    """
    from fewstep.cli import jobs

    jobs.logs(run, only_root(overrides, runs), follow)


@app.command()
def status(
    sweep: OneSweep = None,
    overrides: Overrides = None,
    watch: Annotated[bool, typer.Option("--watch", help="Until all runs have ended.")] = False,
    runs: Runs = None,
) -> None:
    """Show how far sweeps and their runs are.

    Example: [bold]fewstep status digits --watch[/]
    """
    from fewstep.cli import status as stand

    if sweep is not None and sweep.startswith("runs="):
        overrides, sweep = [sweep, *(overrides or [])], None
    stand.status(sweep, only_root(overrides, runs), watch)


app.command()(evaluating.evaluate)
app.command()(evaluating.sample)


@app.command()
def sync(
    sweep: OneSweep = None,
    overrides: Overrides = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again and again, until all runs are done or failed.")
    ] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks of --watch.")] = 30.0,
    runs: Runs = None,
) -> None:
    """Bring MLflow up to date with the run directories; safe to repeat.

    Example: [bold]fewstep sync digits --watch tracking.uri=http://localhost:5000[/]
    """
    from fewstep.cli import sync as syncing

    if sweep is not None and "=" in sweep:
        overrides, sweep = [sweep, *(overrides or [])], None
    root, rest = root_and_rest(overrides, runs)
    sys.exit(syncing.sync(sweep, Path(root or "runs"), rest, watch=watch, every=every))


app.command()(tables.report)
app.command()(tables.compare)


@app.command()
def diagnose(
    name: Annotated[
        str, typer.Argument(help="A run's directory, the beginning of its key, or a sweep's name.")
    ],
    samples: Annotated[
        int | None, typer.Option(help="Held-out examples the loss is taken on; default: 32768.")
    ] = None,
    overrides: Overrides = None,
    runs: Runs = None,
) -> None:
    """Look into finished runs: loss over (t, d) and log-SNR, one-step denoising, jump errors.

    Of a sweep, all its finished runs; what was measured before is not measured again.

    Example: [bold]fewstep diagnose 3f2a[/]
    """
    from fewstep.cli import diagnose as diagnostics

    sys.exit(diagnostics.diagnose(name, only_root(overrides, runs), samples))


@app.command()
def encode(overrides: Overrides = None) -> None:
    """Encode the images of a data set into a folder of latents; run again, it continues.

    Settings: data=NAME and data.*, autoencoder=FOLDER_OR_NAME, output=FOLDER, dtype, batch_size,
    shard, device, download.

    Example: [bold]fewstep encode data=cifar10 autoencoder=sd-vae-ft-mse output=data/latents[/]
    """
    from fewstep.cli import encode as encoding

    sys.exit(encoding.encode(overrides or []))


app.command()(bench)


@app.command(name="list")
def list_(
    kind: Annotated[
        str, typer.Argument(help="objectives|backbones|data|sweeps|extractors|metrics")
    ],
) -> None:
    """List what can be named, with its settings and their defaults.

    Example: [bold]fewstep list objectives[/]
    """
    from fewstep.cli import listing

    listing.show(kind)


@app.command()
def check(overrides: Overrides = None) -> None:
    """Hold an objective against closed forms and calculus; without a name, every one.

    Exit code 0 when all that can be checked holds, 1 when something fails.

    Example: [bold]fewstep check objective=scm objective.sigma_d=0.4[/]
    """
    from fewstep.cli import check

    sys.exit(check.check(overrides or []))


app.command()(evaluating.bias)
app.command()(evaluating.reference)
app.add_typer(evaluating.extractor, name="extractor")


if __name__ == "__main__":
    main()
