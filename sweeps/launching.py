"""With which launcher and settings a sweep was launched last: ``launch.json``, for ``retry``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fewstep.experiments.failures import CLASSES
from fewstep.experiments.provenance import now
from fewstep.experiments.rundir import (
    RunDirectory,
    SweepDirectory,
    Unreadable,
    read_record,
    write_json,
)
from fewstep.sweeps.resources import Resources


def remember(
    sweep: SweepDirectory,
    launcher: str,
    settings: Mapping[str, Any],
    resources: Mapping[str, Resources],
) -> None:
    """Note how the sweep is launched now; resources of runs launched earlier are kept."""
    _, _, before = recall(sweep)
    told = {key: asdict(r) for key, r in {**before, **resources}.items()}
    write_json(
        sweep.path / "launch.json",
        {"launcher": launcher, "settings": dict(settings), "resources": told, "time": now()},
    )


def recall(sweep: SweepDirectory) -> tuple[str, dict[str, Any], dict[str, Resources]]:
    """(launcher, its settings, resources by key); local where nothing was noted."""
    noted = read_record(sweep.path / "launch.json") or {}
    resources = {key: Resources(**values) for key, values in noted.get("resources", {}).items()}
    return noted.get("launcher", "local"), noted.get("settings", {}), resources


def ready(runs: Iterable[RunDirectory]) -> None:
    """Forget that somebody cancelled them: they are asked for again."""
    for run in runs:
        run.cancel.unlink(missing_ok=True)


def failed(
    sweep: SweepDirectory, classes: Sequence[str], keys: Sequence[str]
) -> tuple[list[RunDirectory], list[Unreadable]]:
    """Runs that failed: of these classes, with these beginnings of keys.

    Where neither is given, all but those that somebody cancelled.

    Also what is wrong with those of which nobody can tell, for a file of them is damaged.

    Raises:
        UserError: no run has such a key.
    """
    runs, unreadable = [], []
    for run in sweep.chosen(keys):
        if run.status() != "failed":
            continue
        try:
            spec, failure = run.spec(), run.failure()
        except Unreadable as error:
            unreadable.append(error)
            continue
        if spec and failure and _asked_for(failure["class"], classes, keys):
            runs.append(run)
    return runs, unreadable


def _asked_for(kind: str, classes: Sequence[str], keys: Sequence[str]) -> bool:
    if classes:
        return kind in classes
    return bool(keys) or CLASSES[kind].retried
