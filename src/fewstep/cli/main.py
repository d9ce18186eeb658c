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
from fewstep.cli.console import err, out
from fewstep.errors import UserError

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
    are tried again, but for those that ran out of memory or of numbers (fewstep retry).

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

    Example: [bold]fewstep retry digits --class oom[/]
    """
    from fewstep.cli import launch

    sys.exit(launch.retry(sweep, only_root(overrides, runs), classes or [], run or []))


@app.command()
def cancel(
    sweep: SweepName,
    run: OnlyRuns = None,
    overrides: Overrides = None,
    runs: Runs = None,
) -> None:
    """Stop a sweep's runs, wherever they are; they save, and can be continued.

    Example: [bold]fewstep cancel digits --run 3f2a[/]
    """
    from fewstep.cli import jobs

    sys.exit(jobs.cancel(sweep, only_root(overrides, runs), run or []))


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


@app.command()
def evaluate(run: RunName, overrides: Overrides = None, runs: Runs = None) -> None:
    """Add cells to a finished run, without retraining.

    Example: [bold]fewstep evaluate 3f2a evaluation.steps=[3,16] evaluation.weights=[raw][/]
    """
    from fewstep.cli import single

    root, rest = root_and_rest(overrides, runs)
    sys.exit(single.evaluate(run, Path(root or "runs"), rest))


@app.command()
def sample(
    run: RunName,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 1,
    output: Annotated[Path, typer.Option("--out", help="The image to write.")] = Path("grid.png"),
    count: Annotated[int, typer.Option(help="How many samples.")] = 64,
    weights: Annotated[str, typer.Option(help="ema or raw.")] = "ema",
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance.")] = 1.0,
    overrides: Overrides = None,
    runs: Runs = None,
) -> None:
    """Draw samples of a run into a picture.

    Example: [bold]fewstep sample 3f2a --steps 4 --out grid.png[/]
    """
    from fewstep.cli import single

    root, rest = root_and_rest(overrides, runs)
    single.sample(run, Path(root or "runs"), rest, steps, output, count, weights, guidance)


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


@app.command()
def report(
    sweep: SweepName,
    output: Annotated[
        Path | None, typer.Option("--out", help="Folder; default: runs/SWEEP/report.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="ema or raw, where both are there.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale, where several are there.")
    ] = None,
    sample_set: Annotated[
        int | None, typer.Option(help="Sample set, where several are there.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Label or id of the metric, where several are there.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Sampler, where one method has several.")
    ] = None,
    times: Annotated[
        str | None, typer.Option(help="Times, where one number of steps has several.")
    ] = None,
    stopped: Annotated[
        bool, typer.Option("--stopped", help="Count runs that were ended early, as they were then.")
    ] = False,
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
    overrides: Overrides = None,
    runs: Runs = None,
) -> None:
    """Print a sweep's table and write its report: tables, figures, costs, an HTML page.

    Example: [bold]fewstep report digits --out paper/figures[/]
    """
    from fewstep.cli import report as reporting

    filters = {
        "weights": weights,
        "guidance": guidance,
        "sample_set": sample_set,
        "metric": metric,
        "sampler": sampler,
        "times": times,
    }
    root = only_root(overrides, runs)
    found = reporting.find_sweep(sweep, root)
    reporting.report(found, output, filters, stopped, baseline, published)


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
def bench(
    overrides: Overrides = None,
    batch: Annotated[int, typer.Option(help="Rows of a step.")] = 64,
    rounds: Annotated[int, typer.Option(help="Measurements of each time.")] = 10,
    shape: Annotated[
        str | None, typer.Option(help="C,H,W or D: random data instead of the data set's.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="Number of classes; default: the data set's, or none.")
    ] = None,
    at: Annotated[
        float, typer.Option(help="How far training has come, 0 to 1; some costs change.")
    ] = 1.0,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    compile_: Annotated[
        bool, typer.Option("--compile", help="torch.compile the trained network.")
    ] = False,
    flops_only: Annotated[
        bool, typer.Option("--flops-only", help="Count, and measure no times.")
    ] = False,
    peak_tflops: Annotated[
        float | None, typer.Option(help="The device's peak, to show the share of it in use.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers to this file.")
    ] = None,
) -> None:
    """Measure what objectives cost: FLOPs, time and memory of a step, speed of sampling.

    FLOPs and time are multiples of flow matching's. Without objective=, all are measured.
    [bold]fewstep bench sweep[/] measures what launchers, status and sync cost instead.

    Example: [bold]fewstep bench "objective=[scm,shortcut]" backbone=dit_s_2 --shape 4,32,32[/]
    """
    if overrides == ["sweep"]:
        from fewstep.cli.bench_sweep import bench_sweep

        bench_sweep(file)
        return
    from fewstep.cli import bench as benchmark

    benchmark.bench(
        overrides or [],
        batch=batch,
        rounds=rounds,
        shape=shape,
        classes=classes,
        at=at,
        precision=precision,
        device=device,
        compile_=compile_,
        flops_only=flops_only,
        peak_tflops=peak_tflops,
        file=file,
    )


@app.command(name="list")
def list_(
    kind: Annotated[str, typer.Argument(help="objectives|backbones|data|sweeps|extractors")],
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


if __name__ == "__main__":
    main()
