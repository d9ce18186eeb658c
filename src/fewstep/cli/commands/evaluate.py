"""Commands on a finished run: evaluate, sample, bias."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import options as opt
from fewstep.cli.views.console import new_table, out
from fewstep.errors import UserError, check_range, counted, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.experiments.config.run_config import RunConfig
    from fewstep.experiments.config.settings import Evaluation
    from fewstep.experiments.data import Dataset
    from fewstep.experiments.store.run_directory import RunDirectory

WEIGHTS = "ema, raw, ema-DECAY (one of training.ema) or sigma_rel-WIDTH."
IMAGE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def evaluate(run: opt.RunName, overrides: opt.Overrides = None, runs: opt.Runs = None) -> int:
    """Add cells to a finished run, without retraining.

    Example: [bold]fewstep evaluate 3f2a evaluation.steps=[3,16] evaluation.weights=\\[raw][/]
    """
    from fewstep.cli.commands.train import bring_to_end
    from fewstep.experiments.config.data_location import load_data
    from fewstep.experiments.config.run_config import amend
    from fewstep.experiments.evaluation.measurement import metric_instances
    from fewstep.experiments.run import prepare
    from fewstep.experiments.training.network import choose_device
    from fewstep.experiments.validation import check
    from fewstep.files import relative_to

    directory, config = _find(run, overrides, runs)
    opt.check_finished(directory)
    root = str(directory.path.parent.parent)
    config = amend(config, [("runs", root), ("sweep", directory.sweep)])
    choose_device(config.training.device)
    dataset = load_data(config, directory)
    with relative_to(directory.made_in()):
        check([config])
        for metric in metric_instances(config.evaluation, dataset, directory.cache):
            _ = metric.identity  # an unreadable reference is bad input, not a failure of the run
    prepare(config)
    return bring_to_end(directory, config.objective.title)


def sample(
    run: opt.RunName,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 1,
    output: Annotated[Path, typer.Option("--out", help="The image to write.")] = Path("grid.png"),
    count: Annotated[int, typer.Option(help="How many samples.")] = 64,
    weights: Annotated[str, typer.Option(help=WEIGHTS)] = "ema",
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance.")] = 1.0,
    of_class: Annotated[
        str | None,
        typer.Option("--class", help="One class for all, by number or name; default: a mixture."),
    ] = None,
    overrides: opt.Overrides = None,
    runs: opt.Runs = None,
) -> None:
    """Draw samples of a run into an image.

    Example: [bold]fewstep sample 3f2a --steps 4 --class 7 --guidance 2 --out grid.png[/]
    """
    from fewstep.experiments.config.averages import weights_name
    from fewstep.experiments.config.data_location import load_data
    from fewstep.experiments.evaluation.sampling import SamplingConfig, draw
    from fewstep.experiments.training.network import choose_device, load_network
    from fewstep.files import relative_to
    from fewstep.reports.figures.image_grid import write_mosaic

    check_range("--steps", steps, 1)
    check_range("--count", count, 1)
    check_range("--guidance", guidance, 0)
    weights_name("--weights", weights)
    if output.suffix.lower() not in IMAGE_FILES:
        choices = ", ".join(IMAGE_FILES)
        raise UserError(f"--out {str(output)!r} is not an image file (choices: {choices})")
    opt.check_writable("--out", output)
    directory, config = _find(run, overrides, runs)
    weights = _weights(weights, config)
    dataset = load_data(config, directory)
    with relative_to(directory.made_in()):
        images_of = _to_images(config.evaluation, dataset)
    label = None if of_class is None else _label(of_class, dataset)
    net = load_network(config, dataset, directory, weights)
    net.to(choose_device(config.training.device))
    cell = SamplingConfig(steps, None, weights, guidance, 0)
    size = config.evaluation.batch_size
    batch = draw(config, dataset, net, cell, count, size, label=label)
    write_mosaic(images_of(batch.x).numpy(), output)
    calls = counted(batch.nfe, "network call")
    what = counted(count, "sample") + ("" if label is None else f" of class {label}")
    if label is not None and dataset.class_names:
        what += f" ({dataset.class_names[label]})"
    out.print(f"{what}, {calls} each: {output}")


def bias(
    run: opt.RunName,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 1,
    weights: Annotated[str, typer.Option(help=WEIGHTS)] = "ema",
    points: Annotated[int, typer.Option(help="Subsets.")] = 15,
    overrides: opt.Overrides = None,
    runs: opt.Runs = None,
) -> None:
    """Show how FD falls with the number of samples, and extrapolate to infinitely many.

    Prints a table, and draws a figure into the run's diagnostics, with the curve of held-out real
    images for comparison.

    Example: [bold]fewstep bias 3f2a --steps 4 evaluation.samples=5000[/]
    """
    from fewstep.experiments.config.averages import weights_name
    from fewstep.experiments.config.data_location import load_data
    from fewstep.experiments.evaluation.fd_vs_samples import bias_curves
    from fewstep.experiments.evaluation.sampling import SamplingConfig
    from fewstep.experiments.store.json_files import write_json
    from fewstep.experiments.validation import check
    from fewstep.files import relative_to
    from fewstep.reports.figures.drawing import render
    from fewstep.reports.figures.fd_vs_samples import bias_figure

    check_range("--steps", steps, 1)
    check_range("--points", points, 3)
    weights_name("--weights", weights)
    directory, config = _find(run, overrides, runs, ("evaluation.metrics", ["fd"]))
    weights = _weights(weights, config)
    dataset, cell = load_data(config, directory), SamplingConfig(steps, None, weights)
    drawing = f"drawing samples of {directory.key} in {counted(steps, 'step')}"
    with relative_to(directory.made_in()), out.status(drawing):
        check([config])
        by_metric = bias_curves(config, directory, dataset, directory.cache, cell, points)
    for identity, curves in by_metric:
        rows = [
            {"N": f"{size:,.0f}", **{curve.what: f"{curve.values[i]:.4g}" for curve in curves}}
            for i, size in enumerate(curves[0].sizes)
        ]
        table = new_table(rows, right=rows[0])
        table.add_row("infinite", *(f"{curve.limit:.4g}" for curve in curves), style="bold")
        label = identity["label"].split("@")[0]
        out.print(f"{label}, {counted(steps, 'step')}, {weights} weights")
        out.print(table)
        if any(curve.limit > curve.values[-1] for curve in curves):
            out.print("a limit above the last value: too few samples to extrapolate from")
        stem = f"bias-steps{steps:04d}-{weights}-{identity['id']}"
        records = [curve.record() for curve in curves]
        content = {"metric": identity, "cell": cell.describe(config.objective), "curves": records}
        write_json(directory.diagnostics / f"{stem}.json", content)
        figure = directory.diagnostics / f"{stem}.png"
        figure.write_bytes(render(bias_figure(label, records), "png"))
        out.print(f"figure: {figure}")


def _to_images(evaluation: Evaluation, dataset: Dataset) -> Callable[[Tensor], Tensor]:
    """What makes pictures of samples: nothing, or the decoder that the evaluation names."""
    from fewstep.experiments.evaluation.measurement import extractor
    from fewstep.experiments.extractors.decoded import Decoded

    if dataset.is_image:
        return lambda x: x
    for request in evaluation.extractors:
        if isinstance(chosen := extractor(request, dataset), Decoded):
            chosen.check(dataset)
            return chosen.images_of
    raise UserError(
        f"{dataset.name} is not made of images; of latents they are drawn with "
        "evaluation.extractor={name: decoded, autoencoder: FOLDER, extractor: raw}"
    )


def _label(name: str, dataset: Dataset) -> int:
    """The class that ``--class`` names, by its name or its number."""
    if not dataset.num_classes:
        raise UserError(f"--class {name}: {dataset.name} has no classes")
    if name in dataset.class_names:
        return dataset.class_names.index(name)
    if name.isdecimal() and int(name) < dataset.num_classes:
        return int(name)
    numbers = f"0 to {dataset.num_classes - 1}"
    raise unknown("--class", name, [*dataset.class_names, numbers])


def _weights(name: str, config: RunConfig) -> str:
    """The name of what ``--weights`` asks for; of several averages, ema is the first."""
    return config.training.weights_of("--weights", [name])[0]


def _find(
    run: str, overrides: list[str] | None, runs: str | None, *more: tuple[str, Any]
) -> tuple[RunDirectory, RunConfig]:
    """The run's directory, and its configuration with the overrides and ``more``."""
    from fewstep.experiments.config.run_config import amend, pair
    from fewstep.experiments.run import load_config
    from fewstep.experiments.store.run_directory import find_run

    root, rest = opt.root_and_rest(overrides, runs)
    directory = find_run(run, root)
    given = [absolute(*pair(override), directory.made_in()) for override in rest]
    return directory, amend(load_config(directory), [*given, *more])


PATHS = ("data.root", "data.cache", "evaluation.reference_file")
IN_EXTRACTORS = ("weights", "path", "autoencoder")  # paths in evaluation.extractor


def absolute(key: str, value: Any, made_in: Path) -> tuple[str, Any]:
    """A path that is given now is relative to where we are, not to where the run was made."""
    if key in PATHS and value:
        return key, str(Path(value).expanduser().absolute())
    if key == "evaluation.extractor" and Path.cwd() != made_in:
        return key, _with_paths(value)
    return key, value


def _with_paths(extractor: Any) -> Any:
    """Settings of extractors with their paths from here; an autoencoder may have another name."""
    if isinstance(extractor, list):
        return [_with_paths(one) for one in extractor]
    if not isinstance(extractor, dict):
        return extractor
    found = {k: str(path.absolute()) for k, v in extractor.items()
             if k in IN_EXTRACTORS and v and (path := Path(v).expanduser()).exists()}  # fmt: skip
    inner = {k: _with_paths(v) for k, v in extractor.items() if k == "extractor"}
    return {**extractor, **found, **inner}
