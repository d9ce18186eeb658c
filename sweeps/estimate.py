"""How long runs will take, from the speeds of finished runs (``throughput.py``)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import counted
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.definition.member import Member
from fewstep.sweeps.throughput import SAME, SCALED, FinishedRuns, workload


@dataclass(frozen=True)
class Estimate:
    """``seconds``: what the rest of each run takes, by key; runs of unknown speed are missing.

    ``sources``: whether a run's speed is that of its own objective (``SAME``) or of another
    (``SCALED``). ``gpus``: how many GPUs a run uses. ``unknown``: runs of unknown speed.
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
        counts = Counter(self.sources.values())
        kinds = {
            "from runs of the same objective, backbone and data": counts[SAME],
            "scaled from another objective by the cost of a step": counts[SCALED],
            "unknown": self.unknown,
        }
        parts = [f"{count} {kind}" for kind, count in kinds.items() if count]
        runs = counted(self.finished, "finished run")
        return f"{', '.join(parts)} ({runs} on such backbones and data)"


def estimate(runs: Sequence[tuple[Member, RunDirectory]], root: Path) -> Estimate:
    """The time that the rest of each run takes, from the finished runs under ``root``."""
    finished = FinishedRuns(root, {workload(member.config.values) for member, _ in runs})
    seconds, sources, gpus = {}, {}, {}
    for member, directory in runs:
        resources = member.resources
        speed = finished.speed(member.config, resources.gpus > 0)
        if speed is not None:
            seconds[directory.key] = speed.seconds(member.config, directory)
            sources[directory.key] = speed.source
            gpus[directory.key] = resources.nodes * resources.gpus or float(speed.on_gpu)
    return Estimate(seconds, sources, gpus, len(runs) - len(seconds), finished.count)
