"""One Tune experiment: the runs of a launch as trials, here or on a cluster."""

import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle, tune
from ray.exceptions import RayActorError

from fewstep.errors import UserError
from fewstep.experiments.store.lease import live_lease
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.cpu_threads import user_limit
from fewstep.sweeps.launcher import Event, LaunchRequest, OnEvent, Outcome, is_complete
from fewstep.sweeps.ray import cluster
from fewstep.sweeps.ray.asha import scheduler
from fewstep.sweeps.ray.placement import ResourceRequest, refuse_rungs
from fewstep.sweeps.ray.process_group import LATE, MachineLost
from fewstep.sweeps.ray.searcher import RunSearcher
from fewstep.sweeps.ray.settings import RaySettings
from fewstep.sweeps.ray.trial import RunTrial, scores
from fewstep.sweeps.run_queue import RunQueue, signals_to

if TYPE_CHECKING:
    from fewstep.sweeps.ray.proposals import Proposals

GRACE_SECONDS = 60.0
POLL_SECONDS = 0.2
LOOK_SECONDS = 5.0
GONE = "the Ray cluster is gone"


@dataclass
class Experiment:
    """The runs of ``request`` as trials; ``settings``: how."""

    settings: RaySettings
    request: LaunchRequest

    def launch(self, on_event: OnEvent) -> Outcome:
        """Run all of them, then what is proposed.

        A UserError if there is no cluster at the address, a run asks for more than there is, or
        a run of several processes has rungs.
        """
        self.check()
        settings, runs, proposals = self.settings, self.request.runs, self._proposals()
        queue = RunQueue(runs, on_event, max_failures=settings.max_failures, skips_complete=True)
        if proposals is None and all(is_complete(run) for run in runs):
            while queue.next():  # ends them all: nothing to start Ray for
                pass
            return queue.outcome
        with cluster.connected(settings):
            machines = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
            resources = ResourceRequest(self.request.resources, proposals, machines)
            if settings.address is None:
                resources.check(runs)
            parallel = settings.max_parallel
            searcher = RunSearcher(queue, self._scored(), proposals, resources, parallel)
            with signals_to(searcher.on_signal):
                self._tune(searcher)
        unfinished = queue.unfinished()
        end = time.monotonic() + GRACE_SECONDS
        while any(map(live_lease, unfinished)) and time.monotonic() < end and not searcher.hurried:
            time.sleep(POLL_SECONDS)
        for run in unfinished:
            kind = "done" if is_complete(run) else "interrupted"
            getattr(queue.outcome, kind).append(run.key)
            on_event(Event(kind, run), [])
        return queue.outcome

    def check(self) -> None:
        """Refuse what cannot be launched, as far as that is known before Ray starts.

        The runs need not be prepared; nothing is written. Raises as ``launch`` does.
        """
        proposals = self._proposals()
        unfinished = [run for run in self.request.runs if not is_complete(run)]
        if not unfinished and proposals is None:
            return
        if self.settings.rung_steps():
            refuse_rungs(unfinished, self.request.resources, self._searched())
        if ray.is_initialized():  # by a host program
            return
        if self.settings.address is not None:
            cluster.reachable(self.settings.address)
        else:
            here = {"memory": math.inf, **cluster.share(self.settings)}
            ResourceRequest(self.request.resources, None, [here]).check(unfinished)

    def _searched(self) -> Any:
        """The sweep whose axes a search proposes from; None without one."""
        return None if self.settings.search == "none" else self.request.sweep

    def _proposals(self) -> "Proposals | None":
        if (sweep := self._searched()) is None:
            return None
        if not any(axis.draw or len(axis.choices) > 1 for axis in sweep.axes.values()):
            raise UserError(
                f"ray.search {self.settings.search} has nothing to propose from: no axis of the "
                f"sweep has more than one value"
            )
        try:
            from fewstep.sweeps.ray.proposals import Proposals
        except ModuleNotFoundError as error:
            if error.name != "optuna":
                raise
            raise UserError("ray.search optuna needs it: pip install 'fewstep[optuna]'") from None
        return Proposals(sweep, self.settings, self.request.directory)

    def _scored(self) -> list[RunDirectory]:
        """Runs that are not to be run, but whose scores at the rungs count."""
        if not self.settings.rung_steps():
            return []
        launched = {run.key for run in self.request.runs if not is_complete(run)}
        return [
            run
            for run in self.request.directory.runs()
            if run.key not in launched
            and (run.status() == "stopped" or is_complete(run))
            and scores(run, self.settings.metric_steps)
        ]

    def _tune(self, searcher: RunSearcher) -> None:
        class Trial(RunTrial):
            settings, cwd, most_threads = self.settings, os.getcwd(), user_limit()

        with cluster.temporary_folder("tune-") as storage:
            try:
                tune.run(
                    Trial,
                    name="fewstep",
                    storage_path=storage,
                    search_alg=searcher,
                    scheduler=scheduler(self.settings, searcher.trials.get),
                    num_samples=-1,
                    reuse_actors=True,
                    max_failures=0,  # the queue tries again, by the failure's class
                    raise_on_failed_trial=False,
                    stop=Stop(searcher),
                    callbacks=[Watch(searcher)],
                    verbose=0,
                    log_to_file=False,
                )
            except KeyboardInterrupt:
                if not searcher.hurried:
                    raise


