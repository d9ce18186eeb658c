"""``sync``: run directories -> MLflow, by one writer, as often as one likes.

MLflow is made to mirror the files. One experiment per sweep (``fewstep/<sweep>``), in it a parent
run for the sweep with its report as artifacts, and one nested run per key, with its diagnostics as
artifacts. Trials never call this.

Why it neither loses nor doubles a point, even when killed at any moment:

- a run carries the tag ``fewstep.synced``, the fingerprint of the files it was made from, written
  last: equal fingerprint, nothing to do;
- otherwise what MLflow already holds is read back, and only what is missing is logged. A batch of
  metrics is one transaction of the store, so what is read back is what was written;
- params are logged once and never changed; runs are found by ``fewstep.key``, not by name.

MLflow cannot forget a point. So where a finished run was trained anew from other sources (its
recorded source hashes differ), a new MLflow run takes its place and the old one goes to the bin.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fewstep.errors import UserError
from fewstep.experiments import tracking_mirror as mirrors
from fewstep.experiments.rundir import Json, RunDirectory, SweepDirectory
from fewstep.experiments.tracking_mirror import SOURCES, SYNCED
from fewstep.experiments.tracking_record import FORMAT, Record, fingerprint, read_record
from fewstep.experiments.tracking_store import open_store, tracking_uri, ui_command

__all__ = ["SyncReport", "sync", "tracking_uri", "ui_command"]

SECONDS_FOR_THE_LOCK = 600.0
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SyncReport:
    """What a sync did, counted in runs (the sweeps' parent runs not among them).

    ``waiting`` runs have not begun and are not in MLflow yet; ``problems`` are one-line
    accounts of run directories that could not be read.
    """

    uri: str
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    waiting: int = 0
    problems: tuple[str, ...] = ()


def sync(
    sweeps: Sequence[SweepDirectory],
    root: Path,
    uri: str | None = None,
    on_progress: OnProgress | None = None,
) -> SyncReport:
    """Bring MLflow up to date with the run directories of ``sweeps``.

    Args:
        root: the run root; holds the lock, and by default the database and the artifacts.
        uri: the configured ``tracking.uri``; see ``tracking_uri`` for the default.
        on_progress: called with the sweep's name, the runs looked at and the sweep's runs.

    Raises:
        UserError: the store cannot be used, or another sync held the lock for ten minutes.
    """
    report = SyncReport(tracking_uri(root, uri))
    lock = root / ".sync.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=SECONDS_FOR_THE_LOCK), open_store(report.uri) as client:
            for sweep in sweeps:
                report = _sync_sweep(client, sweep, root, report, on_progress)
    except Timeout:
        raise UserError(f"another sync is at work: {lock} stayed locked") from None
    except OSError as error:
        raise UserError(f"cannot sync the run root {root} ({error})") from error
    return report


def _sync_sweep(
    client: Any,
    sweep: SweepDirectory,
    root: Path,
    report: SyncReport,
    on_progress: OnProgress | None,
) -> SyncReport:
    plan, runs = sweep.plan() or {}, sweep.runs()
    choices = {run["key"]: run.get("choices") or {} for run in plan.get("runs", [])}
    if all(run.status() == "new" for run in runs):
        return replace(report, waiting=report.waiting + len(runs))
    experiment = mirrors.find_experiment(client, sweep.name, root, report.uri)
    known = mirrors.find_runs(client, experiment)
    planned = min(_times(runs, "spec.json"), default=0)
    parent = known.get("") or mirrors.create_run(
        client, experiment, sweep.name, planned, _parent_tags(sweep, runs)
    )
    for position, run in enumerate(runs, start=1):
        try:
            outcome = _sync_run(client, run, choices.get(run.key, {}), known.get(run.key), parent)
        except UserError as error:  # one torn folder must not hide the others
            report = replace(report, problems=(*report.problems, str(error)))
        else:
            report = replace(report, **{outcome: getattr(report, outcome) + 1})
        if on_progress:
            on_progress(sweep.name, position, len(runs))
    _sync_parent(client, sweep, runs, str(plan.get("description") or ""), parent)
    return report


def _sync_run(client: Any, run: RunDirectory, choices: Json, found: Any, parent: Any) -> str:
    """Make ``found`` (an MLflow run, or None) hold what the run directory holds."""
    if run.status() == "new" or (spec := run.spec()) is None:
        return "waiting"
    state = fingerprint(run, choices)  # before reading: what is written later is seen next time
    tags = found.data.tags if found else {}
    if tags.get(SYNCED) == state:
        return "unchanged"
    record = _read(run, spec, choices, found)
    if found and any(tags.get(s, new) != new for s in SOURCES if (new := record.tags.get(s))):
        client.delete_run(found.info.run_id)
        found, record = None, _read(run, spec, choices, None)
    mirror = found or mirrors.create_run(
        client,
        parent.info.experiment_id,
        record.name,
        record.started,
        record.tags | {"mlflow.parentRunId": parent.info.run_id},
    )
    mirrors.log_dataset(client, mirror, spec.get("config", {}).get("data"))
    mirrors.set_status(client, mirror, record.status, record.ended)
    mirrors.drop_tags(client, mirror, kept=record.tags)
    mirrors.log_folder(client, mirror, run.diagnostics)
    mirrors.log_record(client, mirror, record, state)
    return "updated" if found else "created"


def _read(run: RunDirectory, spec: Json, choices: Json, found: Any) -> Record:
    try:
        if found:
            return read_record(run, spec, choices, found.info.start_time, found.data.tags)
        return read_record(run, spec, choices)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        told = str(error) if isinstance(error, UserError) else f"{run.path} is torn ({error!r})"
        raise UserError(told) from error


def _sync_parent(
    client: Any, sweep: SweepDirectory, runs: list[RunDirectory], description: str, parent: Any
) -> None:
    """The sweep's own run: how it stands, what it is about, and its report as artifacts."""
    files = mirrors.artifact_files(sweep.report)
    contents = [[str(file), hashlib.sha256(file.read_bytes()).hexdigest()] for file in files]
    tags = _parent_tags(sweep, runs)
    state = json.dumps([FORMAT, sorted(tags.items()), description, contents])
    state = hashlib.sha256(state.encode()).hexdigest()[:16]
    old = parent.data.tags
    if old.get(SYNCED) == state:
        return
    # A note that somebody has changed in the browser is theirs.
    if old.get("mlflow.note.content", "") in ("", old.get("fewstep.description", "")):
        tags |= {"mlflow.note.content": description, "fewstep.description": description}
    status, ended = _parent_status(runs)
    record = Record(sweep.name, status, parent.info.start_time, ended, tags, {}, [], [])
    mirrors.log_folder(client, parent, sweep.report)
    mirrors.set_status(client, parent, status, ended)
    mirrors.log_record(client, parent, record, state)


def _parent_tags(sweep: SweepDirectory, runs: list[RunDirectory]) -> dict[str, str]:
    states = [run.status() for run in runs]
    counts = [f"{n} {state}" for state in ("done", "failed", "running", "new")
              if (n := states.count(state))]  # fmt: skip
    return {
        "fewstep.role": "sweep",
        "fewstep.sweep": sweep.name,
        "fewstep.status": ", ".join(counts),
    }


def _parent_status(runs: list[RunDirectory]) -> tuple[str, int | None]:
    states = {run.status() for run in runs}
    if "running" in states:
        return "RUNNING", None
    if "new" in states:
        return "SCHEDULED", None
    ended = max(_times(runs, "result.json", "failure.json"), default=None)
    return "FAILED" if "failed" in states else "FINISHED", ended


def _times(runs: list[RunDirectory], *names: str) -> list[int]:
    """When these files of the runs were written, in milliseconds."""
    files = [file for run in runs for name in names if (file := run.path / name).is_file()]
    return [round(file.stat().st_mtime * 1000) for file in files]
