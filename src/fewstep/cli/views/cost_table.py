"""The table and the record of ``fewstep bench step``: costs as multiples of flow matching's."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table

from fewstep.cli.views.console import new_table
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.cost.step_benchmark import TOLERANCE, Cost, Setting

RECORDED = ("num_classes", "batch", "precision", "compile", "at")


def description(setting: Setting, config: RunConfig) -> str:
    """One line: the network, the data and the device of the measurement."""
    size = "x".join(map(str, setting.shape))
    labels = f", {setting.num_classes} classes" if setting.num_classes else ""
    compiled = ", compiled" if setting.compile else ""
    return (
        f"{config.values['backbone']['name']} on {size}{labels}, batch {setting.batch}, "
        f"{setting.precision}{compiled}, {device_name(setting.device)}, torch {torch.__version__}"
    )


def device_name(device: torch.device) -> str:
    """Its model, or the number of threads of a CPU."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def table(costs: Sequence[Cost], setting: Setting, peak_tflops: float | None) -> Table:
    """A row per objective; a column for each quantity that was measured."""
    rows = []
    for cost in costs:
        row = {"objective": cost.name, "FLOPs": f"{cost.multiple:.3f}", "stated": stated(cost)}
        if cost.seconds is not None:
            row |= {
                "time": f"{cost.time:.2f}",
                "quartiles": f"{cost.time_low:.2f}-{cost.time_high:.2f}",
                "ms/step": f"{1e3 * cost.seconds:.1f}",
                "images/s": f"{setting.batch / cost.seconds:.0f}",
                "memory": "-" if cost.memory is None else f"{cost.memory / 1e6:.0f} MB",
            }
            row |= {"MFU": f"{utilisation(cost, peak_tflops):.1%}"} if peak_tflops else {}
            row |= {"calls/step": f"{cost.calls}", "samples/s/call": f"{cost.sampled:.0f}"}
        rows.append(row)
    return new_table(rows, right=[name for name in rows[0] if name != "objective"])


def stated(cost: Cost) -> str:
    """The cost that the objective states, with a mark if the count is above it."""
    if cost.stated is None:
        return "-"
    return f"{cost.stated:.3f}" + ("" if cost.holds else " !")


def notes(costs: Sequence[Cost]) -> list[str]:
    """Lines below the table."""
    lines = ["FLOPs, time: of a step (loss and gradient), over plain regression on this backbone."]
    high = [cost for cost in costs if cost.holds is False]
    if high:
        names = ", ".join(f"{cost.name} {100 * (cost.over or 0):+.1f}%" for cost in high)
        lines.append(f"! more than {TOLERANCE:.0%} above what the objective states: {names}")
    return lines


def utilisation(cost: Cost, peak_tflops: float) -> float:
    """Model FLOP utilisation: FLOPs a second over the device's peak."""
    assert cost.seconds is not None
    return cost.flops / cost.seconds / (peak_tflops * 1e12)


def record(
    costs: Sequence[Cost],
    setting: Setting,
    config: RunConfig,
    rounds: int,
    peak_tflops: float | None,
) -> dict[str, Any]:
    """All numbers, and the setting they belong to."""
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
        **{name: getattr(setting, name) for name in RECORDED},
        "rounds": rounds if costs[0].seconds is not None else 0,
        "peak_tflops": peak_tflops,
        "device": device_name(setting.device),
    }
