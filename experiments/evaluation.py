"""Evaluated cells: one Frechet distance each, with how it was sampled.

All cells of a seed, whatever the objective, start from the same noise and the same labels, and the
number of network calls is counted, not computed.

Several processes of a run share the network's rows (sharded.py), and nothing else: each has all N
samples in the end, and the first one takes their distance.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.experiments.config import RunConfig
from fewstep.experiments.data import Dataset, to_uint8
from fewstep.experiments.distributed import ranks
from fewstep.experiments.metric import Metric, short_hash
from fewstep.experiments.network import choose_device, load_network
from fewstep.experiments.provenance import made_by
from fewstep.experiments.rundir import Json, RunDirectory, write_json
from fewstep.experiments.seeds import generator
from fewstep.experiments.settings import Evaluation
from fewstep.experiments.sharded import Sharded
from fewstep.objectives import Guided, Net, Objective
from fewstep.objectives.guidance import EVERYWHERE

SAMPLES_KEPT = 64  # of each cell, for the sample grid
BLOCK = 10_000  # samples held on the device at once; fixed, for fresh noise is drawn block by block

OnCell = Callable[[int, int, float], None]
"""(cells done, of how many, cells a second)"""


@dataclass(frozen=True)
class Cell:
    """How a run's network is sampled. ``times`` is None for ``steps`` uniform steps."""

    steps: int
    times: tuple[float, ...] | None = None
    weights: str = "ema"
    guidance: float = 1.0
    sample_set: int = 0
    guidance_interval: tuple[float, float] = EVERYWHERE

    def describe(self, objective: Objective) -> Json:
        """The cell as its file tells it, the objective's sampler settings included.

        A guidance interval is one of them where it restricts anything.
        """
        told = asdict(self)
        told["times"] = None if self.times is None else list(self.times)
        low, high = told.pop("guidance_interval")
        sampler = objective.sampler_settings()
        if self.guidance != 1 and (low, high) != EVERYWHERE:
            sampler["guidance_interval"] = f"{low:g}-{high:g}"
        return {**told, "sampler": sampler}


def cells(evaluation: Evaluation) -> list[Cell]:
    """The product that the settings ask for."""
    schedules: list[tuple[int, tuple[float, ...] | None]] = [(k, None) for k in evaluation.steps]
    schedules += [(len(times) - 1, tuple(times)) for times in evaluation.times]
    low, high = (float(share) for share in evaluation.guidance_interval)
    return [
        Cell(steps, times, weights, float(guidance), sample_set, (low, high))
        for (steps, times), weights, guidance, sample_set in product(
            schedules, evaluation.weights, evaluation.guidance, range(evaluation.sample_sets)
        )
    ]


def asked(evaluation: Evaluation) -> Json:
    """The metric as the settings ask for it; kept in a cell's file beside what it came to."""
    return {name: getattr(evaluation, name) for name in ("samples", "reference", "extractor")}


def cells_to_come(config: RunConfig, directory: RunDirectory) -> list[Cell]:
    """Which of the cells asked for the directory lacks; reads JSON only, prepares nothing."""
    have = [(cell["cell"], cell["asked"]) for cell in directory.cells().values()]
    metric = asked(config.evaluation)
    want = cells(config.evaluation)
    return [c for c in want if (c.describe(config.objective), metric) not in have]


