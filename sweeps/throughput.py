"""The speeds of the finished runs under a run root, of whatever sweep.

A run trains as fast as the latest finished runs of its objective, backbone and data. If there are
none, the speed of another objective on the same backbone and data is scaled by the ratio of the
costs of a training step (``Objective.step_cost``). Otherwise the speed is unknown.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from fewstep.errors import UserError
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.cost.devices import CPU, DEVICES
from fewstep.experiments.cost.flops import calls_per_pair
from fewstep.experiments.evaluation.evaluate import cells_to_come
from fewstep.experiments.store.json_files import CorruptFile, Json
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.objectives import OBJECTIVES
from fewstep.registry import build

LATEST = 5  # finished runs that a speed is the median of: the machine may have changed
SAME, SCALED = "same", "scaled"


@dataclass(frozen=True)
class Speed:
    """How fast such runs are.

    Attributes:
        per_step: seconds of sampling an image by a step. per_cell: of measuring a cell.
        samples: of a cell. source: ``SAME``, from runs of the same objective, or ``SCALED``.
        runs: keys of the finished runs it is from.
    """

    images_per_second: float
    per_step: float
    per_cell: float
    samples: float
    on_gpu: bool
    source: str
    runs: frozenset[str]

    def rest(self, config: RunConfig, directory: RunDirectory) -> tuple[float, float]:
        """Seconds that training (drawing pairs included) and evaluation of a run still take."""
        training, objective = config.training, config.objective
        done = steps_done(directory, training.steps)
        samples = config.evaluation.samples or self.samples
        cells = cells_to_come(config, directory)
        sampled = sum(passes(cell.steps, cell.guidance) for cell in cells) * samples
        trained = (training.steps - done) * training.batch_size / self.images_per_second
        if objective.needs_pairs and not done:
            trained += objective.pairs * calls_per_pair(config) * self.per_step
        return trained, sampled * self.per_step + len(cells) * self.per_cell


def passes(steps: int, guidance: float) -> int:
    """The network evaluations of a sample in sampling steps; guidance doubles them."""
    return steps * (1 if guidance == 1 else 2)


def workload(values: Mapping[str, Any]) -> str:
    """What a speed depends on, besides the objective: backbone and data with their settings."""
    data = {k: value for k, value in values["data"].items() if k not in ("root", "expected")}
    return json.dumps([values["backbone"], data], sort_keys=True)


@dataclass(frozen=True)
class FinishedRun:
    """A run with a result; damaged files count as empty."""

    directory: RunDirectory
    objective: Json

    @cached_property
    def result(self) -> Json:
        with contextlib.suppress(CorruptFile):
            return self.directory.result() or {}
        return {}

    @cached_property
    def cells(self) -> list[Json]:
        with contextlib.suppress(CorruptFile):
            return list(self.directory.cells().values())
        return []

    @cached_property
    def cost(self) -> float | None:
        """The cost of a training step; None if its objective does not exist any more."""
        with contextlib.suppress(UserError):
            cost: float | None = build(OBJECTIVES, self.objective).step_cost()
            return cost
        return None

    @property
    def on_gpu(self) -> bool:
        return str(self.result["provenance"]["device"]).startswith("cuda")

    def ran_on(self, device: str | None, gpu: bool) -> bool:
        """Whether it ran on such a ``device``; None: on any, or on any GPU."""
        if device is None:
            return self.on_gpu or not gpu
        if device == CPU:
            return not self.on_gpu
        name = self.result["provenance"].get("device_name") or ""
        return self.on_gpu and DEVICES[device].matches(str(name))


class FinishedRuns:
    """The finished runs under ``root`` of some ``workloads``, latest first."""

    def __init__(self, root: Path, workloads: Iterable[str]) -> None:
        self._runs: dict[str, list[FinishedRun]] = {w: [] for w in workloads}
        self._speeds: dict[tuple[str, str, bool, str | None], Speed | None] = {}
        results = [(p.stat().st_mtime_ns, str(p), p.parent) for p in root.glob("*/*/result.json")]
        for _, _, path in sorted(results, reverse=True):
            try:
                config = (RunDirectory(path).spec() or {}).get("config", {})
            except CorruptFile:
                continue
            if config and (work := workload(config)) in self._runs:
                self._runs[work].append(FinishedRun(RunDirectory(path), config["objective"]))

    def speed(self, config: RunConfig, gpu: bool, device: str | None = None) -> Speed | None:
        """The speed of such a run; ``gpu``: whether it asks for one (a CPU's speed is no guide).

        ``device``: the only one whose speeds count, one of ``devices.NAMES``.
        """
        work = workload(config.values)
        key = (work, json.dumps(config.values["objective"], sort_keys=True), gpu, device)
        if key not in self._speeds:
            runs = (run for run in self._runs[work] if run.result and run.ran_on(device, gpu))
            self._speeds[key] = _speed(config, list(runs))
        return self._speeds[key]


def speed_of(config: RunConfig) -> float | None:
    """Images per second in training, of finished runs of this very objective; None if unknown."""
    finished = FinishedRuns(Path(config.values["runs"]), [workload(config.values)])
    speed = finished.speed(config, gpu=False)
    return speed.images_per_second if speed is not None and speed.source == SAME else None


def _speed(config: RunConfig, runs: Sequence[FinishedRun]) -> Speed | None:
    cost, name = config.objective.step_cost(), config.values["objective"]["name"]
    same = [run for run in runs if run.objective["name"] == name][:LATEST]
    others = (run for run in runs if cost is not None and run.cost is not None)
    if not (latest := same or list(islice(others, LATEST))):
        return None
    # settings of one objective may change the cost of its step too
    ratios = [run.cost / cost if run.cost and cost else 1.0 for run in latest]
    rates = [run.result["images_per_second"] for run in latest]
    cells = [cell for run in latest for cell in run.cells]
    sampled = [c["seconds"] * c["images_per_second"] for c in cells]
    steps = [passes(c["cell"]["steps"], c["cell"]["guidance"]) for c in cells]
    work = sum(n * k for n, k in zip(sampled, steps, strict=True))
    sampling = sum(c["seconds"] for c in cells)
    # evaluate_seconds lacks cells that were added later, so this may be too small
    measuring = max(0.0, sum(run.result["evaluate_seconds"] for run in latest) - sampling)
    return Speed(
        median(rate * ratio for rate, ratio in zip(rates, ratios, strict=True)),
        sampling / work if work else 0.0,
        measuring / len(cells) if cells else 0.0,
        median(sampled) if sampled else 0.0,
        latest[0].on_gpu,
        SAME if same else SCALED,
        frozenset(run.directory.key for run in latest),
    )


def steps_done(directory: RunDirectory, steps: int) -> int:
    """Training steps that a run of so many ``steps`` has behind it."""
    if (directory.path / "result.json").is_file():
        return steps
    progress = directory.progress() or {}
    if progress.get("phase") == "evaluate":
        return steps
    return int(progress["done"]) if progress.get("phase") == "train" else 0
