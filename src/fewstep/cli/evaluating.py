"""The commands about a finished run, extractors and references; ``main`` adds them to its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.arguments import Overrides, RunName, Runs, root_and_rest

extractor = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@extractor.callback()
def extractor_callback() -> None:
    """Feature extractors that are made here."""


@extractor.command("train")
def extractor_train(overrides: Overrides = None, runs: Runs = None) -> None:
    """Train the classifier whose features a data set is measured by; once, however often called.

    Runs do it themselves when they first need it; this shows its accuracy, file and hash.

    Example: [bold]fewstep extractor train data=mnist extractor.steps=1000[/]
    """
    from fewstep.cli import metrics

    root, rest = root_and_rest(overrides, runs)
    metrics.train_extractor(Path(root or "runs"), rest)


def reference(
    overrides: Overrides = None,
    images: Annotated[
        bool, typer.Option("--images", help="Write the images (arr_0), not their statistics.")
    ] = False,
    runs: Runs = None,
) -> None:
    """Write a split's reference statistics, mu and sigma, as an npz that other codes read too.

    evaluation.reference_file=FILE makes runs use it.

    Example: [bold]fewstep reference data=mnist extractor=cnn split=test output=mnist.npz[/]
    """
    from fewstep.cli import metrics

    root, rest = root_and_rest(overrides, runs)
    metrics.write_reference(Path(root or "runs"), rest, images)


def bias(
    run: RunName,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 1,
    weights: Annotated[str, typer.Option(help="ema or raw.")] = "ema",
    points: Annotated[int, typer.Option(help="Subsets.")] = 15,
    overrides: Overrides = None,
    runs: Runs = None,
) -> None:
    """Show how FD falls with the number of samples, and where it would end.

    A table, and a figure in the run's diagnostics, beside the same of held-out real images.

    Example: [bold]fewstep bias 3f2a --steps 4 evaluation.samples=5000[/]
    """
    from fewstep.cli import metrics

    root, rest = root_and_rest(overrides, runs)
    metrics.bias(run, Path(root or "runs"), rest, steps, weights, points)


def evaluate(run: RunName, overrides: Overrides = None, runs: Runs = None) -> None:
    """Add cells to a finished run, without retraining.

    Example: [bold]fewstep evaluate 3f2a evaluation.steps=[3,16] evaluation.weights=\\[raw][/]
    """
    from fewstep.cli import single

    root, rest = root_and_rest(overrides, runs)
    sys.exit(single.evaluate(run, Path(root or "runs"), rest))


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
