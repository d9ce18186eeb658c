"""Floating-point operations of training, told by shapes: nothing is computed.

Those of training steps as the objectives state them (``Objective.step_cost``, which ``fewstep
bench`` holds against counted ones), and of drawing stored pairs. Matrix products and convolutions
count, attention as its matrix products.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.backbones import Backbone
from fewstep.experiments.config import RunConfig
from fewstep.experiments.data import Dataset, DataSource
from fewstep.experiments.drawing import CountedNet


def train_flops(config: RunConfig, dataset: Dataset, teacher: RunConfig | None) -> float | None:
    """Of all its steps on ``dataset``, and of pairs that the ``teacher`` draws before.

    What it took to train the teacher is the teacher's. None where the objective states no cost, or
    a network cannot be built of shapes alone.
    """
    cost = config.objective.step_cost()
    if cost is None:
        return None
    forward = forward_flops(config, dataset)
    pairs = pairs_flops(config, teacher, dataset)
    if forward is None or pairs is None:
        return None
    rows = config.training.steps * config.training.batch_size
    return rows * cost * 3 * forward + pairs  # forward, and twice back


def pairs_flops(
    config: RunConfig, teacher: RunConfig | None, dataset: Dataset | None = None
) -> float | None:
    """Of the pairs that a run has drawn before its first step; most draw none."""
    if teacher is None or not config.objective.needs_pairs:
        return 0.0
    forward = forward_flops(teacher, dataset)
    return None if forward is None else config.objective.pairs * calls_a_pair(config) * forward


def forward_flops(config: RunConfig, dataset: Dataset | None = None) -> int | None:
    """Of one pass of the run's network forward, for one example; ``dataset``: the run's, if loaded.

    None where the network cannot be built of shapes alone.
    """
    dataset = dataset or _loaded(config.data)  # type: ignore[arg-type]  # frozen, hence hashable
    about = (dataset.shape, dataset.num_classes, config.objective.uses_jump)
    return _forward(config.backbone, *about)  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def _forward(backbone: Backbone, shape: tuple[int, ...], classes: int, jump: bool) -> int | None:
    # half of torch's compiler comes with them: a trainer imports it anyway, a plan need not
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    try:
        with FakeTensorMode(), counter, sdpa_kernel(SDPBackend.MATH):  # as bench.py counts
            net = backbone.build(shape, classes, jump)
            t = torch.zeros(1)
            labels = torch.zeros(1, dtype=torch.int64) if classes else None
            net(torch.zeros(1, *shape), t, t if jump else None, labels)
    except RuntimeError:  # it looks at numbers, which there are none of
        return None
    return int(counter.get_total_flops())


@lru_cache(maxsize=16)
def _loaded(data: DataSource) -> Dataset:
    return data.load()


def calls_a_pair(config: RunConfig) -> int:
    """How often a teacher's network is asked for a pair; counted on a flow that stands still."""

    def still(x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)

    counted = CountedNet(still)
    config.objective.couple(counted, torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    return counted.calls
