"""How long runs will take: from the speeds of finished runs (``throughput.py``), else from FLOPs
(``flop_time.py``)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.errors import counted
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.definition.member import Member
from fewstep.sweeps.flop_time import FlopTime, Unknown, gpus_of
from fewstep.sweeps.throughput import SAME, SCALED, FinishedRuns, workload

Fallback = Callable[[Member, RunDirectory], FlopTime | Unknown]


@dataclass(frozen=True)
class Estimate:
    """``seconds``: what the rest of each run takes, by key; runs of unknown duration are missing.

    Attributes:
        evaluation: the seconds of these that are evaluation.
        sources: whether a run's speed is that of its own objective (``SAME``) or of another
            (``SCALED``), else how its time was computed.
        gpus: how many GPUs a run uses.
        at_least: runs whose time is a lower bound.
        unknown: runs of unknown duration. reasons: why they are, with the number of runs.
        finished: keys of the finished runs that speeds are from, by source.
    """

    seconds: Mapping[str, float]
    evaluation: Mapping[str, float]
    sources: Mapping[str, str]
    gpus: Mapping[str, float]
    at_least: frozenset[str] = frozenset()
    unknown: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    finished: Mapping[str, set[str]] = field(default_factory=dict)

    @property
    def hours(self) -> float:
        """Of all runs, one after another."""
        return sum(self.seconds.values()) / 3600

    @property
    def evaluation_hours(self) -> float:
        return sum(self.evaluation.values()) / 3600

    @property
    def gpu_hours(self) -> float:
        return sum(seconds * self.gpus[key] for key, seconds in self.seconds.items()) / 3600

    @property
    def evaluation_gpu_hours(self) -> float:
        return sum(s * self.gpus[key] for key, s in self.evaluation.items()) / 3600

    @property
    def basis(self) -> list[str]:
        """Where the numbers come from: a line for each kind of run."""
        lines = []
        for source, count in Counter(self.sources.values()).items():
            used = counted(len(self.finished.get(source, ())), "finished run")
            measured = {
                SAME: f"from {used} of the same objective, backbone and data",
                SCALED: f"from {used} of other objectives, scaled by the cost of a step",
            }
            lines.append(f"{count} {measured.get(source, source)}")
        return lines


def estimate(
    runs: Sequence[tuple[Member, RunDirectory]], root: Path, fallback: Fallback | None = None
) -> Estimate:
    """The time that the rest of each run takes, from the finished runs under ``root``.

    ``fallback``: of a run of which they tell nothing.
    """
    finished = FinishedRuns(root, {workload(member.config.values) for member, _ in runs})
    seconds, evaluation, sources, gpus = {}, {}, {}, {}
    reasons: Counter[str] = Counter()
    at_least: set[str] = set()
    used: dict[str, set[str]] = {}
    for member, directory in runs:
        key, asked = directory.key, member.resources
        device, count = asked.device, gpus_of(asked.device, asked)
        speed = finished.speed(member.config, count > 0, device)
        if speed is not None:
            trained, evaluated = speed.rest(member.config, directory)
            source, count = speed.source, count or float(speed.on_gpu)
            used.setdefault(source, set()).update(speed.runs)
        elif fallback is None:
            continue
        elif isinstance(computed := fallback(member, directory), Unknown):
            reasons[computed.reason] += 1
            continue
        else:
            trained, evaluated = computed.training, computed.evaluation
            source, count = computed.source, computed.gpus
            at_least |= {key} if computed.at_least else set()
        seconds[key], evaluation[key] = trained + evaluated, evaluated
        sources[key], gpus[key] = source, count
    unknown = len(runs) - len(seconds)
    return Estimate(seconds, evaluation, sources, gpus, frozenset(at_least), unknown, reasons, used)
