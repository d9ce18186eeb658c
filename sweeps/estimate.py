"""How long runs will take, from the finished runs under the same run root, of whatever sweep.

A run trains as fast as the latest finished ones of its objective, backbone and data. Where there
is none, as those of another objective on the same backbone and data, times the ratio of what a
training step of the two costs (``Objective.step_cost``). Otherwise it is not known.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from fewstep.errors import UserError
from fewstep.experiments.config import RunConfig, build
from fewstep.experiments.evaluation import cells_to_come
from fewstep.experiments.rundir import Json, RunDirectory, Unreadable
from fewstep.objectives import OBJECTIVES
from fewstep.sweeps.resources import Resources

if TYPE_CHECKING:
    from fewstep.sweeps.sweep import Member

LATEST = 5  # finished runs that a speed is the median of: the machine may have changed
SAME, SCALED = "same", "scaled"


@dataclass(frozen=True)
class Estimate:
    """``seconds``: of what is left of each run, by key; runs of unknown speed are not there.

    ``sources``: whether a run's speed is that of its own objective (``SAME``) or of another
    (``SCALED``). ``gpus``: how many GPUs a run keeps busy. ``unknown``: runs of unknown speed.
    """

    seconds: Mapping[str, float]
    sources: Mapping[str, str]
    gpus: Mapping[str, float]
    unknown: int = 0
    finished: int = 0

    @property
    def hours(self) -> float:
        """Of all runs, one after another."""
        return sum(self.seconds.values()) / 3600

    @property
    def gpu_hours(self) -> float:
        return sum(seconds * self.gpus[key] for key, seconds in self.seconds.items()) / 3600

    @property
    def basis(self) -> str:
        """Where the numbers come from, in a line."""
        by = Counter(self.sources.values())
        told = []
        if by[SAME]:
            told.append(f"{by[SAME]} from runs of the same objective, backbone and data")
        if by[SCALED]:
            told.append(f"{by[SCALED]} from another objective's on them, by the cost of a step")
        if self.unknown:
            told.append(f"{self.unknown} unknown")
        return f"{', '.join(told)} ({self.finished} finished runs on such backbones and data)"


def estimate(work: Sequence[tuple[Member, RunDirectory]], root: Path) -> Estimate:
    """What is left of each run of ``work``, as far as finished runs under ``root`` tell."""
    finished = _Finished(root, {_place(member.config.values) for member, _ in work})
    seconds, sources, gpus = {}, {}, {}
    for member, directory in work:
        asked = member.resources
        speed = finished.speed(member.config, asked)
        if speed is not None:
            seconds[directory.key] = speed.seconds(member.config, directory)
            sources[directory.key] = speed.source
            gpus[directory.key] = asked.nodes * asked.gpus or float(speed.on_gpu)
    unknown = len(work) - len(seconds)
    return Estimate(seconds, sources, gpus, unknown, finished.count)


def speed_of(config: RunConfig) -> float | None:
    """Images a second in training, as the finished runs of this very objective tell."""
    finished = _Finished(Path(config.values["runs"]), [_place(config.values)])
    speed = finished.speed(config, Resources())
    return speed.images_per_second if speed is not None and speed.source == SAME else None


@dataclass(frozen=True)
class _Speed:
    """``per_step``: seconds of sampling an image by a step; ``per_cell``: of measuring a cell."""

    images_per_second: float
    per_step: float
    per_cell: float
    samples: float
    on_gpu: bool
    source: str

    def seconds(self, config: RunConfig, directory: RunDirectory) -> float:
        """Of what is left of the run."""
        training = config.training
        left = (training.steps - _steps_done(directory, training.steps)) * training.batch_size
        samples = config.evaluation.samples or self.samples
        cells = cells_to_come(config, directory)
        sampled = sum(passes(cell.steps, cell.guidance) for cell in cells) * samples
        return left / self.images_per_second + sampled * self.per_step + len(cells) * self.per_cell


@dataclass(frozen=True)
class _Done:
    """A finished run."""

    directory: RunDirectory
    objective: Json

    @cached_property
    def result(self) -> Json:
        """Nothing where it is damaged, as ``cells``: an estimate does without."""
        with contextlib.suppress(Unreadable):
            return self.directory.result() or {}
        return {}

    @cached_property
    def cells(self) -> list[Json]:
        with contextlib.suppress(Unreadable):
            return list(self.directory.cells().values())
        return []

    @cached_property
    def cost(self) -> float | None:
        try:
            cost: float | None = build(OBJECTIVES, self.objective).step_cost()
        except UserError:  # of a package that is gone, or with other settings by now
            return None
        return cost

    @property
    def on_gpu(self) -> bool:
        return str(self.result["provenance"]["device"]).startswith("cuda")


class _Finished:
    """The finished runs under a root, latest first, that are of some use."""

    def __init__(self, root: Path, places: Iterable[str]) -> None:
        self.at: dict[str, list[_Done]] = {place: [] for place in places}
        self.speeds: dict[tuple[str, str, bool], _Speed | None] = {}
        results = [(p.stat().st_mtime_ns, str(p), p.parent) for p in root.glob("*/*/result.json")]
        for _, _, path in sorted(results, reverse=True):
            try:
                config = (RunDirectory(path).spec() or {}).get("config", {})
            except Unreadable:
                continue
            if config and (place := _place(config)) in self.at:
                self.at[place].append(_Done(RunDirectory(path), config["objective"]))

    @property
    def count(self) -> int:
        return sum(len(runs) for runs in self.at.values())

    def speed(self, config: RunConfig, asked: Resources) -> _Speed | None:
        """Of such a run. What asks for a GPU is not as fast as what ran on a CPU."""
        place, gpu = _place(config.values), asked.gpus > 0
        told = (place, json.dumps(config.values["objective"], sort_keys=True), gpu)
        if told not in self.speeds:
            self.speeds[told] = self._speed(config, self.at[place], gpu)
        return self.speeds[told]

    def _speed(self, config: RunConfig, runs: Sequence[_Done], gpu: bool) -> _Speed | None:
        cost, name = config.objective.step_cost(), config.values["objective"]["name"]
        same = _latest((run for run in runs if run.objective["name"] == name), gpu)
        others = () if cost is None else (run for run in runs if run.cost is not None)
        latest = same or _latest(others, gpu)
        if not latest:
            return None
        # settings of one objective may change the cost of its step too
        ratios = [run.cost / cost if run.cost and cost else 1.0 for run in latest]
        rates = [run.result["images_per_second"] for run in latest]
        cells = [cell for run in latest for cell in run.cells]
        sampled = [c["seconds"] * c["images_per_second"] for c in cells]
        taken = [passes(c["cell"]["steps"], c["cell"]["guidance"]) for c in cells]
        work = sum(n * k for n, k in zip(sampled, taken, strict=True))
        sampling = sum(c["seconds"] for c in cells)
        # cells that were added later are not in evaluate_seconds, so this may be less than it is
        beside = max(0.0, sum(run.result["evaluate_seconds"] for run in latest) - sampling)
        return _Speed(
            median(rate * ratio for rate, ratio in zip(rates, ratios, strict=True)),
            sampling / work if work else 0.0,
            beside / len(cells) if cells else 0.0,
            median(sampled) if sampled else 0.0,
            latest[0].on_gpu,
            SAME if same else SCALED,
        )


def _latest(runs: Iterable[_Done], gpu: bool) -> list[_Done]:
    found: list[_Done] = []
    for run in runs:
        if run.result and (run.on_gpu or not gpu):
            found.append(run)
        if len(found) == LATEST:
            break
    return found


def _place(values: Mapping[str, Any]) -> str:
    """What a speed belongs to, beside the objective: backbone and data with their settings."""
    data = {name: value for name, value in values["data"].items() if name != "root"}
    return json.dumps([values["backbone"], data], sort_keys=True)


def passes(steps: int, guidance: float) -> int:
    """What a cell costs, in sampling steps without guidance, which asks the network twice."""
    return steps * (1 if guidance == 1 else 2)


def _steps_done(directory: RunDirectory, steps: int) -> int:
    if (directory.path / "result.json").is_file():
        return steps
    progress = directory.progress() or {}
    if progress.get("phase") == "evaluate":
        return steps
    return int(progress["done"]) if progress.get("phase") == "train" else 0
