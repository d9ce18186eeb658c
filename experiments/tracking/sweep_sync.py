"""One sweep in MLflow: which of its runs have changed, and writing those."""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.errors import UserError
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.experiments.tracking import charts, run_record, writer
from fewstep.experiments.tracking.mlflow_private import (
    held_by_sqlite,
    one_transaction,
    view_address,
)
from fewstep.experiments.tracking.run_record import FORMAT, OWNER, Record
from fewstep.experiments.tracking.store import (
    StoreUnavailable,
    is_server,
    sqlite_file,
    store_errors,
)
from fewstep.experiments.tracking.writer import SOURCES, SYNCED

# What one transaction takes: it should keep others from the database for no longer than a second.
RUNS_TOGETHER, POINTS_TOGETHER = 25, 25_000
RUNS_LOOKED_AT = 50  # to see what there is to draw
NOTE_LENGTH = 4000  # MLflow takes tags of 5,000 characters
TORN = (KeyError, TypeError, AttributeError, ValueError)  # of reading files of a wrong form
OnProgress = Callable[[str, int, int], None]


@dataclass
class SyncReport:
    """What a sync did, counted in runs (the sweeps' parent runs not among them).

    ``waiting`` runs have not begun and are not in MLflow yet; ``problems``: a line for each run
    that could not be read, or that MLflow refuses. ``experiments``: MLflow's id of each sweep.
    """

    uri: str
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    waiting: int = 0
    problems: tuple[str, ...] = ()
    experiments: dict[str, str] = field(default_factory=dict)

    def count(self, outcome: str, runs: int = 1) -> None:
        """``runs`` more of ``created``, ``updated``, ``unchanged`` or ``waiting``."""
        setattr(self, outcome, getattr(self, outcome) + runs)


class SweepSnapshot(NamedTuple):
    """A sweep's directories at one moment: names, sizes and times alone, nothing was read.

    ``states`` are fingerprints by key, the sweep's own under ``""``; runs not begun have none.
    """

    plan: Json
    runs: list[RunDirectory]
    statuses: dict[str, str]
    states: dict[str, str]

    def waiting(self) -> int:
        """How many runs have not begun."""
        return sum(run.key not in self.states for run in self.runs)


class Change(NamedTuple):
    """A run that changed, as read from its directory."""

    run: RunDirectory
    state: str
    record: Record
    mirror: Any  # the MLflow run that shows it, if there is one
    outdated: bool  # whether that one shows another training, by other sources
    data: Any


