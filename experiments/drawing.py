"""Samples of a network: from the same noise and labels for all objectives of a seed.

The number of network calls is counted, not computed. Several processes of a run share the
network's rows (sharded.py), and nothing else: each has all N samples in the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.experiments.config import RunConfig, with_sampler
from fewstep.experiments.data import Dataset, to_uint8
from fewstep.experiments.distributed import ranks
from fewstep.experiments.rundir import Json
from fewstep.experiments.seeds import generator
from fewstep.experiments.sharded import Sharded
from fewstep.objectives import Guided, Net, Objective
from fewstep.objectives.guidance import EVERYWHERE

OnImages = Callable[[int], None]

BLOCK = 10_000  # samples held on the device at once; fixed, for fresh noise is drawn block by block


@dataclass(frozen=True)
class Cell:
    """How a run's network is sampled.

    ``times`` is None for ``steps`` uniform steps. ``sampler`` holds settings of the objective's
    sampler in place of its own.
    """

    steps: int
    times: tuple[float, ...] | None = None
    weights: str = "ema"
    guidance: float = 1.0
    sample_set: int = 0
    guidance_interval: tuple[float, float] = EVERYWHERE
    sampler: tuple[tuple[str, Any], ...] = ()

    def objective(self, objective: Objective) -> Objective:
        """``objective`` with this cell's sampler."""
        return with_sampler(objective, dict(self.sampler))

    def describe(self, objective: Objective) -> Json:
        """The cell as its file tells it, the objective's sampler settings included.

        A guidance interval is one of them where it restricts anything.
        """
        told = asdict(self)
        told["times"] = None if self.times is None else list(self.times)
        low, high = told.pop("guidance_interval")
        sampler = self.objective(objective).sampler_settings()
        if self.guidance != 1 and (low, high) != EVERYWHERE:
            sampler["guidance_interval"] = f"{low:g}-{high:g}"
        return {**told, "sampler": sampler}


def _nobody(images: int) -> None:
    """Is told of images."""


class CountedNet:
    """A network that counts its calls."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.calls = 0

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        self.calls += 1
        return self.net(x, t, d, y)


class BatchedNet:
    """A network asked for at most ``batch_size`` rows at a time.

    The sampler above it sees all rows at once, so what it draws from its generator, and with it
    the result, does not depend on the batch size.
    """

    def __init__(self, net: Net, batch_size: int, on_images: OnImages = _nobody) -> None:
        self.net, self.batch_size, self.on_images = net, batch_size, on_images

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        rows = torch.arange(len(x), device=x.device).tensor_split(-(-len(x) // self.batch_size))
        parts = []
        for i in rows:
            parts.append(
                self.net(x[i], t[i], None if d is None else d[i], None if y is None else y[i])
            )
            self.on_images(len(i))
        return torch.cat(parts)


@dataclass(frozen=True)
class Drawn:
    """``x``: raw data (N, ...); ``y``: (N,) or None; ``nfe``: network calls each sample cost."""

    x: Tensor
    y: Tensor | None
    nfe: int


def calls(config: RunConfig, dataset: Dataset, cell: Cell) -> int:
    """How often a cell asks the network, counted on one image and a network that says zero.

    An adaptive solver may ask a real one more often.
    """
    objective = cell.objective(config.objective)
    net = CountedNet(lambda x, t, d=None, y=None: torch.zeros_like(x))
    guided = Guided(net, cell.guidance, objective.path, cell.guidance_interval)
    objective.sample(
        net if cell.guidance == 1 else guided,
        torch.zeros(1, *dataset.shape),
        None if dataset.train.y is None else torch.zeros(1, dtype=torch.long),
        objective.path.times(cell.steps if cell.times is None else cell.times),
        torch.Generator(),
    )
    return net.calls


@torch.no_grad()
def draw(
    config: RunConfig,
    dataset: Dataset,
    net: nn.Module,
    cell: Cell,
    samples: int,
    batch_size: int,
    on_images: OnImages = _nobody,
) -> Drawn:
    """Sample ``net``; the noise and the labels depend on the seed and the sample set alone.

    ``batch_size`` bounds what the network is asked at a time and changes no number but by rounding.
    ``on_images`` is told each time how many it was asked for in this process; what it raises, ends
    the drawing.

    Raises:
        FloatingPointError: samples that are not finite.
    """
    seed, device = config.seed, next(net.parameters()).device
    objective = cell.objective(config.objective)
    times = objective.path.times(cell.steps if cell.times is None else cell.times)
    g = generator(seed, "noise", cell.sample_set)
    noise = torch.randn(samples, *dataset.shape, generator=g)
    labels = _labels(dataset, samples, generator(seed, "labels", cell.sample_set))
    if cell.guidance != 1 and labels is None:
        raise UserError(f"evaluation.guidance {cell.guidance}: {dataset.name} has no labels")
    parts, nfe = [], 0
    for i, index in enumerate(torch.arange(samples).split(BLOCK)):
        batched: Net = BatchedNet(net, batch_size, on_images)
        counted = CountedNet(batched if ranks().alone else Sharded(batched, ranks()))
        guided = Guided(counted, cell.guidance, objective.path, cell.guidance_interval)
        x = objective.sample(
            counted if cell.guidance == 1 else guided,
            noise[index].to(device),
            None if labels is None else labels[index].to(device),
            times,
            generator(seed, "sampler", cell.sample_set, i, device=device),
        ).cpu()
        if not bool(torch.isfinite(x).all()):
            raise FloatingPointError(f"samples at {cell.steps} steps are not finite")
        parts.append(to_uint8(x) if dataset.is_image else x.float())
        nfe = counted.calls
    x = torch.cat(parts)
    assert len(x) == samples, f"{len(x)} samples where {samples} were asked for"
    return Drawn(x, labels, nfe)


def _labels(dataset: Dataset, samples: int, g: torch.Generator) -> Tensor | None:
    """Labels in the training split's own proportions, to within one sample a class; shuffled.

    Evenly spaced positions of the sorted labels: a random draw would add its own spread to FD.
    """
    y = dataset.train.y
    if y is None:
        return None
    position = (torch.arange(samples) * len(y) + len(y) // 2) // samples
    return y.sort().values[position][torch.randperm(samples, generator=g)]
