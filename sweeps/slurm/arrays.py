"""Which runs share an array of jobs, and which share a job."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fewstep.sweeps.definition.resources import Resources
from fewstep.sweeps.slurm.settings import SlurmSettings


@dataclass(frozen=True)
class Chunk:
    """An array to be submitted.

    Attributes:
        tasks: the keys of the runs of each task. teacher: the key that all of them wait for.
        max_parallel: tasks that may run at once; None for any number.
    """

    tasks: tuple[tuple[str, ...], ...]
    resources: Resources
    teacher: str | None = None
    max_parallel: int | None = None

    def at_once(self, settings: SlurmSettings) -> int:
        """How many runs of a task run at the same time."""
        return min(settings.at_a_time, max(len(keys) for keys in self.tasks))


@dataclass(frozen=True)
class RunToSubmit:
    """A run to be submitted; ``teacher``: its key, if it is pending or submitted too."""

    key: str
    teacher: str | None
    resources: Resources


def chunks(runs: Sequence[RunToSubmit], settings: SlurmSettings, limit: int) -> list[Chunk]:
    """The arrays that ``runs`` become, of at most ``limit`` tasks, teachers before their students.

    Runs of one array ask for the same resources and wait for the same teacher. A teacher has a task
    of its own, so that its students wait for no other run.
    """
    teachers = {run.key: run.teacher for run in runs}
    teaching = set(teachers.values())
    groups: dict[tuple[int, str | None, Resources, bool], list[str]] = {}
    for run in runs:
        depth, above = 0, run.teacher
        while above in teachers:
            depth, above = depth + 1, teachers[above]
        single = run.key in teaching or run.resources.processes > 1
        groups.setdefault((depth, run.teacher, run.resources, single), []).append(run.key)
    arrays = []
    for (_, teacher, resources, single), members in sorted(groups.items(), key=lambda g: g[0][0]):
        tasks = _split(members, 1 if single else settings.runs_per_job)
        arrays += [Chunk(tuple(part), resources, teacher) for part in _split(tasks, limit)]
    return arrays if settings.max_parallel is None else _shared(arrays, settings.max_parallel)


def _shared(arrays: Sequence[Chunk], at_most: int) -> list[Chunk]:
    """SLURM limits each array by itself: its share of ``at_most``, as its tasks; at least 1."""
    total = sum(len(chunk.tasks) for chunk in arrays)
    exact = [at_most * len(chunk.tasks) / total for chunk in arrays]
    shares = [max(1, int(share)) for share in exact]
    most_owed = sorted(range(len(arrays)), key=lambda i: shares[i] - exact[i])
    for i in most_owed[: max(0, at_most - sum(shares))]:
        shares[i] += 1
    return [replace(chunk, max_parallel=share) for chunk, share in zip(arrays, shares, strict=True)]


def _split(items: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]