@dataclass(eq=False)
class Stop(tune.Stopper):
    """Ends all trials once the launch is interrupted."""

    searcher: RunSearcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.searcher.queue.stopping


@dataclass(eq=False)
class Watch(tune.Callback):
    """Reports to the searcher the starts and errors of trials, and each step of Tune's loop."""

    searcher: RunSearcher
    looked: float = field(default_factory=time.monotonic)  # for the cluster

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.searcher.on_start(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        kind, message, trace = reason(trial)
        if kind in ("killed", "lost_node") and cluster.lost():
            kind, message = "lost_node", GONE
            self._stop()
        self.searcher.died(trial.trial_id, kind, message, trace)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.searcher.tick()
        if time.monotonic() - self.looked > LOOK_SECONDS:  # else Tune would wait for ever
            self.looked = time.monotonic()
            if not self.searcher.queue.stopping and cluster.lost():
                self._stop()

    def _stop(self) -> None:
        queue = self.searcher.queue
        queue.stopping = True  # there is nowhere to try again
        note = f"{GONE}: the same command resumes the runs, on another"
        if note not in queue.outcome.notes:
            queue.outcome.notes.append(note)


# "unavailable" is what Ray says of a machine that is silent, until it is sure; an actor that died
# alone it knows of at once
GONE_WITH_ITS_MACHINE = (
    "node has died", "node was terminated", "node has crashed", "temporarily unavailable", LATE,
)  # fmt: skip


def reason(trial: Any) -> tuple[str, str, str]:
    """Why a trial's actor is gone: the failure's class, a line, and what Ray says."""
    error = error_of(trial)
    text = str(error or "")
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    if error is not None and not isinstance(error, RayActorError | MachineLost):
        return "bug", f"the trial itself failed: {last}", text
    if any(words in text for words in GONE_WITH_ITS_MACHINE):
        return "lost_node", "the machine was lost (Ray)", text
    if "creation task" in text:
        return "bug", f"the trial could not start: {last}", text
    hint = " (memory ran short)" if "OutOfMemory" in text else ""
    return "killed", f"the Ray actor that had the run is gone{hint}", text


def error_of(trial: Any) -> Any:
    """The exception, or its text; Tune's ``get_error`` looks where the files are not yet."""
    files = ((trial.pickled_error_file, cloudpickle.loads), (trial.error_file, bytes.decode))
    for name, read in files:
        if name is not None and os.path.exists(name):
            return read(Path(name).read_bytes())
    return None
