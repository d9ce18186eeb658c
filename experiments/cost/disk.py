"""What a run leaves on the disk, computed before it starts; logs are small beside it."""

import contextlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from fewstep.backbones import Backbone, build_backbone
from fewstep.experiments.config.averages import exponential
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.config.settings import Training
from fewstep.experiments.data import Dataset, DataSource
from fewstep.experiments.data.expected import nbytes
from fewstep.experiments.evaluation.evaluate import SAMPLES_KEPT, cells
from fewstep.experiments.optimisers import Optimiser
from fewstep.experiments.training.checkpoint import KEPT
from fewstep.experiments.training.network import uninitialised_weights

PIXELS_PER_LATENT = 8  # a side, of the usual autoencoders (Rombach et al. 2022)


@dataclass(frozen=True)
class DiskUse:
    """Bytes: of ``checkpoints`` (those kept; one more while it is written), ``weights`` of single
    steps that are evaluated, stored ``averages``, the ``samples`` kept of each cell (at most: they
    are compressed), and stored ``pairs``."""

    checkpoints: float
    weights: float
    averages: float
    samples: float
    pairs: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def disk_use(config: RunConfig, dataset: Dataset) -> DiskUse | None:
    """Of one run; None where its network cannot be built of shapes alone."""
    saved, training = checkpoint_bytes(config, dataset), config.training
    if saved is None or (sizes := _network(config, dataset)) is None:
        return None
    stored = 0
    if training.posthoc_ema:
        times = math.ceil(training.steps / training.posthoc_every)
        stored = times * len(training.posthoc_ema) * sizes[0]
    size, count = math.prod(dataset.shape), len(cells(config.evaluation, config.training))
    shown = size * (1 if dataset.is_image else 4)
    if not dataset.is_image and len(dataset.shape) == 3 and _decodes(config):
        shown = 3 * PIXELS_PER_LATENT**2 * math.prod(dataset.shape[1:])
    pairs = config.objective.pairs * (2 * size * 4 + 8) if config.objective.needs_pairs else 0
    network = sizes[0] + sizes[2]
    weights = len(config.evaluation.at_steps) * (1 + _averages(training)) * network
    return DiskUse(KEPT * saved, weights, stored, count * SAMPLES_KEPT * shown, pairs)


def checkpoint_bytes(config: RunConfig, dataset: Dataset) -> int | None:
    """Of one checkpoint: the network, its averages, the optimiser's state, what is learned beside.

    None where the network cannot be built of shapes alone.
    """
    objective, training = config.objective, config.training
    if (sizes := _network(config, dataset)) is None:
        return None
    weights, slots, buffers = sizes
    networks = (
        1 + _averages(training) + (objective.target_decay is not None) + objective.has_snapshots
    )
    if objective.companion_updates:
        networks, slots = networks + 1, 2 * slots
    auxiliary = objective.auxiliary_module()
    beside = [] if auxiliary is None else list(auxiliary.parameters())
    kept = networks * (weights + buffers) + sum(p.nbytes for p in beside)
    return kept + slots + sum(_slot_bytes(config.optimiser, p, "") for p in beside)


def _averages(training: Training) -> int:
    return len(exponential(training.ema, training.ema_warmup)) + len(training.posthoc_ema)


def _network(config: RunConfig, dataset: Dataset) -> tuple[int, int, int] | None:
    jump = config.objective.uses_jump
    about = (dataset.shape, dataset.num_classes, jump, dataset.condition_dim)
    return _sizes(config.backbone, config.optimiser, *about)  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def _sizes(backbone: Backbone, optimiser: Optimiser, *about: Any) -> tuple[int, int, int] | None:
    """Bytes of a network's parameters, of the optimiser's state, of what else the network saves."""
    with contextlib.suppress(NotImplementedError), uninitialised_weights():
        network = build_backbone(backbone, *about)
        rules, parameters = optimiser.rules(network), list(network.parameters())
        weights = sum(p.nbytes for p in parameters)
        slots = sum(_slot_bytes(optimiser, p, rules.get(p, "")) for p in parameters)
        saved = sum(x.nbytes for x in network.state_dict().values())
        return weights, slots, saved - weights
    return None


def _slot_bytes(optimiser: Optimiser, parameter: Tensor, rule: str) -> int:
    return sum(slot.nbytes for slot in optimiser.slots(parameter, rule).values())


def cache_bytes(source: DataSource, dataset: Dataset) -> int:
    """Of the data set in the cache that all runs share; 0 where it is kept in none."""
    return nbytes(dataset) if hasattr(source, "cache") else 0


def _decodes(config: RunConfig) -> bool:
    names = [e if isinstance(e, str) else e["name"] for e in config.evaluation.extractors]
    return "decoded" in names
