"""``fewstep bench``: what the objectives cost, as multiples of flow matching."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from fewstep.cli.console import meter, out
from fewstep.errors import UserError, check_range
from fewstep.experiments.bench import TOLERANCE, Cost, Setting, measure
from fewstep.experiments.composition import GROUPS
from fewstep.experiments.config import RunConfig, compose, pair
from fewstep.experiments.network import choose_device
from fewstep.experiments.provenance import environment, now
from fewstep.objectives import OBJECTIVES


def bench(
    overrides: Sequence[str],
    *,
    batch: int,
    rounds: int,
    shape: str | None,
    classes: int | None,
    at: float,
    precision: str,
    device: str,
    compile_: bool,
    flops_only: bool,
    peak_tflops: float | None,
    file: Path | None,
) -> None:
    """Measure, print a table, and write ``file`` if one is named."""
    check_range("--rounds", rounds, 1)
    if peak_tflops is not None:
        check_range("--peak-tflops", peak_tflops, 0, open_low=True)
    check_writable(file)
    example = None if shape is None else sizes(shape)
    configs = chosen(overrides)
    config = next(iter(configs.values()))
    num_classes = 0
    if example is None:
        dataset = config.data.load()
        example, num_classes = dataset.shape, dataset.num_classes
    setting = Setting(
        config.backbone,
        example,
        num_classes if classes is None else classes,
        batch,
        choose_device(device),
        precision,
        compile_,
        at,
    )
    with meter("bench") as progress:
        objectives = {name: c.objective for name, c in configs.items()}
        costs = measure(setting, objectives, 0 if flops_only else rounds, progress)
    out.print(described(setting, config), markup=False)
    out.print(table(costs, setting, peak_tflops))
    for line in notes(costs, setting):
        out.print(line, markup=False)
    if file is not None:
        record = record_of(costs, setting, config, rounds, peak_tflops)
        file.write_text(json.dumps(record, indent=2) + "\n")
        out.print(f"written: {file}", markup=False)


def chosen(overrides: Sequence[str]) -> dict[str, RunConfig]:
    """The configuration of each objective that is named; of all registered ones, if none is."""
    names, rest = OBJECTIVES.names(), []
    for override in overrides:
        key, value = pair(override)
        if key == "objective":
            names = [str(v) for v in value] if isinstance(value, list) else [str(value)]
        elif key.split(".")[0] in GROUPS:
            rest.append(override)
        else:
            raise UserError(
                f"bench takes objective=, backbone=, data= and their settings, got {override!r}"
            )
    if not names:
        raise UserError("objective=[] names none")
    return {name: compose([("objective", name), *rest]) for name in names}


def sizes(text: str) -> tuple[int, ...]:
    """``"4,32,32"`` as a shape."""
    try:
        made = tuple(int(part) for part in text.split(","))
    except ValueError:
        made = ()
    if len(made) not in (1, 3) or min(made) < 1:
        raise UserError(f"--shape takes C,H,W or D, sizes of at least 1, got {text!r}")
    return made


def check_writable(file: Path | None) -> None:
    """Raise unless ``file`` can be written, before anything is measured for it."""
    if file is None:
        return
    folder = file.resolve().parent
    if not folder.is_dir():
        raise UserError(f"--json {str(file)!r}: no folder {folder}")
    if file.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise UserError(f"--json {str(file)!r}: cannot be written")


def described(setting: Setting, config: RunConfig) -> str:
    """One line: on what it was measured."""
    size = "x".join(map(str, setting.shape))
    labels = f", {setting.num_classes} classes" if setting.num_classes else ""
    compiled = ", compiled" if setting.compile else ""
    return (
        f"{config.values['backbone']['name']} on {size}{labels}, batch {setting.batch}, "
        f"{setting.precision}{compiled}, {device_name(setting.device)}, torch {torch.__version__}"
    )


def device_name(device: torch.device) -> str:
    """Its model, or how many threads a CPU works with."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def table(costs: Sequence[Cost], setting: Setting, peak_tflops: float | None) -> Table:
    """One row an objective; the columns of what was measured."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    timed = costs[0].seconds is not None
    columns = ["objective", "FLOPs", "stated"]
    if timed:
        columns += ["time", "quartiles", "ms/step", "images/s", "memory"]
        columns += ["MFU"] if peak_tflops else []
        columns += ["calls/step", "samples/s/call"]
    for column in columns:
        made.add_column(column, justify="left" if column == "objective" else "right")
    for cost in costs:
        cells = [cost.name, f"{cost.multiple:.3f}", stated(cost)]
        if cost.seconds is not None:
            cells += [
                f"{cost.time:.2f}",
                f"{cost.time_low:.2f}-{cost.time_high:.2f}",
                f"{1e3 * cost.seconds:.1f}",
                f"{setting.batch / cost.seconds:.0f}",
                "-" if cost.memory is None else f"{cost.memory / 1e6:.0f} MB",
            ]
            cells += [f"{utilisation(cost, peak_tflops):.1%}"] if peak_tflops else []
            cells += [f"{cost.calls}", f"{cost.sampled:.0f}"]
        made.add_row(*cells)
    return made


def stated(cost: Cost) -> str:
    """What the objective says of itself, with a mark where the count is above it."""
    if cost.stated is None:
        return "-"
    return f"{cost.stated:.3f}" + ("" if cost.holds else " !")


def notes(costs: Sequence[Cost], setting: Setting) -> list[str]:
    """What a reader of the table must know."""
    told = "FLOPs, time: of a step (loss and gradient), over plain regression on this backbone."
    lines = [told]
    high = [cost for cost in costs if cost.holds is False]
    if high:
        names = ", ".join(f"{cost.name} {100 * (cost.over or 0):+.1f}%" for cost in high)
        lines.append(f"! more than {TOLERANCE:.0%} above what the objective states: {names}")
    return lines


def utilisation(cost: Cost, peak_tflops: float) -> float:
    """Model FLOP utilisation: FLOPs a second over the device's peak."""
    assert cost.seconds is not None
    return cost.flops / cost.seconds / (peak_tflops * 1e12)


def record_of(
    costs: Sequence[Cost],
    setting: Setting,
    config: RunConfig,
    rounds: int,
    peak_tflops: float | None,
) -> dict[str, Any]:
    """All numbers, and where they come from."""
    rows = []
    for cost in costs:
        row = {**asdict(cost), "holds": cost.holds}
        if cost.seconds is not None:
            row["images_per_second"] = setting.batch / cost.seconds
            row["mfu"] = utilisation(cost, peak_tflops) if peak_tflops else None
        rows.append(row)
    return {
        "costs": rows,
        "backbone": config.values["backbone"],
        "shape": list(setting.shape),
        "num_classes": setting.num_classes,
        "batch": setting.batch,
        "precision": setting.precision,
        "compile": setting.compile,
        "at": setting.at,
        "rounds": rounds if costs[0].seconds is not None else 0,
        "peak_tflops": peak_tflops,
        "device": device_name(setting.device),
        "finished": now(),
        **environment(),
    }
