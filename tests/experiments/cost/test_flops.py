"""The operations that a run's record tells, against those that torch counts on real tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.tiny import taught, tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fewstep.experiments.config.run_config import compose
from fewstep.experiments.cost import flops
from fewstep.experiments.run import prepare, run
from fewstep.experiments.training.network import build_network


@pytest.mark.parametrize("backbone", ["dit_digits", "unet_digits"])
@pytest.mark.parametrize("objective", ["flow_matching", "shortcut"])  # without and with a jump
def test_a_pass_forward(tmp_path: Path, backbone: str, objective: str) -> None:
    config = compose(
        ["data=digits", f"objective={objective}", f"backbone={backbone}", ("runs", str(tmp_path))]
    )
    dataset = config.data.load()
    jump = config.objective.uses_jump
    net = build_network(config, dataset)
    t, y = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(torch.zeros(1, *dataset.shape), t, t if jump else None, y)
    assert flops.forward_flops(config, dataset) == counter.get_total_flops() > 0
    assert flops.forward_flops(config) == flops.forward_flops(config, dataset)


def test_a_run_tells_what_its_training_took(tmp_path: Path) -> None:
    config = tiny(tmp_path, "objective=shortcut")
    passes = 6 * 16 * 3 * (7 / 6)  # steps, rows, one pass forward and two back, and its own share
    expected = passes * flops.forward_flops(config)
    assert run(prepare(config))["train_flops"] == pytest.approx(expected)


def test_drawing_pairs_counts(tmp_path: Path) -> None:
    """Forty of them in two steps each, with the teacher's network."""
    config = tiny(tmp_path, *taught(tmp_path, "reflow"))
    forward = flops.forward_flops(config)
    assert run(prepare(config))["train_flops"] == (6 * 16 * 3 + 40 * 2) * forward


def test_nothing_is_told_where_nobody_stated_a_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(tmp_path)
    monkeypatch.setattr(type(config.objective), "step_cost", lambda self: None)
    assert flops.train_flops(config, config.data.load(), None) is None
