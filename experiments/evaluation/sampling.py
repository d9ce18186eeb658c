"""Samples of a network: from the same noise and labels for all objectives of a seed.

Several processes of a run share the network's rows, and nothing else: each has all N samples.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.experiments.config.protocols import rounding_of
from fewstep.experiments.config.run_config import RunConfig, learned_solver, with_sampler
from fewstep.experiments.data import Dataset, to_uint8
from fewstep.experiments.distributed.batch_sharding import ShardedBatchNet
from fewstep.experiments.distributed.process_group import ranks
from fewstep.experiments.evaluation.learned_solver import Passes, trained_solver
from fewstep.experiments.rng import generator
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.training.network import check_guidance
from fewstep.objectives import Guided, Net, Objective, ProbabilityPath
from fewstep.objectives.core.amed import Amed, StepPredictor, solve
from fewstep.objectives.core.guidance import EVERYWHERE
from fewstep.objectives.core.samplers import LEARNED
from fewstep.objectives.core.wrappers import BatchedNet, CountedNet, OnImages

BLOCK = 10_000  # samples held on the device at once; fixed, for fresh noise is drawn block by block


@dataclass(frozen=True)
class SamplingConfig:
    """How a run's network is sampled.

    ``times`` is None for ``steps`` uniform steps. ``sampler`` holds settings of the objective's
    sampler in place of its own. ``at_step``: the training step whose weights it has; None for the
    last one.
    """

    steps: int
    times: tuple[float, ...] | None = None
    weights: str = "ema"
    guidance: float = 1.0
    sample_set: int = 0
    guidance_interval: tuple[float, float] = EVERYWHERE
    sampler: tuple[tuple[str, Any], ...] = ()
    at_step: int | None = None

    def objective(self, objective: Objective) -> Objective:
        """``objective`` with this cell's sampler."""
        return with_sampler(objective, dict(self.sampler))

    def learned(self, objective: Objective) -> Amed | None:
        """The settings of a solver that is trained for the network; None where none is."""
        return learned_solver(objective, dict(self.sampler))

    def schedule(self, path: ProbabilityPath) -> Sequence[float]:
        """The times of its steps on ``path``, falling to 0."""
        return path.times(self.steps if self.times is None else self.times)

    def guided(self, net: Net, path: ProbabilityPath) -> Net:
        """``net`` with this cell's guidance."""
        if self.guidance == 1:
            return net
        return Guided(net, self.guidance, path, self.guidance_interval)

    def describe(self, objective: Objective) -> Json:
        """The cell as its file has it, the objective's sampler settings included.

        A guidance interval is one of them where it restricts anything.
        """
        record = asdict(self)
        record["times"] = None if self.times is None else list(self.times)
        if record["at_step"] is None:
            del record["at_step"]
        low, high = record.pop("guidance_interval")
        sampler = self.objective(objective).sampler_settings()
        if (learned := self.learned(objective)) is not None:
            sampler = {"solver": LEARNED, **asdict(learned)}
        if self.guidance != 1 and (low, high) != EVERYWHERE:
            sampler["guidance_interval"] = f"{low:g}-{high:g}"
        return {**record, "sampler": sampler}


@dataclass(frozen=True)
class SampleBatch:
    """``x``: raw data (N, ...); ``y``: conditions or None; ``nfe``: network calls a sample.

    Where an adaptive solver needs more for some samples, the mean, rounded up. ``training``: what
    its solver cost, where that was trained.
    """

    x: Tensor
    y: Tensor | None
    nfe: int
    training: Json | None = None


def calls(config: RunConfig, dataset: Dataset, cell: SamplingConfig) -> int:
    """How often a cell asks the network, counted on one image and a network that says zero.

    An adaptive solver may ask a real one more often.
    """
    objective = cell.objective(config.objective)
    net = CountedNet(lambda x, t, d=None, y=None: torch.zeros_like(x))
    y = None if dataset.train.y is None else torch.zeros_like(dataset.train.y[:1])
    guided, times = cell.guided(net, objective.path), cell.schedule(objective.path)
    x, g = torch.zeros(1, *dataset.shape), torch.Generator()
    learned = cell.learned(objective)
    predictor = None if learned is None else StepPredictor(learned.scale, g)
    _sample(objective, guided, x, y, times, g, predictor)
    return net.calls