@dataclass
class SweepSync:
    """One sweep, and what this process knows MLflow to hold of it."""

    sweep: SweepDirectory
    root: Path
    uri: str
    seen: dict[str, str] = field(default_factory=dict)

    def snapshot(self) -> SweepSnapshot:
        """The sweep's directories now."""
        plan, runs = self.sweep.plan() or {}, self.sweep.runs()
        statuses = {run.key: str(run.status()) for run in runs}
        choices = _choices(plan)
        states = {
            run.key: run_record.fingerprint(run, statuses[run.key], choices.get(run.key, {}))
            for run in runs
            if statuses[run.key] != "new"
        }
        if states:
            files = [(str(f), (s := f.stat()).st_size, s.st_mtime_ns) for f in self._report()]
            states[""] = json.dumps([list(statuses.values()), plan.get("description"), files])
        return SweepSnapshot(plan, runs, statuses, states)

    def is_held(self, snapshot: SweepSnapshot, report: SyncReport) -> bool:
        """Whether a sqlite database holds all of it as it is; known without MLflow's import."""
        name, file = self.sweep.name, sqlite_file(self.uri)
        held = held_by_sqlite(file, writer.experiment_name(name)) if file else None
        if held is None or not held.noted or not snapshot.states:
            return False
        expected = {**snapshot.states, "": self._parent_state(snapshot)}
        if any(held.synced.get(key) != [state] for key, state in expected.items()):
            return False
        if not writer.is_home(held.artifacts, name, self.root, self.uri):
            return False
        self.seen = snapshot.states
        report.problems += tuple(held.problems)
        report.experiments[name] = held.experiment
        return True

    def push(self, client: Any, report: SyncReport, on_progress: OnProgress | None) -> None:
        """Write what is new to MLflow. Hold the lock, so that no other process does."""
        snapshot = self.snapshot()
        states = snapshot.states
        report.count("waiting", snapshot.waiting())
        if not states:
            return
        changed = [
            run
            for run in snapshot.runs
            if run.key in states and self.seen.get(run.key) != states[run.key]
        ]
        report.count("unchanged", len(states) - 1 - len(changed))
        entity = writer.find_experiment(client, self.sweep.name, self.root, self.uri)
        experiment, kept = str(entity.experiment_id), _names(entity.tags)
        names = dict(kept)
        report.experiments[self.sweep.name] = experiment
        known = writer.find_runs(client, experiment, {"", *(run.key for run in changed)})
        parent = known.get("") or self._create_parent(client, experiment, snapshot)
        done, created = len(snapshot.runs) - len(changed), set()
        for changes in _groups(self._read(snapshot, changed, known, names, report)):
            for name in names.keys() - kept.keys():  # before any point has one: the next sync reads
                client.set_experiment_tag(experiment, f"{OWNER}{name}", names[name])
            kept.update(names)
            for change, outcome in self._write(client, parent, changes, report):
                report.count(outcome)
                self.seen[change.run.key] = change.state
                if outcome == "created":
                    created.add(change.run.key)
            done += len(changes)
            if on_progress:
                on_progress(self.sweep.name, done, len(snapshot.runs))
        if created and is_server(self.uri):  # requests are sent again where an answer is lost
            writer.find_runs(client, experiment, created)
        if on_progress and done < len(snapshot.runs):
            on_progress(self.sweep.name, len(snapshot.runs), len(snapshot.runs))
        self._update_parent(client, snapshot, parent)
        tags = client.get_experiment(experiment).tags
        if changed or "fewstep.description" not in tags:
            self._update_charts(client, experiment, snapshot, names, tags)
        self.seen = {k: v for k, v in self.seen.items() if k in states} | {"": states[""]}

    def _read(
        self,
        snapshot: SweepSnapshot,
        changed: Sequence[RunDirectory],
        known: Json,
        names: dict[str, str],
        report: SyncReport,
    ) -> Iterator[Change]:
        choices = _choices(snapshot.plan)
        for run in changed:
            state, old = snapshot.states[run.key], known.get(run.key)
            if old and old.data.tags.get(SYNCED) == state:
                report.count("unchanged")
                report.problems += _problems(old.data.tags)
                self.seen[run.key] = state
                continue
            try:
                if (spec := run.spec()) is None:
                    report.count("waiting")
                    continue
                about = run, spec, choices.get(run.key, {}), names
                record = run_record.read_record(*about, old.info.start_time if old else None)
                tags = old.data.tags if old else {}
                sources = {s: record.tags[s] for s in SOURCES if s in record.tags}
                outdated = any(tags.get(s, new) != new for s, new in sources.items())
                # older syncs named metrics run by run: a name may be another's in this sweep
                outdated |= any(names.get(name, of) != of for name, of in _names(tags).items())
                if outdated:
                    record = run_record.read_record(*about)
                data = spec.get("config", {}).get("data")
                report.problems += _problems(record.tags)
            except TORN as error:  # one torn folder must not hide the others
                damaged = f"{run.path} has a damaged file ({error!r})"
                report.problems += (str(error) if isinstance(error, UserError) else damaged,)
                self.seen[run.key] = state  # torn until its files change
                continue
            yield Change(run, state, record, old, outdated, data)

    def _write(
        self, client: Any, parent: Any, changes: Sequence[Change], report: SyncReport
    ) -> list[tuple[Change, str]]:
        """In one transaction if possible; else one by one, so that a refused run hides no other."""
        if not is_server(self.uri):
            try:
                with store_errors(self.uri), one_transaction(client) as together:
                    if together:
                        return [(change, _write_run(client, change, parent)) for change in changes]
            except UserError as error:
                if isinstance(error, StoreUnavailable):
                    raise
        outcomes = []  # nothing of it was kept
        for change in changes:
            try:
                with store_errors(self.uri):
                    outcomes.append((change, _write_run(client, change, parent)))
            except UserError as error:
                if isinstance(error, StoreUnavailable):
                    raise
                report.problems += (f"{change.run.path}: {error}",)
        return outcomes

    def _create_parent(self, client: Any, experiment: str, snapshot: SweepSnapshot) -> Any:
        planned = min(_times(snapshot.runs, "spec.json"), default=0)
        tags = self._parent_tags(snapshot)
        parent = writer.create_run(client, experiment, self.sweep.name, planned, tags)
        if is_server(self.uri):  # the runs name their parent: it must be the one that stays
            return writer.find_runs(client, experiment, {""})[""]
        return parent

    def _update_parent(self, client: Any, snapshot: SweepSnapshot, parent: Any) -> None:
        """The sweep's own run: how it stands, what it is about, and its report as artifacts."""
        state = self._parent_state(snapshot)
        if parent.data.tags.get(SYNCED) == state:
            return
        tags = self._parent_tags(snapshot)
        tags |= _note(parent.data.tags, self._description(snapshot))
        status, ended = _parent_status(snapshot)
        record = Record(self.sweep.name, status, parent.info.start_time, ended, tags, {}, [], [])
        writer.log_folder(client, parent, self.sweep.report)
        writer.set_status(client, parent, status, ended)
        writer.log_record(client, parent, record, state)

    def _parent_state(self, snapshot: SweepSnapshot) -> str:
        """The fingerprint of the sweep's own run."""
        description, tags = self._description(snapshot), self._parent_tags(snapshot)
        files = [[str(f), hashlib.sha256(f.read_bytes()).hexdigest()] for f in self._report()]
        state = json.dumps([FORMAT, sorted(tags.items()), description, files])
        return hashlib.sha256(state.encode()).hexdigest()[:16]

    def _update_charts(
        self, client: Any, experiment: str, snapshot: SweepSnapshot, names: Json, old: Json
    ) -> None:
        done = [run for run in snapshot.runs if snapshot.statuses[run.key] == "done"]
        # by key, which is a hash: every n-th of the plan could be of one data set
        drawn = _settings_and_names(sorted(done, key=lambda run: run.key)[:RUNS_LOOKED_AT], names)
        links = (
            f"[Methods, averaged over seeds]({view_address(experiment, charts.METHODS)}), "
            f"[every run]({view_address(experiment, charts.RUNS)})"
        )
        # the links first: folded, MLflow shows the beginning alone
        note = f"{links}\n\n{_about(snapshot.plan)}".strip()
        for key, value in (charts.tags(charts.chart_spec(drawn)) | _note(old, note)).items():
            if old.get(key) != value:
                client.set_experiment_tag(experiment, key, value)

    def _parent_tags(self, snapshot: SweepSnapshot) -> dict[str, str]:
        counts = Counter(snapshot.statuses.values())
        states = [s for s in ("done", "failed", "running", "new") if counts[s]]
        status = ", ".join(f"{counts[s]} {s}" for s in states)
        name = self.sweep.name
        return {"fewstep.role": "sweep", "fewstep.sweep": name, "fewstep.status": status}

    def _description(self, snapshot: SweepSnapshot) -> str:
        table = self.sweep.report / "table.md"
        text = table.read_text(encoding="utf-8") if table.is_file() else ""
        parts = [_about(snapshot.plan), text if len(text) < NOTE_LENGTH else ""]
        return "\n\n".join(part.strip() for part in parts if part.strip())

    def _report(self) -> list[Path]:
        return writer.artifact_files(self.sweep.report)


