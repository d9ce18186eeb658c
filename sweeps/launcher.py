"""What every launcher is: it brings run directories to their end, and tells what happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fewstep.errors import UserError
from fewstep.experiments import failures
from fewstep.experiments.rundir import RunDirectory


@dataclass(frozen=True)
class Event:
    """``kind``: started | done | failed | stopped | again | interrupted | busy | tick.

    Stopped: a search algorithm ended it early. Again: it failed, and is tried once more. Busy:
    another process has the run; it is looked at again until that one lets go of it. Tick: nothing
    new, time passed.
    """

    kind: str
    run: RunDirectory | None = None


OnEvent = Callable[[Event, Sequence[RunDirectory]], None]
"""(what happened, the runs at work now)"""


@dataclass
class Outcome:
    """How the launched runs ended, by key."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)


class Launcher(Protocol):
    """Runs directories somewhere, and waits for them."""

    def launch(self, runs: Sequence[RunDirectory], on_event: OnEvent) -> Outcome:
        """Run all of them; finished ones are not repeated, begun ones go on."""
        ...


def teacher_of(run: RunDirectory) -> str | None:
    """The key of the run's teacher."""
    teacher = ((run.spec() or {}).get("config") or {}).get("teacher")
    return None if teacher is None else Path(teacher).name


def called_off(run: RunDirectory) -> bool:
    """Whether somebody cancelled a waiting run, which is recorded, or removed its directory."""
    if run.spec() is None:
        return True
    if not run.cancel.exists():
        return False
    if (run.failure() or {}).get("class") != "cancelled":  # it was at work elsewhere, and said so
        before = "went on" if run.attempts() else "began"
        run.write("failure", failures.record(run, "cancelled", f"cancelled before it {before}"))
    return True


def finished(run: RunDirectory) -> bool:
    """Whether there is nothing left to do: it need not become a trial."""
    if run.result() is None:
        return False
    # torch takes seconds, and a job's own process does without
    from fewstep.experiments.evaluation import cells_lacking
    from fewstep.experiments.run import requested

    try:
        return not cells_lacking(requested(run), run)
    except UserError:  # which its own process is to tell
        return False
