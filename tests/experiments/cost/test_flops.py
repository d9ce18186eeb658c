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
from fewstep.experiments.data.expected import Expected
from fewstep.experiments.evaluation.evaluate import cells
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


def test_an_mlps_operations_in_closed_form() -> None:
    """A multiply-add is two: 128 sinusoids -> W -> W, D -> W, per block W -> 3W, two W -> W."""
    config = compose(["data=gaussians", "backbone=mlp", "backbone.width=24", "backbone.depth=3"])
    W, D, depth = 24, 2, 3
    assert flops.forward_flops(config) == 2 * (128 * W + W**2 + 2 * D * W + depth * 5 * W**2)


@pytest.mark.parametrize(
    ("backbone", "shape", "N", "P", "W", "depth"),
    [("dit_digits", (1, 8, 8), 16, 4, 64, 3), ("dit_b_2", (4, 32, 32), 256, 16, 768, 12)],
)
def test_a_dits_operations_in_closed_form(
    backbone: str, shape: tuple[int, ...], N: int, P: int, W: int, depth: int
) -> None:
    """N tokens of P numbers. The second is too large to be built: it is counted by its shapes."""
    expected = Expected(shape, 10, 10, 10).placeholder("fake", torch.float32)
    condition, patches, last = 128 * W + W**2, 2 * N * P * W, 2 * W**2
    block = 6 * W**2 + N * (3 + 1 + 4 + 4) * W**2 + 2 * N**2 * W
    config = compose([f"backbone={backbone}"])
    found = flops.forward_flops(config, expected)
    assert found == 2 * (condition + patches + depth * block + last)


def test_sampling_counts_steps_solver_and_guidance(tmp_path: Path) -> None:
    """Heun asks twice a step; guidance doubles that; two sets of 50."""
    config = tiny(
        tmp_path, "objective.solver=heun", "training.label_dropout=0.1",
        "evaluation.guidance=[1,2]", "evaluation.steps=[1,4]", "evaluation.samples=50",
        "evaluation.sample_sets=2",
    )  # fmt: skip
    dataset, forward = config.data.load(), flops.forward_flops(config)
    assert forward is not None
    asked = sum(2 * steps * guided for steps in (1, 4) for guided in (1, 2))
    found = flops.sampling_flops(config, dataset, cells(config.evaluation, config.training))
    assert found == 2 * 50 * asked * forward
    assert flops.validation_flops(config, dataset) == 4 * 16 * forward  # four batches, forward


@pytest.mark.parametrize(("name", "passes"), [("sid", 4 + 7), ("dmd2", 4 * 5 + 5)])
def test_a_companions_updates_count_in_a_step_and_not_in_a_validation(
    tmp_path: Path, name: str, passes: int
) -> None:
    config = tiny(tmp_path, f"objective={name}", "training.microbatch=4")
    dataset, forward = config.data.load(), flops.forward_flops(config)
    assert forward is not None
    assert flops.step_flops(config) == pytest.approx(16 * passes * forward)
    assert flops.validation_flops(config, dataset) == 4 * 16 * 3 * forward
    again = 1 + config.objective.companion_updates
    assert flops.recomputed_flops(config, dataset) == 16 * again * forward