def _write_run(client: Any, change: Change, parent: Any) -> str:
    """Make an MLflow run hold what was read of the run directory; ``created`` or ``updated``."""
    record, old = change.record, change.mirror
    if old and change.outdated:
        client.delete_run(old.info.run_id)
        old = None
    tags = record.tags | {"mlflow.parentRunId": parent.info.run_id}
    mirror = old or writer.create_run(
        client, parent.info.experiment_id, record.name, record.started, tags
    )
    writer.log_dataset(client, mirror, change.data)
    writer.set_status(client, mirror, record.status, record.ended)
    writer.drop_tags(client, mirror, kept=record.tags)
    writer.log_folder(client, mirror, change.run.diagnostics)
    writer.log_record(client, mirror, record, change.state)
    return "updated" if old else "created"


def _problems(tags: Mapping[str, str]) -> tuple[str, ...]:
    """What is wrong with a run that MLflow holds all the same."""
    return tuple(tags.get("fewstep.problem", "").splitlines())


def _note(old: Mapping[str, str], text: str) -> dict[str, str]:
    """The tags that keep ``text``, unless somebody has changed the ``old`` note in the browser."""
    if old.get("mlflow.note.content", "") in ("", old.get("fewstep.description", "")):
        return {"mlflow.note.content": text, "fewstep.description": text}
    return {}


def _settings_and_names(
    runs: Sequence[RunDirectory], names: dict[str, str]
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    for run in runs:
        with contextlib.suppress(*TORN):  # which MLflow has
            if (spec := run.spec()) is not None:
                settings = dict(run_record.flatten(spec.get("config", {})))
                yield settings, run_record.cell_names(run, spec, names)


def _names(tags: Mapping[str, str]) -> dict[str, str]:
    """Whose each name of a metric is, as tags of an experiment or a run have it."""
    return {tag.removeprefix(OWNER): of for tag, of in tags.items() if tag.startswith(OWNER)}


def _groups(changes: Iterator[Change]) -> Iterator[list[Change]]:
    group: list[Change] = []
    points = 0
    for change in changes:
        group.append(change)
        points += len(change.record.curves)
        if len(group) == RUNS_TOGETHER or points >= POINTS_TOGETHER:
            yield group
            group, points = [], 0
    if group:
        yield group


def _about(plan: Json) -> str:
    return charts.as_written(str(plan.get("description") or "").strip())


def _choices(plan: Json) -> dict[str, Json]:
    return {run["key"]: run.get("choices") or {} for run in plan.get("runs", [])}


def _parent_status(snapshot: SweepSnapshot) -> tuple[str, int | None]:
    states = set(snapshot.statuses.values())
    if "running" in states:
        return "RUNNING", None
    if "new" in states:
        return "SCHEDULED", None
    ended = max(_times(snapshot.runs, "result.json", "failure.json"), default=None)
    return "FAILED" if "failed" in states else "FINISHED", ended


def _times(runs: list[RunDirectory], *names: str) -> list[int]:
    files = [file for run in runs for name in names if (file := run.path / name).is_file()]
    return [round(file.stat().st_mtime * 1000) for file in files]
