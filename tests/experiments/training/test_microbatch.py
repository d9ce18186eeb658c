"""A batch in parts has the gradients of the whole batch, for every objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ranks import in_float64
from helpers.tiny import taught, tiny, train, trainer
from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.config.settings import Training
from fewstep.experiments.training.trainer import Trainer
from fewstep.objectives import OBJECTIVES

# masks and dropped labels have to be those of the whole batch, too; 16 rows, the last part smaller
# for objectives that ask for other numbers of rows
SETTINGS = ["training.batch_size=16", "backbone.dropout=0.2", "training.label_dropout=0.2"]


def steps_of(made: Trainer, count: int) -> tuple[list[Tensor], list[float]]:
    """The gradients of the last of some steps, and all losses."""
    losses = [float(made._update()["loss"]) for _ in range(count)]
    trained = [*made.named.values(), *(made.companion.named.values() if made.companion else ())]
    return [p.grad.clone() for p in trained if p.grad is not None], losses


@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_gradients_in_parts_are_those_of_the_whole(objective: str, tmp_path: Path) -> None:
    with in_float64():
        settings: list[Any] = [*taught(tmp_path, objective), *SETTINGS]
        whole, parts = (
            trainer(tiny(tmp_path, *settings, *more)) for more in ([], ["training.microbatch=4"])
        )
        assert whole.config.key == parts.config.key
        for made in (whole, parts):
            made.prepare(lambda: False, lambda done, total, rate: None)
        (gradients, losses), (others, same) = steps_of(whole, 2), steps_of(parts, 2)
        assert losses == pytest.approx(same, rel=1e-9)
        assert len(gradients) == len(others) > 0
        for gradient, other in zip(gradients, others, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("objective", ["flow_matching", "scm"])
def test_what_is_kept_for_the_backward_pass_is_that_of_a_part(
    objective: str, tmp_path: Path
) -> None:
    def kept(*more: str) -> int:
        """The most bytes that are kept at a time."""
        made = trainer(tiny(tmp_path, f"objective={objective}", "training.batch_size=64", *more))
        now, most = 0, 0

        class Kept:
            def __init__(self, tensor: Tensor) -> None:
                nonlocal now, most
                self.tensor = tensor
                now += tensor.numel()
                most = max(most, now)

            def __del__(self) -> None:
                nonlocal now
                now -= self.tensor.numel()

        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            made._update()
        return most

    whole, parts = kept(), kept("training.microbatch=8")
    assert parts < whole / 4


def test_a_part_that_does_not_divide_the_batch() -> None:
    with pytest.raises(UserError, match=r"must divide training.batch_size=128, got 50; .* is 64"):
        Training(microbatch=50)
    with pytest.raises(UserError, match=r"training.microbatch must be at least 1, got 0"):
        Training(microbatch=0)
    with pytest.raises(
        UserError, match=r"training.microbatch cannot be used with training.activat"
    ):
        Training(microbatch=32, activation_checkpointing=True)


def test_a_run_goes_on_in_parts_of_another_size(tmp_path: Path) -> None:
    """It is no part of its key, as what else only saves memory."""
    first = train(tiny(tmp_path, "training.microbatch=8", "training.steps=4"))
    second = trainer(tiny(tmp_path, "training.microbatch=4", "training.steps=4"))
    assert second._restore()
    assert second.step == 4
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.net.parameters(), second.net.parameters(), strict=True)
    )
