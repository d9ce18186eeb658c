"""With which launcher and settings a sweep was launched last: ``launch.json``, for ``retry``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fewstep.errors import UserError
from fewstep.experiments.provenance import now
from fewstep.experiments.rundir import RunDirectory, SweepDirectory, read_json, write_json
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
    noted = read_json(sweep.path / "launch.json") or {}
    resources = {key: Resources(**values) for key, values in noted.get("resources", {}).items()}
    return noted.get("launcher", "local"), noted.get("settings", {}), resources


def ready(runs: Iterable[RunDirectory]) -> None:
    """Forget that somebody cancelled them: they are asked for again."""
    for run in runs:
        run.cancel.unlink(missing_ok=True)


def failed(
    sweep: SweepDirectory, classes: Sequence[str], keys: Sequence[str]
) -> list[RunDirectory]:
    """Runs that failed: of these classes, or of any; with these beginnings of keys, or all.

    Raises:
        UserError: no run has such a key.
    """
    return [
        run
        for run in chosen(sweep, keys)
        if run.status() == "failed"
        and (failure := run.failure()) is not None
        and (not classes or failure["class"] in classes)
    ]


def chosen(sweep: SweepDirectory, keys: Sequence[str]) -> list[RunDirectory]:
    """The runs whose keys begin with one of ``keys``; all where none is given.

    Raises:
        UserError: no run has such a key.
    """
    runs = sweep.runs()
    for key in keys:
        if not any(run.key.startswith(key) for run in runs):
            near = {run.key[: len(key)]: run.key for run in runs}
            found = difflib.get_close_matches(key, near, n=1, cutoff=0.5)
            hint = f"; did you mean {near[found[0]]!r}?" if found else ""
            raise UserError(f"sweep {sweep.name} has no run {key!r}{hint}")
    return [run for run in runs if not keys or run.key.startswith(tuple(keys))]