def cells_lacking(config: RunConfig, directory: RunDirectory) -> int:
    """How many they are."""
    return len(cells_to_come(config, directory))


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

    def __init__(self, net: Net, batch_size: int) -> None:
        self.net, self.batch_size = net, batch_size

    def __call__(
        self, x: Tensor, t: Tensor, d: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        rows = torch.arange(len(x), device=x.device).tensor_split(-(-len(x) // self.batch_size))
        return torch.cat(
            [
                self.net(x[i], t[i], None if d is None else d[i], None if y is None else y[i])
                for i in rows
            ]
        )


@dataclass(frozen=True)
class Drawn:
    """``x``: raw data (N, ...); ``y``: (N,) or None; ``nfe``: network calls each sample cost."""

    x: Tensor
    y: Tensor | None
    nfe: int


@torch.no_grad()
def draw(
    config: RunConfig, dataset: Dataset, net: nn.Module, cell: Cell, samples: int, batch_size: int
) -> Drawn:
    """Sample ``net``; the noise and the labels depend on the seed and the sample set alone.

    ``batch_size`` bounds what the network is asked at a time and changes no number but by rounding.

    Raises:
        FloatingPointError: samples that are not finite.
    """
    seed, device = config.seed, next(net.parameters()).device
    times = config.objective.path.times(cell.steps if cell.times is None else cell.times)
    g = generator(seed, "noise", cell.sample_set)
    noise = torch.randn(samples, *dataset.shape, generator=g)
    labels = _labels(dataset, samples, generator(seed, "labels", cell.sample_set))
    if cell.guidance != 1 and labels is None:
        raise UserError(f"evaluation.guidance {cell.guidance}: {dataset.name} has no labels")
    parts, nfe = [], 0
    for i, index in enumerate(torch.arange(samples).split(BLOCK)):
        batched: Net = BatchedNet(net, batch_size)
        counted = CountedNet(batched if ranks().alone else Sharded(batched, ranks()))
        guided = Guided(counted, cell.guidance, config.objective.path, cell.guidance_interval)
        x = config.objective.sample(
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
    return Drawn(torch.cat(parts), labels, nfe)


def _labels(dataset: Dataset, samples: int, g: torch.Generator) -> Tensor | None:
    """Labels in the training split's own proportions, to within one sample a class; shuffled.

    Evenly spaced positions of the sorted labels: a random draw would add its own spread to FD.
    """
    y = dataset.train.y
    if y is None:
        return None
    position = (torch.arange(samples) * len(y) + len(y) // 2) // samples
    return y.sort().values[position][torch.randperm(samples, generator=g)]


def evaluate(
    config: RunConfig,
    dataset: Dataset,
    directory: RunDirectory,
    cache: Path,
    on_cell: OnCell,
) -> list[str]:
    """Evaluate the cells that ``config.evaluation`` asks for and the run lacks; their names.

    Each cell is written as soon as it is known.
    """
    settings = config.evaluation
    if not settings.steps and not settings.times:
        return []
    everyone = ranks()
    metric = Metric(settings, dataset, cache) if everyone.first else None
    todo, samples = everyone.told(
        ({}, 0) if metric is None else (_todo(config, directory, metric), metric.samples)
    )
    device = choose_device(config.training.device)
    networks = {
        weights: load_network(
            config, dataset, directory.checkpoints, weights, config.training.steps
        ).to(device)
        for weights in sorted({cell.weights for cell in todo.values()})
    }
    begun = time.perf_counter()
    for done, (name, cell) in enumerate(todo.items(), start=1):
        started = time.perf_counter()
        drawn = draw(config, dataset, networks[cell.weights], cell, samples, settings.batch_size)
        seconds = time.perf_counter() - started
        if metric is not None:
            _keep(directory.samples / f"{name}.npz", drawn)
            record = {
                "cell": cell.describe(config.objective),
                "asked": asked(settings),
                "metric": metric.identity,
                "value": metric.distance(drawn.x),
                "floor": metric.floor,
                "nfe": drawn.nfe,
                "seconds": seconds,
                "images_per_second": samples / seconds,
                "device": str(device),
                "provenance": made_by(),
            }
            write_json(directory.cell_file(name), record)
        everyone.told(name)  # the others wait
        on_cell(done, len(todo), done / (time.perf_counter() - begun))
    return list(todo)


def _todo(config: RunConfig, directory: RunDirectory, metric: Metric) -> dict[str, Cell]:
    """The cells that are asked for and not there, by name."""
    names = {
        f"steps{cell.steps:04d}-{cell.weights}-"
        + short_hash([cell.describe(config.objective), metric.identity["id"]]): cell
        for cell in cells(config.evaluation)
    }
    return {name: c for name, c in names.items() if not directory.cell_file(name).exists()}


def _keep(file: Path, drawn: Drawn) -> None:
    kept = {"images": drawn.x[:SAMPLES_KEPT].numpy()}
    if drawn.y is not None:
        kept["labels"] = drawn.y[:SAMPLES_KEPT].numpy()
    file.parent.mkdir(exist_ok=True)
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.npz")
    np.savez_compressed(temporary, **kept)  # type: ignore[arg-type]
    os.replace(temporary, file)
