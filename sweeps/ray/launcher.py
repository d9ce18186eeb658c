"""The Ray launcher: runs as trials of one Tune experiment, here or on a cluster."""

from __future__ import annotations

import math
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle, tune
from ray.exceptions import RayActorError

from fewstep.errors import UserError
from fewstep.experiments.claim import at_work
from fewstep.experiments.rundir import RunDirectory, SweepDirectory
from fewstep.sweeps.launcher import Event, OnEvent, Outcome, finished
from fewstep.sweeps.ray import cluster
from fewstep.sweeps.ray.asha import scheduler
from fewstep.sweeps.ray.feed import Feed
from fewstep.sweeps.ray.settings import RaySettings
from fewstep.sweeps.ray.team import LATE, Lost
from fewstep.sweeps.ray.trial import RunTrial, Terms, scores
from fewstep.sweeps.ray.wanted import Wanted, refuse_rungs
from fewstep.sweeps.resources import Resources

if TYPE_CHECKING:
    from fewstep.sweeps.ray.proposals import Proposals
    from fewstep.sweeps.sweep import Sweep

GRACE_SECONDS = 60.0
POLL_SECONDS = 0.2


@dataclass
class RayLauncher:
    """Runs directories as trials of Ray Tune; see ``RaySettings`` for how.

    Attributes:
        resources: what a run asks for, by key; by default a core, and a GPU where there are any.
        directory: the sweep's, where it is not that of the first run.
        searched: the sweep whose axes a search proposes from, beside the runs that are given.
    """

    settings: RaySettings
    resources: Mapping[str, Resources] | None = None
    directory: SweepDirectory | None = None
    searched: Sweep | None = None

    def launch(self, runs: Sequence[RunDirectory], on_event: OnEvent) -> Outcome:
        """Run all of them, then what is proposed.

        On Ctrl-C or SIGTERM runs save and stop, resumable; a second does not wait for them.

        Raises:
            UserError: no cluster at the address, a run that asks for more than there is, or
                rungs for one of several processes.
        """
        self.check(runs)
        sweep = self.directory or SweepDirectory(runs[0].path.parent)
        proposals = self._proposals(sweep)
        if proposals is None and all(finished(run) for run in runs):
            feed = Feed(runs, [], None, lambda run: [], on_event)  # nothing to start Ray for
            assert feed.suggest("none") == feed.FINISHED
            return feed.outcome
        with cluster.connected(self.settings):
            wanted = Wanted(self.resources or {}, proposals, cluster.nodes())
            if self.settings.address is None:
                wanted.check(runs)
            known = self._known(sweep, runs)
            feed = Feed(
                runs, known, proposals, wanted, on_event,
                self.settings.max_failures, self.settings.max_parallel,
            )  # fmt: skip
            with stopping(feed):
                self._tune(feed)
        left = feed.left()
        end = time.monotonic() + GRACE_SECONDS
        while any(at_work(run) for run in left) and time.monotonic() < end and not feed.hurried:
            time.sleep(POLL_SECONDS)
        for run in left:
            ended = feed.outcome.done if finished(run) else feed.outcome.interrupted
            ended.append(run.key)
            on_event(Event("done" if finished(run) else "interrupted", run), [])
        return feed.outcome

    def check(self, runs: Sequence[RunDirectory]) -> None:
        """Refuse what cannot be launched, as far as that is known before Ray starts.

        ``runs`` need not be prepared; nothing is written.

        Raises:
            UserError: as for ``launch``.
        """
        search = self.settings.search != "none"
        if search:
            self._proposals(self.directory or SweepDirectory(runs[0].path.parent))
        unfinished = [run for run in runs if not finished(run)]
        if not unfinished and not search:
            return
        if self.settings.rung_steps():
            refuse_rungs(unfinished, self.resources or {}, self.searched if search else None)
        if ray.is_initialized():  # by whoever uses us as a library
            return
        if self.settings.address is not None:
            cluster.found(self.settings.address)
        else:
            here = {"memory": math.inf, **cluster.share(self.settings)}
            Wanted(self.resources or {}, None, [here]).check(runs)

    def _proposals(self, sweep: SweepDirectory) -> Proposals | None:
        if self.settings.search == "none":
            return None
        varied = [] if self.searched is None else list(self.searched.axes.values())
        if self.searched is None or not any(a.draw or len(a.choices) > 1 for a in varied):
            raise UserError(
                f"ray.search {self.settings.search} has nothing to propose from: no axis of the "
                f"sweep has more than one value"
            )
        try:
            from fewstep.sweeps.ray.proposals import Proposals, axes_of
        except ModuleNotFoundError as error:
            if error.name != "optuna":
                raise
            raise UserError("ray.search optuna needs it: pip install 'fewstep[optuna]'") from None
        return Proposals(axes_of(self.searched), self.settings, sweep)

    def _known(self, sweep: SweepDirectory, runs: Sequence[RunDirectory]) -> list[RunDirectory]:
        """Runs that are not to be run, but whose scores at the rungs count."""
        if not self.settings.rung_steps():
            return []
        launched = {run.key for run in runs if not finished(run)}
        return [
            run
            for run in sweep.runs()
            if run.key not in launched
            and (run.status() == "stopped" or finished(run))
            and scores(run, self.settings.metric_steps)
        ]

    def _tune(self, feed: Feed) -> None:
        settings = self.settings
        common = Terms(os.getcwd(), settings.rung_steps(), settings.metric_steps, settings.eta)

        class Trial(RunTrial):
            terms = common

        storage = tempfile.mkdtemp(prefix="tune-", dir="/tmp")
        try:
            tune.run(
                Trial,
                name="fewstep",
                storage_path=storage,
                search_alg=feed,
                scheduler=scheduler(common, feed.trials.get),
                num_samples=-1,
                reuse_actors=True,
                max_failures=0,  # the feed tries again, by the failure's class
                raise_on_failed_trial=False,
                stop=Stop(feed),
                callbacks=[Watch(feed)],
                verbose=0,
                log_to_file=False,
            )
        except KeyboardInterrupt:
            if not feed.hurried:
                raise
        finally:
            shutil.rmtree(storage, ignore_errors=True)


