"""The command ``fewstep bench``, and what it can measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli.arguments import Overrides


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
    Instead, [bold]fewstep bench sweep[/] measures what launchers, status and sync cost,
    [bold]fewstep bench data[/] how fast data are loaded, against a training step,
    [bold]fewstep bench metrics[/] the Frechet distance beside SciPy's matrix square root,
    [bold]fewstep bench analysis[/] the report of 10,000 runs.

    Example: [bold]fewstep bench "objective=\\[scm,shortcut]" backbone=dit_s_2 --shape 4,32,32[/]
    """
    if overrides == ["sweep"]:
        from fewstep.cli.bench_sweep import bench_sweep

        bench_sweep(file)
        return
    if overrides == ["metrics"]:
        from fewstep.cli.bench_metrics import bench_metrics

        bench_metrics(file)
        return
    if overrides == ["analysis"]:
        from fewstep.cli.bench_analysis import bench_analysis

        bench_analysis(file)
        return
    if overrides and overrides[0] == "data":
        from fewstep.cli.bench_data import bench_data

        bench_data(overrides[1:], batch, rounds, precision, device, compile_, file)
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
