"""What a sweep would do, readable before anything is started."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import UserError
from fewstep.experiments.evaluation import cells_lacking
from fewstep.experiments.preflight import check
from fewstep.experiments.provenance import source_hash
from fewstep.experiments.run import directory_of, prepare, read_spec
from fewstep.experiments.rundir import Json, RunDirectory, SweepDirectory, write_json
from fewstep.sweeps.definition import Member, Sweep

STATES = ("new", "interrupted", "failed", "cells", "stale", "cached", "stopped")
"""Not begun; begun; failed; trained but lacking cells; done by other source; done; ended early."""


@dataclass(frozen=True)
class Planned:
    """A member, where it lives, and how far it is (one of ``STATES``)."""

    member: Member
    directory: RunDirectory
    state: str

    @property
    def to_do(self) -> bool:
        """Whether launching the sweep runs it. A stale result is told, not thrown away; what was
        ended early is left alone (``experiments.rungs.continue_stopped``)."""
        return self.state not in ("cached", "stale", "stopped")


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep."""

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

    def write(self) -> None:
        """Make the run directories and sweep.json, which names the sweep's members.

        Raises:
            UserError: the run root cannot be written.
        """
        for run in self.runs:
            prepare(run.member.config)
        members: list[Json] = [
            {
                "key": run.directory.key,
                "seed": run.member.seed,
                "title": run.member.title,
                "choices": dict(run.member.choices),
            }
            for run in self.runs
        ]
        write_json(
            self.directory.path / "sweep.json",
            {
                "name": self.sweep.name,
                "description": self.sweep.description,
                "axes": list(self.sweep.axes),
                "runs": members,
            },
        )


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
    to_do = [run for run in runs if run.to_do]
    check((run.member.config for run in to_do), {run.directory.key for run in to_do})
    return Plan(sweep, tuple(runs))


def _state(member: Member, directory: RunDirectory) -> str:
    result = directory.result()
    if result is None:
        status = directory.status()
        return "interrupted" if status == "running" else status
    if cells_lacking(member.config, directory):
        return "cells"
    sources = {
        "objective_source": source_hash(member.config.objective),
        "backbone_source": source_hash(member.config.backbone),
    }
    stale = any(result["provenance"].get(name) != value for name, value in sources.items())
    return "stale" if stale else "cached"
