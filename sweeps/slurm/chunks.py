"""Which runs share an array of jobs, and which share a job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fewstep.sweeps.resources import Resources
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
        """How many runs of a task are at work at the same time."""
        return min(settings.at_a_time, max(len(keys) for keys in self.tasks))


@dataclass(frozen=True)
class Wanted:
    """A run to be submitted: the key of its teacher, if that is to be submitted too or has been."""

    key: str
    teacher: str | None
    resources: Resources


def chunks(runs: Sequence[Wanted], settings: SlurmSettings, limit: int) -> list[Chunk]:
    """The arrays that ``runs`` become, of at most ``limit`` tasks, teachers before their students.

    Runs of one array want the same resources and wait for the same teacher. A teacher has a task to
    itself, so that its students wait for nobody else.
    """
    keys = {run.key for run in runs}
    teacher = {run.key: run.teacher if run.teacher in keys else None for run in runs}
    teaching = {run.teacher for run in runs}
    groups: dict[tuple[int, str | None, Resources, bool], list[str]] = {}
    for run in runs:
        alone = run.key in teaching or run.resources.processes > 1
        group = (_depth(run.key, teacher), run.teacher, run.resources, alone)
        groups.setdefault(group, []).append(run.key)
    made = []
    for (_, taught_by, wanted, alone), members in sorted(groups.items(), key=lambda g: g[0][0]):
        packs = list(_split(members, 1 if alone else settings.runs_per_job))
        made += [Chunk(tuple(part), wanted, taught_by) for part in _split(packs, limit)]
    return made if settings.max_parallel is None else _shared(made, settings.max_parallel)


def _shared(made: Sequence[Chunk], at_most: int) -> list[Chunk]:
    """SLURM limits each array by itself: so each has its share of what all may run, and at least 1.

    Shares go by tasks; what is left of rounding, one each to the largest remainders.
    """
    total = sum(len(chunk.tasks) for chunk in made)
    exact = [at_most * len(chunk.tasks) / total for chunk in made]
    shares = [max(1, int(share)) for share in exact]
    most_owed = sorted(range(len(made)), key=lambda i: shares[i] - exact[i])
    for i in most_owed[: max(0, at_most - sum(shares))]:
        shares[i] += 1
    return [replace(chunk, max_parallel=share) for chunk, share in zip(made, shares, strict=True)]


def _depth(key: str, teacher: Mapping[str, str | None]) -> int:
    depth, above = 0, teacher[key]
    while above is not None:
        depth, above = depth + 1, teacher[above]
    return depth


def _split(items: Sequence[Any], size: int) -> Iterator[tuple[Any, ...]]:
    for begun in range(0, len(items), size):
        yield tuple(items[begun : begun + size])
