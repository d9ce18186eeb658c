"""``fewstep bench data``: how fast batches come, against how fast a training step needs them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from fewstep.cli.bench import check_writable, described
from fewstep.cli.console import meter, out
from fewstep.errors import UserError, check_range
from fewstep.experiments.bench import Setting
from fewstep.experiments.composition import GROUPS
from fewstep.experiments.config import compose, pair
from fewstep.experiments.loading import measure
from fewstep.experiments.network import choose_device
from fewstep.experiments.provenance import environment, now


def bench_data(
    overrides: Sequence[str],
    batch: int,
    rounds: int,
    precision: str,
    device: str,
    compile_: bool,
    file: Path | None,
) -> None:
    """Measure, print a table, and write ``file`` if one is named."""
    check_range("--rounds", rounds, 1)
    check_writable(file)
    for override in overrides:
        if pair(override)[0].split(".")[0] not in GROUPS:
            raise UserError(
                f"bench data takes objective=, backbone=, data= and their settings, "
                f"got {override!r}"
            )
    config = compose(overrides)
    dataset = config.data.load()
    setting = Setting(
        config.backbone, dataset.shape, dataset.num_classes, batch,
        choose_device(device), precision, compile_,
    )  # fmt: skip
    with meter("bench data", "rounds") as progress:
        speeds = measure(setting, config.objective, dataset.train, rounds, progress)
    out.print(f"{dataset.name}, {described(setting, config)}", markup=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("where", "loaded images/s", "trained images/s", "share of a step", "waits"):
        table.add_column(column, justify="left" if column == "where" else "right")
    for speed in speeds:
        table.add_row(
            speed.where, f"{speed.loaded:,.0f}", f"{speed.trained:,.0f}",
            f"{speed.share:.1%}", f"{speed.waits:.1%}",
        )  # fmt: skip
    out.print(table)
    out.print("Share: a batch's loading over a step's time. Waits: what is left of it in training,")
    out.print(
        "where a batch is loaded while the step before it is at work. A step: loss, gradient."
    )
    if file is not None:
        record = {
            "speeds": [asdict(speed) for speed in speeds],
            "data": config.values["data"],
            "backbone": config.values["backbone"],
            "batch": batch,
            "rounds": rounds,
            "finished": now(),
            **environment(),
        }
        file.write_text(json.dumps(record, indent=2) + "\n")
        out.print(f"written: {file}", markup=False)
