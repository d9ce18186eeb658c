"""``fewstep bench``: what objectives, data, metrics, sweeps and reports cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from fewstep.cli.options import TYPER, JsonFile, Overrides, check_writable, pairs
from fewstep.cli.views.console import meter, new_table, out
from fewstep.errors import UserError, check_range

if TYPE_CHECKING:
    from fewstep.experiments.config.run_config import RunConfig

GROUPS = ("objective", "backbone", "data")
Batch = Annotated[int, typer.Option(help="Rows of a step.")]
Rounds = Annotated[int, typer.Option(help="Measurements of each time.")]
Precision = Annotated[str, typer.Option(help="float32 or bfloat16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile the trained network.")]


class DefaultStep(TyperGroup):
    """A group whose default command is ``step``: ``fewstep bench objective=scm``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the default, unless a command or help is named; options may come before a name."""
        names = [i for i, word in enumerate(args) if word in self.commands]
        if names and (names[0] == 0 or not args[names[0] - 1].startswith("--")):
            args = [args[names[0]], *args[: names[0]], *args[names[0] + 1 :]]
        elif not {"-h", "--help"} & set(args):
            args = ["step", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=DefaultStep, **TYPER)


@app.callback()
def bench() -> None:
    """Measure what objectives, data, metrics, sweeps and reports cost.

    Without a command, [bold]step[/]: [bold]fewstep bench step --help[/] shows its options.

    Example: [bold]fewstep bench "objective=\\[scm,shortcut]" backbone=dit_s_2 --shape 4,32,32[/]
    """


def step(
    overrides: Overrides = None,
    batch: Batch = 64,
    rounds: Rounds = 10,
    shape: Annotated[
        str | None, typer.Option(help="C,H,W or D: random data instead of the data set's.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="Number of classes; default: the data set's, or none.")
    ] = None,
    at: Annotated[
        float, typer.Option(help="Share of training that is done, 0 to 1; some costs change.")
    ] = 1.0,
    precision: Precision = "float32",
    device: Device = "auto",
    compile_: Compile = False,
    flops_only: Annotated[
        bool, typer.Option("--flops-only", help="Count FLOPs, and measure no times.")
    ] = False,
    peak_tflops: Annotated[
        float | None, typer.Option(help="The device's peak, to show the share of it in use.")
    ] = None,
    file: JsonFile = None,
) -> None:
    """Measure objectives: FLOPs, time and memory of a training step, speed of sampling.

    FLOPs and time are multiples of flow matching's. Without objective=, all are measured.

    Example: [bold]fewstep bench "objective=\\[scm,shortcut]" backbone=dit_s_2 --shape 4,32,32[/]
    """
    from fewstep.cli.views import cost_table
    from fewstep.experiments.cost.step_benchmark import Setting, measure
    from fewstep.experiments.training.network import choose_device

    check_range("--rounds", rounds, 1)
    if peak_tflops is not None:
        check_range("--peak-tflops", peak_tflops, 0, open_low=True)
    check_writable("--json", file)
    example = None if shape is None else _sizes(shape)
    configs = _objectives(overrides)
    config = next(iter(configs.values()))
    num_classes = 0
    if example is None:
        dataset = config.data.load()
        example, num_classes = dataset.shape, dataset.num_classes
    num_classes = num_classes if classes is None else classes
    setting = Setting(
        config.backbone, example, num_classes, batch,
        choose_device(device, "--device"), precision, compile_, at,
    )  # fmt: skip
    with meter("bench") as progress:
        objectives = {name: c.objective for name, c in configs.items()}
        costs = measure(setting, objectives, 0 if flops_only else rounds, progress)
    out.print(cost_table.description(setting, config))
    out.print(cost_table.table(costs, setting, peak_tflops))
    for line in cost_table.notes(costs):
        out.print(line)
    _write(file, cost_table.record(costs, setting, config, rounds, peak_tflops))


def data(
    overrides: Overrides = None,
    batch: Batch = 64,
    rounds: Rounds = 10,
    precision: Precision = "float32",
    device: Device = "auto",
    compile_: Compile = False,
    file: JsonFile = None,
) -> None:
    """Measure how fast batches are loaded, compared with a training step.

    Example: [bold]fewstep bench data data=mnist objective=scm --batch 128[/]
    """
    from dataclasses import asdict

    from fewstep.cli.views.cost_table import description
    from fewstep.experiments.config.run_config import compose
    from fewstep.experiments.cost.loading_benchmark import measure
    from fewstep.experiments.cost.step_benchmark import Setting, named_errors
    from fewstep.experiments.training.network import choose_device

    check_range("--rounds", rounds, 1)
    check_writable("--json", file)
    config = compose(pairs("bench data", overrides, GROUPS))
    dataset = config.data.load()
    setting = Setting(
        config.backbone, dataset.shape, dataset.num_classes, batch,
        choose_device(device, "--device"), precision, compile_,
    )  # fmt: skip
    with meter("bench data", "rounds") as progress, named_errors("a batch", setting):
        speeds = measure(setting, config.objective, dataset.train, rounds, progress)
    out.print(f"{dataset.name}, {description(setting, config)}")
    rows = [
        {
            "where": speed.where,
            "loaded images/s": f"{speed.loaded:,.0f}",
            "trained images/s": f"{speed.trained:,.0f}",
            "share of a step": f"{speed.share:.1%}",
            "waits": f"{speed.waits:.1%}",
        }
        for speed in speeds
    ]
    out.print(new_table(rows, right=[name for name in rows[0] if name != "where"]))
    out.print("share: time to load a batch / time of a step (loss and gradient)")
    out.print("waits: the share that is left when a batch is loaded during the step before it")
    record = {"speeds": [asdict(speed) for speed in speeds], "batch": batch, "rounds": rounds}
    _write(file, {**record, "data": config.values["data"], "backbone": config.values["backbone"]})


def metrics(file: JsonFile = None) -> None:
    """Measure our Fréchet distance beside SciPy's matrix square root, and other metrics.

    Example: [bold]fewstep bench metrics --json metrics.json[/]
    """
    from fewstep.cli.benchmarks.metrics import frechet_times, other_times

    check_writable("--json", file)
    rows, records = zip(*frechet_times(), strict=True)
    out.print("Fréchet distance")
    out.print(new_table(rows, right=rows[0]))
    others = other_times()
    _show_numbers("other metrics", {f"{name} (CPU s)": s for name, s in others.items()})
    _write(file, {"frechet": list(records), "others": others})


def sweep(file: JsonFile = None) -> None:
    """Measure what launchers, status and sync cost besides the runs themselves.

    Example: [bold]fewstep bench sweep[/]
    """
    from fewstep.cli.benchmarks.launching import measure

    check_writable("--json", file)
    numbers = measure()
    _show_numbers("launching", numbers)
    _write(file, numbers)


def analysis(file: JsonFile = None) -> None:
    """Measure the analysis and the report of a sweep of 10,000 runs.

    Example: [bold]fewstep bench analysis[/]
    """
    from fewstep.cli.benchmarks.analysis import RUNS, measure

    check_writable("--json", file)
    with meter("store", "runs") as progress:
        cells, numbers = measure(RUNS, progress)
    _show_numbers(f"{RUNS:,} runs, {cells:,} cells", numbers)
    _write(file, {"runs": RUNS, "cells": cells, **numbers})


for command in (step, data, metrics, sweep, analysis):
    app.command(command.__name__)(command)


def _write(file: Path | None, record: Mapping[str, Any]) -> None:
    from fewstep.experiments.store.provenance import environment, now

    if file is not None:
        content = {**record, "finished": now(), **environment()}
        file.write_text(json.dumps(content, indent=2) + "\n")
        out.print(f"written: {file}")


def _show_numbers(title: str, numbers: Mapping[str, float | None]) -> None:
    rows = [
        {title: name, "measured": "not available" if value is None else f"{value:,.2f}"}
        for name, value in numbers.items()
    ]
    out.print(new_table(rows, right=["measured"]))


def _objectives(overrides: Sequence[str] | None) -> dict[str, RunConfig]:
    from fewstep.experiments.config.run_config import compose
    from fewstep.objectives import OBJECTIVES

    names, rest = OBJECTIVES.names(), []
    for key, value in pairs("bench", overrides, GROUPS):
        if key == "objective":
            names = [str(v) for v in value] if isinstance(value, list) else [str(value)]
        else:
            rest.append((key, value))
    if not names:
        raise UserError("objective=[] names none")
    return {name: compose([("objective", name), *rest]) for name in names}


def _sizes(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise UserError(f"--shape takes C,H,W or D, sizes of at least 1, got {text!r}")
    return shape