class Stop(tune.Stopper):
    """Ends all trials once the feed is told to stop."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.feed.stopping


class Watch(tune.Callback):
    """Tells the feed what Tune does not tell a searcher."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.feed.begun(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        kind, message, told = reason(trial)
        if kind in ("killed", "lost_node") and cluster.lost():
            kind, message = "lost_node", "the Ray cluster is gone"
            self.feed.stopping = True  # there is nowhere to try again
        self.feed.died(trial.trial_id, kind, message, told)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.feed.tick()


# "unavailable" is what Ray says of a machine that is silent, until it is sure; an actor that died
# alone it knows of at once
GONE_WITH_ITS_MACHINE = ("node has died", "node was terminated", "temporarily unavailable", LATE)


def reason(trial: Any) -> tuple[str, str, str]:
    """Why a trial's actor is gone: the failure's class, a line, and what Ray says."""
    error = error_of(trial)
    told = str(error or "")
    last = next((line.strip() for line in reversed(told.splitlines()) if line.strip()), "")
    if error is not None and not isinstance(error, RayActorError | Lost):
        return "bug", f"the trial itself failed: {last}", told
    if any(words in told for words in GONE_WITH_ITS_MACHINE):
        return "lost_node", "the machine was lost (Ray)", told
    if "creation task" in told:
        return "bug", f"the trial could not start: {last}", told
    hint = " (memory ran short)" if "OutOfMemory" in told else ""
    return "killed", f"the Ray actor that had the run is gone{hint}", told


def error_of(trial: Any) -> Any:
    """The exception, or what is told of it.

    Tune's own ``get_error`` looks where it has not brought the files yet.
    """
    for name, read in (
        (trial.pickled_error_file, cloudpickle.loads),
        (trial.error_file, bytes.decode),
    ):
        if name is not None and os.path.exists(name):
            return read(Path(name).read_bytes())
    return None


@contextmanager
def stopping(feed: Feed) -> Iterator[None]:
    """SIGINT and SIGTERM tell the feed to stop; the second does not wait."""

    def on_signal(number: int, frame: object) -> None:
        if feed.stopping:
            feed.hurried = True
            raise KeyboardInterrupt
        feed.stopping = True

    previous = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
