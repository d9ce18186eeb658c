"""The evaluated cells of a run."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from fewstep.cli.views.console import new_table


def cells_table(cells: Sequence[dict[str, Any]]) -> Table:
    """A row per cell: its metric, how it was sampled, its value."""
    samplers = [
        " ".join(f"{name}={value}" for name, value in record["cell"]["sampler"].items())
        for record in cells
    ]
    over_training = any(record["cell"].get("at_step") for record in cells)
    rows = []
    for record, sampler in zip(cells, samplers, strict=True):
        cell, floor, error = record["cell"], record["floor"], record.get("error")
        row = {
            "metric": record["metric"]["label"],
            **({"at step": str(cell.get("at_step") or "last")} if over_training else {}),
            "steps": str(cell["steps"]) + ("*" if cell["times"] else ""),
            "NFE": str(record["nfe"]),
            "weights": cell["weights"],
            "guidance": f"{cell['guidance']:g}",
            "set": str(cell["sample_set"]),
            "value": _number(record["value"]) + (f" ± {_number(error)}" if error else ""),
            "floor": _number(floor),
        }
        if any("reconstruction" in r for r in cells):
            row["reconstruction"] = _number(record.get("reconstruction"))
        rows.append({**row, "sampler": sampler} if any(samplers) else row)
    return new_table(rows, right=[name for name in rows[0] if name not in ("metric", "sampler")])


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