def _sample(
    objective: Objective,
    net: Net,
    noise: Tensor,
    y: Tensor | None,
    times: Sequence[float],
    g: torch.Generator,
    predictor: StepPredictor | None,
) -> Tensor:
    """``Objective.sample``, or what a ``predictor``'s solver makes of the objective's flow."""
    if predictor is None:
        return objective.sample(net, noise, y, times, g)
    start = objective.path.start(noise)
    with torch.no_grad():
        return solve(lambda x, t: objective.velocity(net, x, t, y), predictor, start, times)


@torch.no_grad()
def draw(
    config: RunConfig,
    dataset: Dataset,
    net: nn.Module,
    cell: SamplingConfig,
    samples: int,
    batch_size: int,
    on_images: OnImages = lambda images: None,
    label: int | None = None,
    solvers: Path | None = None,
) -> SampleBatch:
    """Sample ``net``; the noise and the labels depend on the seed and the sample set alone.

    ``label``: one class for all, in place of the training split's proportions. ``solvers``: the
    run's folder of trained solvers.

    ``batch_size`` bounds what the network is asked at a time and changes no number but by rounding.
    ``on_images`` gets the number of images of each call in this process; what it raises, ends the
    drawing. Raises ``FloatingPointError`` for samples that are not finite.
    """
    seed, device = config.seed, next(net.parameters()).device
    objective = cell.objective(config.objective)
    g = generator(seed, "noise", cell.sample_set)
    noise = torch.randn(samples, *dataset.shape, generator=g)
    y = _conditions(dataset, samples, generator(seed, "labels", cell.sample_set))
    if label is not None:
        y = torch.full((samples,), label)
    check_guidance(config, dataset, f"guidance {cell.guidance:g}", cell.guidance != 1)
    parts, calls, rounding = [], 0, rounding_of(config.evaluation.protocol)
    predictor, training = _learned(config, dataset, net, cell, batch_size, on_images, solvers)
    for i, index in enumerate(torch.arange(samples).split(BLOCK)):
        batched: Net = BatchedNet(net, batch_size, on_images)
        counted = CountedNet(batched if ranks().is_single else ShardedBatchNet(batched, ranks()))
        x = _sample(
            objective,
            cell.guided(counted, objective.path),
            noise[index].to(device),
            None if y is None else y[index].to(device),
            cell.schedule(objective.path),
            generator(seed, "sampler", cell.sample_set, i, device=device),
            predictor,
        ).cpu()
        if not bool(torch.isfinite(x).all()):
            raise FloatingPointError(f"samples at {cell.steps} steps are not finite")
        parts.append(to_uint8(x, rounding) if dataset.is_image else x.float())
        calls += counted.calls * len(index)  # an adaptive solver needs more for some blocks
    x = torch.cat(parts)
    assert len(x) == samples, f"{len(x)} samples where {samples} were asked for"
    return SampleBatch(x, y, math.ceil(calls / samples), training)


def _learned(
    config: RunConfig,
    dataset: Dataset,
    net: nn.Module,
    cell: SamplingConfig,
    batch_size: int,
    on_images: OnImages,
    solvers: Path | None,
) -> tuple[StepPredictor | None, Json | None]:
    """The trained solver of a cell and what it cost; None, None for another sampler."""
    objective, seed = cell.objective(config.objective), config.seed
    if (settings := cell.learned(objective)) is None:
        return None, None
    n, device = settings.trajectories, next(net.parameters()).device
    noise = torch.randn(n, *dataset.shape, generator=generator(seed, "amed/noise"))
    y = _conditions(dataset, n, generator(seed, "amed/labels"))
    passes = Passes()

    def on_rows(rows: int) -> None:
        passes(rows)
        on_images(0)  # the cell's own are yet to come

    batched = BatchedNet(net, batch_size, on_rows)
    guided = cell.guided(batched, objective.path)
    described = cell.describe(objective)
    del described["sample_set"]  # one solver for all
    return trained_solver(
        lambda x, t, y: objective.velocity(guided, x, t, y),
        objective.path.start(noise).to(device),
        None if y is None else y.to(device),
        cell.schedule(objective.path),
        settings,
        generator(seed, "amed/training"),
        described,
        solvers,
        passes,
    )


def _conditions(dataset: Dataset, samples: int, g: torch.Generator) -> Tensor | None:
    # in the training split's proportions: a random draw would add its own spread to FD
    if (y := dataset.train.y) is None:
        return None
    if y.ndim == 2:  # each vector as often as the others, to within one
        rounds = [torch.randperm(len(y), generator=g) for _ in range(-(-samples // len(y)))]
        return y[torch.cat(rounds)[:samples]]
    position = (torch.arange(samples) * len(y) + len(y) // 2) // samples
    return y.sort().values[position][torch.randperm(samples, generator=g)]
