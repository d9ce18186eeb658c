"""The Ray launcher: runs as trials of one Tune experiment. Imports ray only to use it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from fewstep.errors import counted
from fewstep.sweeps.definition.launchers import LAUNCHERS
from fewstep.sweeps.launcher import LaunchRequest, OnEvent, Outcome, duration_text
from fewstep.sweeps.ray.environment import ray_environment
from fewstep.sweeps.ray.settings import RaySettings


@LAUNCHERS.register("ray")
@dataclass(frozen=True)
class RayLauncher(RaySettings):
    """Runs as trials of Ray Tune, on this machine or on a cluster, with search and ASHA."""

    def check(self, request: LaunchRequest) -> None:
        """Refuse runs that ask for more than Ray has, rungs for several processes, no cluster."""
        with ray_environment(self.address is None):
            from fewstep.sweeps.ray.experiment import Experiment

            Experiment(self, request).check()

    def preview(self, request: LaunchRequest) -> Sequence[str]:
        """How many runs a search would add."""
        if self.search == "none" or request.sweep is None:
            return ()
        seeds = len(request.sweep.seeds)
        runs = self.trials * seeds
        product = f"{counted(self.trials, 'trial')} x {counted(seeds, 'seed')}"
        line = f"search {self.search}: up to {counted(runs, 'more run')} ({product})"
        if request.seconds:
            time = duration_text(runs * mean(request.seconds.values()) / 3600)
            line += f", about {time} if they take as long as the others"
        return [line]

    def launch(self, request: LaunchRequest, on_event: OnEvent) -> Outcome:
        """Run all of them, then what is proposed.

        On Ctrl-C or SIGTERM runs save and stop, resumable; a second signal does not wait for them.
        """
        with ray_environment(self.address is None):
            from fewstep.sweeps.ray.experiment import Experiment

            return Experiment(self, request).launch(on_event)
