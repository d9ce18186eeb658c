"""The interface of launchers, which run the runs of a sweep, on this machine or elsewhere."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from fewstep.errors import UserError
from fewstep.experiments.store import failures
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps.definition.launchers import LAUNCHERS, with_settings
from fewstep.sweeps.definition.member import teacher_key
from fewstep.sweeps.definition.resources import DEFAULT, Resources

if TYPE_CHECKING:
    from fewstep.sweeps.definition.sweep import Sweep  # imports torch

__all__ = ["LAUNCHERS", "Event", "LaunchRequest", "Launcher", "OnEvent", "Outcome", "launcher"]


@dataclass(frozen=True)
class Event:
    """``kind``: started | done | failed | stopped | again | interrupted | busy | tick.

    Stopped: a search algorithm ended it early. Again: it failed, and is tried once more. Busy:
    another process has the run; the launcher waits until that process releases it. Tick: time
    passed.

    ``failure``: of failed and again, if the launcher knows more than failure.json, for which a disk
    may have no room.
    """

    kind: str
    run: RunDirectory | None = None
    failure: Json | None = None

    def reason(self) -> Json | None:
        """The record of the failure; None where there is none, or no directory any more."""
        if self.run is None or self.kind not in ("failed", "again"):
            return None
        if self.failure is not None and os.path.isdir(self.run.path):
            return self.failure
        with contextlib.suppress(OSError, UserError):  # a file that cannot be read
            return None if self.run.spec() is None else self.run.failure()
        return None


OnEvent = Callable[[Event, Sequence[RunDirectory]], None]
"""Called with an event and the runs that are running now."""


@dataclass
class Outcome:
    """How the launched runs ended, by key.

    Attributes:
        detached: the runs continue elsewhere; a later process syncs and reports.
        notes: lines to show to the user.
        unrecorded: classes of failures that could not be written, by key: a disk was full, or away.
    """

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    detached: bool = False
    notes: list[str] = field(default_factory=list)
    unrecorded: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LaunchRequest:
    """The runs to launch, longest first, teachers before their students.

    Attributes:
        directory: the sweep's.
        configs: the resolved configuration of each run, by key.
        resources: what each run asks for, by key.
        sweep: whose axes a search may propose further runs from; None: launch these runs only.
        seconds: the estimated durations of runs, by key, as far as they are known.
    """

    directory: SweepDirectory
    configs: Mapping[str, Json]
    resources: Mapping[str, Resources] = field(default_factory=dict)
    sweep: "Sweep | None" = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        runs: Sequence[RunDirectory],
        resources: Mapping[str, Resources] | None = None,
        sweep: "Sweep | None" = None,
    ) -> Self:
        """A request for prepared runs (one at least) of one sweep."""
        configs = {run.key: (run.spec() or {}).get("config", {}) for run in runs}
        return cls(SweepDirectory(runs[0].path.parent), configs, resources or {}, sweep)

    @property
    def runs(self) -> list[RunDirectory]:
        """Their directories; they exist once the runs are launched."""
        return [RunDirectory(self.directory.path / key) for key in self.configs]

    def resources_of(self, key: str) -> Resources:
        """What a run asks for."""
        return self.resources.get(key, DEFAULT)


class Launcher(Protocol):
    """A frozen dataclass; its fields are its settings, checked in ``__post_init__``.

    Register an instance in ``LAUNCHERS``, or its class under the entry point group
    ``fewstep.launchers``. A method ``summary(request)`` may give lines for the costs at the end of
    ``--plan``.
    """

    def check(self, request: LaunchRequest) -> None:
        """Raise a ``UserError`` if the runs cannot be launched: called before files are written."""
        ...

    def preview(self, request: LaunchRequest) -> Sequence[str]:
        """Lines for ``--plan``: what a launch would submit or add. Starts and writes nothing."""
        ...

    def launch(self, request: LaunchRequest, on_event: OnEvent) -> Outcome:
        """Run all of them; finished runs are not repeated, interrupted runs resume.

        May return before the runs end (``Outcome.detached``).

        Raises ``UserError``: the runs are refused; none has started.
        """
        ...


def launcher(name: str, settings: Mapping[str, Any] | None = None) -> Launcher:
    """The registered launcher ``name`` with these settings.

    Raises ``UserError``: no such launcher or setting, or a bad value.
    """
    return cast(Launcher, with_settings(LAUNCHERS[name], name, settings or {}))


def duration_text(hours: float) -> str:
    """As in ``1.5 hours`` or ``6.0 minutes``."""
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def teacher_of(run: RunDirectory) -> str | None:
    """The key of the run's teacher."""
    return teacher_key((run.spec() or {}).get("config") or {})


def is_cancelled(run: RunDirectory) -> bool:
    """Whether a waiting run was cancelled, which is recorded, or its directory removed."""
    if run.spec() is None:
        return True
    if not run.cancel.exists():
        return False
    if (run.failure() or {}).get("class") != "cancelled":  # else another process recorded it
        before = "resumed" if run.attempts() else "began"
        run.write("failure", failures.record(run, "cancelled", f"cancelled before it {before}"))
    return True


def is_complete(run: RunDirectory) -> bool:
    """Whether the run has its result and every cell that was requested."""
    if run.result() is None:
        return False
    # torch takes seconds, and the process of a SLURM job does not need it
    from fewstep.experiments.evaluation.evaluate import cells_lacking
    from fewstep.experiments.run import requested

    try:
        return not cells_lacking(requested(run), run)
    except UserError:  # the run's own process reports it
        return False
