"""What a sweep would do, readable before anything is started."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fewstep.errors import UserError
from fewstep.experiments.evaluation import cells_lacking
from fewstep.experiments.preflight import check
from fewstep.experiments.provenance import source_hash
from fewstep.experiments.run import directory_of, prepare, read_spec
from fewstep.experiments.rundir import Json, RunDirectory, SweepDirectory, write_json
from fewstep.sweeps.estimate import Estimate, estimate
from fewstep.sweeps.resources import Resources
from fewstep.sweeps.status import failed_or_cancelled, is_busy
from fewstep.sweeps.sweep import Member, Sweep

STATES = (
    "new",
    "interrupted",
    "failed",
    "cancelled",
    "cells",
    "stale",
    "running",
    "stopped",
    "cached",
)
"""Not begun; begun; failed; cancelled by somebody; trained but lacking cells; done by other source;
some process has it; ended early by a search algorithm; done."""


@dataclass(frozen=True)
class Planned:
    """A member, where it lives, and how far it is (one of ``STATES``)."""

    member: Member
    directory: RunDirectory
    state: str

    @property
    def to_do(self) -> bool:
        """Whether launching the sweep runs it. A stale result is told, not thrown away.

        One that is running is launched too: it is found busy, and looked at again. One that was
        ended early is left alone (see ``experiments.rungs.continue_stopped``).
        """
        return self.state not in ("cached", "stale", "stopped")

    @property
    def resources(self) -> Resources:
        return self.member.resources

    @property
    def teacher(self) -> str | None:
        """The key of the run it learns from."""
        teacher = self.member.config.values["teacher"]
        return None if teacher is None else Path(teacher).name


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep that are chosen, in its order."""

    sweep: Sweep
    runs: tuple[Planned, ...]

    @property
    def directory(self) -> SweepDirectory:
        return SweepDirectory(self.runs[0].directory.path.parent)

    @property
    def root(self) -> Path:
        return self.directory.path.parent

    def counts(self) -> dict[str, int]:
        """Runs by state, every state named."""
        found = Counter(run.state for run in self.runs)
        return {state: found[state] for state in STATES}

    @cached_property
    def estimate(self) -> Estimate:
        """How long what is to do will take; read from the finished runs when asked for first."""
        return estimate([(r.member, r.directory) for r in self.runs if r.to_do], self.root)

    @cached_property
    def to_do(self) -> tuple[Planned, ...]:
        """What is to be launched, longest first, so that none is left for the end.

        A teacher stands before its students. Runs of unknown length come first, in the sweep's
        order.
        """
        return longest_first([run for run in self.runs if run.to_do], self.estimate.seconds)

    def write(self) -> None:
        """Make the run directories and sweep.json, which names the sweep's members.

        Members that were planned before stay, whatever the command line chose this time, as long
        as the sweep still has them.

        Raises:
            UserError: the run root cannot be written.
        """
        before = self.directory.plan() or {"runs": []}  # refused before anything is written
        for run in self.runs:
            prepare(run.member.config)
        planned = {run.directory.key for run in self.runs}
        members = [run.member for run in self.runs]
        if not self.sweep.is_whole:
            members = [
                member
                for member in self.sweep.whole()
                if member.config.key in planned or directory_of(member.config).spec() is not None
            ]
        keys = {member.config.key for member in members}
        # what a search has added stays
        kept = [run for run in before["runs"] if run.get("proposed") and run["key"] not in keys]
        write_json(
            self.directory.path / "sweep.json",
            {
                "name": self.sweep.name,
                "description": self.sweep.description,
                "axes": list(self.sweep.axes),
                **({} if self.sweep.budget is None else {"budget": self.sweep.accounts}),
                "runs": [*(entry(member) for member in members), *kept],
            },
        )


def entry(member: Member) -> Json:
    """A member as sweep.json has it."""
    return {
        "key": member.config.key,
        "seed": member.seed,
        "title": member.title,
        "choices": dict(member.choices),
    }


def plan(sweep: Sweep) -> Plan:
    """Look at every member of the sweep; writes nothing.

    Raises:
        UserError: a bad setting in any of them, data that is not there or does not fit, or a
            directory of another configuration.
    """
    runs = []
    for member in sweep.members():
        directory = directory_of(member.config)
        if directory.path.is_dir() and (directory.path / "spec.json").exists():
            read_spec(directory)
        runs.append(Planned(member, directory, _state(member, directory)))
    if not runs:
        raise UserError(f"sweep {sweep.name} has no runs")
    to_do = {run.directory.key: run.member.config for run in runs if run.to_do}
    check(to_do.values(), to_do)
    return Plan(sweep, tuple(runs))


def longest_first(runs: Sequence[Planned], seconds: Mapping[str, float]) -> tuple[Planned, ...]:
    """``runs`` by the time they and what waits for them will take; teachers before students."""
    known = {run.directory.key: run for run in runs}
    students: dict[str, list[str]] = {}
    for key, run in known.items():
        if run.teacher in known:
            students.setdefault(str(run.teacher), []).append(key)

    def whole(key: str) -> float:
        """Until the last of its students is done."""
        return seconds.get(key, math.inf) + max(map(whole, students.get(key, [])), default=0.0)

    ordered: dict[str, Planned] = {}

    def add(run: Planned) -> None:
        if run.teacher in known and run.teacher not in ordered:
            add(known[run.teacher])
        ordered[run.directory.key] = run

    for key in sorted(known, key=whole, reverse=True):  # stable: ties keep their order
        add(known[key])
    return tuple(ordered.values())


def _state(member: Member, directory: RunDirectory) -> str:
    state = _done(member, directory)
    return "running" if state not in ("stale", "cached") and is_busy(directory) else state


def _done(member: Member, directory: RunDirectory) -> str:
    result = directory.result()
    if result is None:
        status = directory.status()
        if status == "failed":
            return failed_or_cancelled(directory.failure() or {})
        return "interrupted" if status == "running" else status
    if cells_lacking(member.config, directory):
        return "cells"
    sources = {
        "objective_source": source_hash(member.config.objective),
        "backbone_source": source_hash(member.config.backbone),
    }
    stale = any(result["provenance"].get(name) != value for name, value in sources.items())
    return "stale" if stale else "cached"
