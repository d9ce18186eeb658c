"""Commands on one run: train, evaluate, sample."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fewstep.cli.console import err, meter, out
from fewstep.errors import UserError, check_choice, check_range
from fewstep.experiments.config import amend, compose
from fewstep.experiments.drawing import Cell, draw
from fewstep.experiments.measure import measures
from fewstep.experiments.network import choose_device, load_network
from fewstep.experiments.preflight import check
from fewstep.experiments.run import Busy, Interrupted, RunFailed, load_config, prepare, run
from fewstep.experiments.rundir import RunDirectory, find_run
from fewstep.experiments.settings import WEIGHTS
from fewstep.experiments.worker import BUSY, FAILED, INTERRUPTED, ProgressFile, StopFlag

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def train(overrides: Sequence[Any]) -> int:
    """``fewstep train``; returns the exit code."""
    config = compose(overrides)
    choose_device(config.training.device)
    check([config])
    directory = prepare(config)
    if directory.result() is not None:
        out.print(f"{directory.path} is trained already; nothing is repeated")
    return _run(directory, config.objective.title)


def evaluate(name: str, root: Path, overrides: Sequence[str]) -> int:
    """``fewstep evaluate``; returns the exit code."""
    directory = find_run(name, root)
    config = amend(load_config(directory), overrides)
    if directory.result() is None:
        raise UserError(
            f"run {directory.key} is not finished ({directory.status()}): train it to its end first"
        )
    config = amend(config, [("runs", str(directory.path.parent.parent))])
    config = amend(config, [("sweep", directory.sweep)])
    choose_device(config.training.device)
    check([config])
    for measure in measures(config.evaluation, config.data.load(), directory.cache):
        _ = measure.identity  # what cannot be read is bad input, and no failure of the run
    prepare(config)
    return _run(directory, config.objective.title)


def _run(directory: RunDirectory, title: str) -> int:
    directory.cancel.unlink(missing_ok=True)  # it is asked for again
    try:
        with meter(title) as progress:
            watched = ProgressFile(directory)  # by status, elsewhere

            def on_progress(phase: str, done: int, total: int, rate: float) -> None:
                progress(phase, done, total, rate)
                watched(phase, done, total, rate)

            result = run(directory, StopFlag(), on_progress)
    except RunFailed as failure:
        err.print(f"failed: {failure}", markup=False)
        err.print(f"recorded in {directory.path / 'failure.json'}", markup=False)
        return FAILED
    except Interrupted as reason:
        err.print(f"interrupted: {reason}; the same command continues", markup=False)
        return INTERRUPTED
    except Busy as reason:
        err.print(str(reason), markup=False)
        return BUSY
    cells = sorted(directory.cells().values(), key=lambda c: (c["metric"]["label"], c["nfe"]))
    if cells:
        out.print(_table(cells))
        if any(record.get("error") is not None for record in cells):
            out.print("±: standard error of the estimate from these samples, and no spread of runs")
    out.print(
        f"{result['steps']} steps in {result['train_seconds']:.0f} s "
        f"({result['steps_per_second']:.1f} steps/s), {result['parameters']:,} parameters, "
        f"peak memory {result['peak_memory_bytes'] / 1e6:.0f} MB"
    )
    out.print(f"run: {directory.path}", markup=False)
    return 0


def _table(cells: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    samplers = [_sampler(record["cell"]["sampler"]) for record in cells]
    columns = ["metric", "steps", "NFE", "weights", "guidance", "set", "value", "floor"]
    for column in columns:
        table.add_column(column, justify="left" if column == "metric" else "right")
    if any(samplers):
        table.add_column("sampler")
    for record, sampler in zip(cells, samplers, strict=True):
        cell, floor, error = record["cell"], record["floor"], record.get("error")
        table.add_row(
            record["metric"]["label"],
            str(cell["steps"]) + ("*" if cell["times"] else ""),
            str(record["nfe"]),
            cell["weights"],
            f"{cell['guidance']:g}",
            str(cell["sample_set"]),
            _number(record["value"]) + (f" ± {_number(error)}" if error else ""),
            "-" if floor is None else _number(floor),
            *([sampler] if any(samplers) else []),
        )
    return table


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def _sampler(settings: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def sample(
    name: str,
    root: Path,
    overrides: Sequence[str],
    steps: int,
    output: Path,
    count: int,
    weights: str,
    guidance: float,
) -> None:
    """``fewstep sample``: draw ``count`` samples and write them as one picture."""
    check_range("--steps", steps, 1)
    check_range("--count", count, 1)
    check_choice("--weights", weights, WEIGHTS)
    if output.suffix.lower() not in PICTURES:
        raise UserError(f"--out {str(output)!r} is no picture (choices: {', '.join(PICTURES)})")
    if not output.resolve().parent.is_dir():
        raise UserError(f"--out {str(output)!r}: no folder {output.resolve().parent}")
    if not os.access(output.resolve().parent, os.W_OK):
        raise UserError(f"--out {str(output)!r}: cannot write to {output.resolve().parent}")
    directory = find_run(name, root)
    config = amend(load_config(directory), overrides)
    dataset = config.data.load()
    if not dataset.is_image:
        raise UserError(f"{dataset.name} is not made of images; no picture can be drawn")
    net = load_network(config, dataset, directory.checkpoints, weights)
    net.to(choose_device(config.training.device))
    cell = Cell(steps, None, weights, guidance, 0)
    drawn = draw(config, dataset, net, cell, count, config.evaluation.batch_size)
    from fewstep.reports.mosaic import write_mosaic

    write_mosaic(drawn.x.numpy(), output)
    out.print(f"{count} samples, {drawn.nfe} network calls each: {output}", markup=False)
