"""What runs ask for, in Ray's words, and what cannot be given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewstep.errors import UserError, counted
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.definition.resources import DEFAULT, Resources
from fewstep.sweeps.ray.process_group import Bundle

if TYPE_CHECKING:
    from fewstep.sweeps.definition.sweep import Sweep
    from fewstep.sweeps.ray.proposals import Proposals


@dataclass(frozen=True)
class ResourceRequest:
    """What each run is given, in Ray's words; ``nodes``: what each machine of Ray has."""

    resources: Mapping[str, Resources]
    proposals: "Proposals | None"
    nodes: Sequence[Mapping[str, float]]

    def __call__(self, run: RunDirectory) -> list[Bundle]:
        """CPU, GPU and memory (bytes) on each machine of a trial."""
        resources = self.resources.get(run.key)
        if resources is None and self.proposals is not None:
            resources = self.proposals.resources.get(run.key)
        if resources is None:
            resources = Resources(gpus=1 if self._most("GPU") >= 1 else 0)
        amounts = {"CPU": float(resources.cpus), "GPU": float(resources.gpus)}
        if resources.memory_gb is not None:
            amounts["memory"] = float(int(resources.memory_gb * 1e9))
        return [{name: amount for name, amount in amounts.items() if amount}] * resources.nodes

    def check(self, runs: Sequence[RunDirectory]) -> None:
        """Raise a UserError where a run asks for more than there is: it would wait forever."""
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
                wanted = counted(len(machines), "machine")
                raise UserError(f"run {run.key} asks for {wanted}, and Ray has {fitting} like it")

    def _most(self, name: str) -> float:
        return max((node.get(name, 0) for node in self.nodes), default=0)


def refuse_rungs(
    runs: Sequence[RunDirectory], resources: Mapping[str, Resources], searched: "Sweep | None"
) -> None:
    """Raise a UserError where a run of several processes would come to rungs.

    At a rung one process asks Ray whether to go on; several processes would need one answer.
    ``searched``: the sweep that runs are proposed from.
    """
    several = [
        f"run {run.key} asks for {its}"
        for run in runs
        if (its := resources.get(run.key, DEFAULT)).processes > 1
    ]
    if searched is not None and searched.request.several:
        several.append(f"sweep {searched.name} asks for several GPUs or nodes")
    if several:
        raise UserError(
            f"{several[0]}: early stopping is for runs of one process; launch it with "
            f"ray.scheduler=none, or resources.nodes=1 resources.gpus=1"
        )
