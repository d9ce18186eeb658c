"""The first spike of the gradient, as its definition says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fewstep.analysis.spikes import first_spike


@pytest.mark.parametrize(
    ("norms", "step"),
    [
        ([1, 2, 3, 2, 1], None),  # too few lines before any
        ([1, 2, 3, 2, 1, 20], 0),  # ten times the median is not above it
        ([1, 2, 3, 2, 1, 20.1], 6),
        ([1, 2, 3, 2, 1, 1, 30, 1, 40], 7),  # the first one
        ([100, 1, 1, 1, 1, 1], 0),  # a fall is none
        ([*[1] * 10, *[5] * 20, 45], 0),  # of the last 20 alone
        ([*[5] * 10, *[1] * 20, 11], 31),
    ],
)
def test_the_first_spike_of_the_gradient(
    tmp_path: Path, norms: list[float], step: int | None
) -> None:
    file = tmp_path / "metrics.jsonl"
    assert first_spike(file) is None
    lines = [{"step": i, "loss": 1e3 * i, "grad_norm": n} for i, n in enumerate(norms, start=1)]
    lines.insert(2, {"step": 99, "validation_loss": 1.0})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert first_spike(file) == step
