"""What runs ask for, in Ray's words, and what cannot be given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewstep.errors import UserError
from fewstep.experiments.rundir import RunDirectory
from fewstep.sweeps.ray.team import Bundle
from fewstep.sweeps.resources import DEFAULT, Resources

if TYPE_CHECKING:
    from fewstep.sweeps.ray.proposals import Proposals
    from fewstep.sweeps.sweep import Sweep


@dataclass(frozen=True)
class Wanted:
    """What each run is given, in Ray's words; ``nodes``: what each machine of Ray has."""

    by_key: Mapping[str, Resources]
    proposals: Proposals | None
    nodes: Sequence[Mapping[str, float]]

    def __call__(self, run: RunDirectory) -> list[Bundle]:
        """CPU, GPU and memory (bytes) on each machine of a trial."""
        asked = self.by_key.get(run.key)
        if asked is None and self.proposals is not None:
            asked = self.proposals.resources.get(run.key)
        if asked is None:
            asked = Resources(gpus=1 if self._most("GPU") >= 1 else 0)
        wanted = {"CPU": float(asked.cpus), "GPU": float(asked.gpus)}
        if asked.memory_gb is not None:
            wanted["memory"] = float(int(asked.memory_gb * 1e9))
        return [{name: amount for name, amount in wanted.items() if amount}] * asked.nodes

    def check(self, runs: Sequence[RunDirectory]) -> None:
        """Raise a UserError where a run asks for more than there is: it would wait for ever."""
        for run in runs:
            machines = self(run)
            for name, amount in machines[0].items():
                if amount > self._most(name):
                    raise UserError(
                        f"run {run.key} asks for {amount:g} {name}, and Ray has "
                        f"{self._most(name):g} here"
                    )
            fitting = sum(
                all(amount <= node.get(name, 0) for name, amount in machines[0].items())
                for node in self.nodes
            )
            if fitting < len(machines):
                raise UserError(
                    f"run {run.key} asks for {len(machines)} machines, and Ray has {fitting} "
                    f"like that here"
                )

    def _most(self, name: str) -> float:
        """Of any machine."""
        return max((node.get(name, 0) for node in self.nodes), default=0)


def refuse_rungs(
    runs: Sequence[RunDirectory], by_key: Mapping[str, Resources], searched: Sweep | None
) -> None:
    """Raise a UserError where a run of several processes would come to rungs.

    At a rung one process asks Ray whether to go on; several would have to hear one answer.
    ``searched``: the sweep that runs are proposed from.
    """
    several = [
        f"run {run.key} asks for {asked}"
        for run in runs
        if (asked := by_key.get(run.key, DEFAULT)).processes > 1
    ]
    if searched is not None and searched.request.several:
        several.append(f"sweep {searched.name} asks for several GPUs or nodes")
    if several:
        raise UserError(
            f"{several[0]}: early stopping is for runs of one process; launch it with "
            f"ray.scheduler=none, or resources.nodes=1 resources.gpus=1"
        )
