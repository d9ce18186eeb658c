"""Floating-point operations of training, from those of one pass forward.

Those of training steps as the objectives state them (``Objective.step_cost``, which ``fewstep
bench`` holds against counted ones), of drawing stored pairs and of sampling in the evaluation.
Matrix products and convolutions count, attention as its matrix products.
"""

import contextlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fewstep.backbones import Backbone, build_backbone
from fewstep.errors import UserError
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.data import Dataset, DataSource
from fewstep.experiments.data.base import placeholder_of
from fewstep.experiments.evaluation.sampling import SamplingConfig, calls
from fewstep.experiments.training.network import uninitialised_weights
from fewstep.experiments.training.trainer import VALIDATION_BATCHES
from fewstep.objectives.core.amed import passes
from fewstep.objectives.core.wrappers import CountedNet

SMALL = 2_000_000
"""Weights of a network that is built, and run once, sooner than what counts by shapes is
imported."""


def train_flops(
    config: RunConfig, dataset: Dataset, teacher: RunConfig | None, net: nn.Module | None = None
) -> float | None:
    """Of all its steps on ``dataset``, and of pairs that the ``teacher`` draws before.

    What it took to train the teacher is the teacher's. None where the objective states no cost, or
    a network cannot be built of shapes alone. ``net``: the run's, which has a look at one example.
    """
    step, pairs = step_flops(config, dataset, net), pairs_flops(config, teacher, dataset)
    return None if step is None or pairs is None else config.training.steps * step + pairs


def step_flops(
    config: RunConfig, dataset: Dataset | None = None, net: nn.Module | None = None
) -> float | None:
    """Of a training step; None where it is not known (``train_flops``)."""
    cost, forward = config.objective.step_cost(), forward_flops(config, dataset, net)
    if cost is None or forward is None:
        return None
    return config.training.batch_size * cost * 3 * forward  # forward, and twice back


def recomputed_flops(config: RunConfig, dataset: Dataset) -> float | None:
    """Of the second pass forward of an update with ``microbatch`` or checkpointed activations.

    It saves memory and is no part of the method, so that ``step_flops`` does not count it.
    """
    if config.training.microbatch is None and not config.training.activation_checkpointing:
        return 0.0
    forward = forward_flops(config, dataset)
    if forward is None:
        return None
    return float(config.training.batch_size * (1 + config.objective.companion_updates) * forward)


def validation_flops(config: RunConfig, dataset: Dataset) -> float | None:
    """Of computing the validation loss once: a training step's passes forward, on some batches."""
    passes, forward = config.objective.forward_passes(), forward_flops(config, dataset)
    if passes is None or forward is None:
        return None
    rows = min(config.training.batch_size, len(dataset.test))
    return VALIDATION_BATCHES * rows * passes * forward


def sampling_flops(
    config: RunConfig, dataset: Dataset, cells: Iterable[SamplingConfig]
) -> float | None:
    """Of drawing the samples of ``cells``; metrics, and a decoder of latents, are not counted."""
    forward, samples = forward_flops(config, dataset), config.evaluation.samples
    rows = samples or len(dataset.test)
    asked = sum(_passes(config, dataset, cell, rows) for cell in cells)
    return None if forward is None else asked * forward


def pairs_flops(
    config: RunConfig, teacher: RunConfig | None, dataset: Dataset | None = None
) -> float | None:
    """Of the pairs that a run has drawn before its first step; most draw none."""
    if teacher is None or not config.objective.needs_pairs:
        return 0.0
    forward = forward_flops(teacher, dataset)
    return None if forward is None else config.objective.pairs * calls_per_pair(config) * forward


def forward_flops(
    config: RunConfig, dataset: Dataset | None = None, net: nn.Module | None = None
) -> int | None:
    """Of one pass of the run's network forward, for one example.

    ``dataset``, ``net``: the run's, where they are loaded; else its shapes are enough.

    None where the network cannot be built of shapes alone.
    """
    dataset = dataset or _shapes(config.data)  # type: ignore[arg-type]  # frozen, hence hashable
    about = (dataset.shape, dataset.num_classes, config.objective.uses_jump, dataset.condition_dim)
    try:
        if net is not None:
            return _counted(net, *about)
        return _from_shapes(config.backbone, *about)  # type: ignore[arg-type]
    except RuntimeError:  # it looks at numbers, which there are none of
        return None


class _Counter(TorchDispatchMode):
    """Counts as torch's ``FlopCounterMode``, which imports torch's compiler: a second of a run."""

    total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


@lru_cache(maxsize=256)
def _from_shapes(backbone: Backbone, *about: Any) -> int:
    with uninitialised_weights(), contextlib.suppress(NotImplementedError):
        empty = build_backbone(backbone, *about)
        if sum(p.numel() for p in empty.parameters()) < SMALL:
            with torch.random.fork_rng([]), torch.device("cpu"):
                return _counted(build_backbone(backbone, *about), *about)
    # half of torch's compiler comes with it
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return _counted(build_backbone(backbone, *about), *about)


@torch.no_grad()
def _counted(
    net: nn.Module, shape: tuple[int, ...], classes: int, jump: bool, condition_dim: int
) -> int:
    device = next((p.device for p in net.parameters()), None)
    t = torch.zeros(1, device=device)
    y = torch.zeros(1, dtype=torch.int64, device=device) if classes else None
    y = torch.zeros(1, condition_dim, device=device) if condition_dim else y
    counter = _Counter()
    with counter, sdpa_kernel(SDPBackend.MATH):  # as step_benchmark.py counts
        net(torch.zeros(1, *shape, device=device), t, t if jump else None, y)
    return counter.total


@lru_cache(maxsize=16)
def _shapes(data: DataSource) -> Dataset:
    try:
        return data.load()
    except UserError:
        if (placeholder := placeholder_of(data)) is None:
            raise
        return placeholder


def _passes(config: RunConfig, dataset: Dataset, cell: SamplingConfig, rows: int) -> float:
    """How many rows go through the network to draw a cell, the training of its solver included."""
    asked = _calls(config, dataset, cell)
    if (learned := cell.learned(config.objective)) is None:
        return asked * rows
    guided = asked / (2 * cell.steps)  # calls of the network for one of the flow
    return asked * rows + guided * passes(learned, cell.steps)


def _calls(config: RunConfig, dataset: Dataset, cell: SamplingConfig) -> int:
    about = (repr(config.objective), cell, dataset.shape, dataset.train.y is None)
    if about not in _known_calls:
        _known_calls[about] = calls(config, dataset, cell)
    return _known_calls[about]


_known_calls: dict[Any, int] = {}


def calls_per_pair(config: RunConfig) -> int:
    """How often a teacher's network is asked for a pair; counted on a flow that stands still."""
    counted = CountedNet(lambda x, t, d=None, y=None: torch.zeros_like(x))
    config.objective.make_pairs(counted, torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    return counted.calls
