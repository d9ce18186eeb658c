"""What the commands in ``evaluating`` do."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from fewstep.cli.console import meter, out
from fewstep.errors import UserError, check_choice, check_range
from fewstep.experiments.config import amend, compose, pair
from fewstep.experiments.data import Dataset
from fewstep.experiments.extractors import CNN
from fewstep.experiments.measure import extractor
from fewstep.experiments.rundir import CACHE, find_run, write_json
from fewstep.experiments.settings import SPLITS, WEIGHTS
from fewstep.files import replacing


def train_extractor(root: Path, overrides: Sequence[str]) -> None:
    """``fewstep extractor train``."""
    dataset, chosen, _ = _asked("extractor train", overrides, ())
    made = extractor(chosen or {"name": "cnn"}, dataset)
    if not isinstance(made, CNN):
        raise UserError(f"extractor train makes a cnn; {chosen['name']} needs no training")
    made.check(dataset)
    begun = time.perf_counter()
    with meter(f"extractor cnn on {dataset.name}") as progress:

        def on_step(done: int) -> None:
            progress("train", done, made.steps, done / (time.perf_counter() - begun))

        file = made.train(dataset, root / CACHE, on_step)
    told = made.told(file)
    out.print(f"test accuracy: {told['test_accuracy']:.2%}")
    out.print(f"file: {file}", markup=False)
    out.print(f"sha256: {hashlib.sha256(file.read_bytes()).hexdigest()}")
    if set(chosen) - {"name"}:
        shown = ", ".join(f"{k}: {v}" for k, v in chosen.items())
        out.print(f"to use it: evaluation.extractor={{{shown}}}", markup=False)


def write_reference(root: Path, overrides: Sequence[str], images: bool) -> None:
    """``fewstep reference``."""
    from fewstep.experiments.reference import Reference

    dataset, chosen, rest = _asked("reference", overrides, ("split", "output"))
    split = str(rest.get("split", "train"))
    check_choice("split", split, SPLITS)
    if "output" not in rest:
        raise UserError("reference needs output=FILE, the npz to write")
    output = Path(str(rest["output"])).expanduser()
    if output.suffix != ".npz" or not output.resolve().parent.is_dir():
        raise UserError(f"output {str(output)!r}: a file ending in .npz in a folder that is there")
    made = extractor(chosen or "auto", dataset)
    made.check(dataset)
    with replacing(output) as other:
        if images:
            if not dataset.is_image:
                raise UserError(f"{dataset.name} is not made of images")
            x = (dataset.train if split == "train" else dataset.test).x
            with other.open("wb") as file:
                np.savez(file, arr_0=x.permute(0, 2, 3, 1).numpy())
            what = f"{len(x):,} images"
        else:
            reference = Reference(made.prepare(dataset, root / CACHE), dataset, root / CACHE, split)
            reference.moments.write(other)
            what = f"{reference.moments.n:,} images in {reference.moments.dimension} dimensions"
            what += f" of {reference.features.label}"
    out.print(f"{dataset.name} {split}: {what}: {output}", markup=False)


def bias(
    name: str, root: Path, overrides: Sequence[str], steps: int, weights: str, points: int
) -> None:
    """``fewstep bias``."""
    from fewstep.experiments.bias import bias_curves
    from fewstep.experiments.drawing import Cell
    from fewstep.experiments.preflight import check
    from fewstep.experiments.run import load_config
    from fewstep.reports.bias import bias_figure
    from fewstep.reports.figures import render

    check_range("--steps", steps, 1)
    check_range("--points", points, 3)
    check_choice("--weights", weights, WEIGHTS)
    directory = find_run(name, root)
    config = amend(load_config(directory), [*overrides, ("evaluation.metrics", ["fd"])])
    check([config])
    cell = Cell(steps, None, weights)
    with out.status(f"drawing samples of {directory.key} in {steps} steps"):
        found = bias_curves(config, directory, config.data.load(), directory.cache, cell, points)
    for identity, curves in found:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("N", *(curve.what for curve in curves)):
            table.add_column(column, justify="right")
        for i, size in enumerate(curves[0].sizes):
            table.add_row(f"{size:,.0f}", *(f"{curve.values[i]:.4g}" for curve in curves))
        table.add_row("infinite", *(f"{curve.limit:.4g}" for curve in curves), style="bold")
        label = identity["label"].split("@")[0]
        out.print(f"{label}, {steps} steps, {weights} weights")
        out.print(table)
        stem = f"bias-steps{steps:04d}-{weights}-{identity['id']}"
        records = [curve.record() for curve in curves]
        about = {"metric": identity, "cell": cell.describe(config.objective), "curves": records}
        write_json(directory.diagnostics / f"{stem}.json", about)
        figure = directory.diagnostics / f"{stem}.png"
        figure.write_bytes(render(bias_figure(label, records), "png"))
        out.print(f"figure: {figure}", markup=False)


def _asked(
    command: str, overrides: Sequence[str], others: Sequence[str]
) -> tuple[Dataset, dict[str, Any], dict[str, Any]]:
    """The data set, the settings of the extractor (none for the default), and the ``others``."""
    data: list[Any] = []
    chosen: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for override in overrides:
        key, value = pair(override)
        if key.split(".")[0] == "data":
            data.append((key, value))
        elif key == "extractor":
            chosen |= value if isinstance(value, dict) else {"name": value}
        elif key.startswith("extractor."):
            chosen[key.removeprefix("extractor.")] = value
        elif key in others:
            rest[key] = value
        else:
            takes = ", ".join(f"{name}=" for name in ("data", "extractor", *others))
            raise UserError(f"{command} takes {takes} and their settings, got {override!r}")
    if chosen:
        chosen = {"name": chosen.pop("name", "cnn"), **chosen}
    return compose(data).data.load(), chosen, rest
