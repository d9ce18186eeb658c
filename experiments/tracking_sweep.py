"""One sweep in MLflow: which of its runs have changed, and telling MLflow of those alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.errors import UserError
from fewstep.experiments import tracking_mirror as mirrors
from fewstep.experiments import tracking_view as view
from fewstep.experiments.rundir import Json, RunDirectory, SweepDirectory
from fewstep.experiments.tracking_mirror import SOURCES, SYNCED
from fewstep.experiments.tracking_record import (
    FORMAT,
    OWNER,
    Record,
    cell_names,
    fingerprint,
    flatten,
    read_record,
)
from fewstep.experiments.tracking_store import StoreAway, is_server, one_transaction, told

# What one transaction takes: it should keep others from the database for no longer than a second.
RUNS_TOGETHER, POINTS_TOGETHER = 25, 25_000
RUNS_LOOKED_AT = 50  # to see what there is to draw
NOTE_LENGTH = 4000  # MLflow takes tags of 5,000 characters
TORN = (
    KeyError,
    TypeError,
    AttributeError,
    ValueError,
)  # what reading files of a wrong form raises
OnProgress = Callable[[str, int, int], None]


@dataclass
class SyncReport:
    """What a sync did, counted in runs (the sweeps' parent runs not among them).

    ``waiting`` runs have not begun and are not in MLflow yet; ``problems`` are one-line
    accounts of run directories that could not be read, or that MLflow refuses. ``experiments``:
    MLflow's id of each sweep that it was asked about.
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


class Look(NamedTuple):
    """A sweep's directories at one moment: names, sizes and times alone, nothing was read.

    ``states`` are fingerprints by key, the sweep's own under ``""``; runs not begun have none.
    """

    plan: Json
    runs: list[RunDirectory]
    statuses: dict[str, str]
    states: dict[str, str]


class Change(NamedTuple):
    """A run that MLflow has to be told of, as read."""

    run: RunDirectory
    state: str
    record: Record
    found: Any  # the MLflow run it belongs to, if there is one
    outdated: bool  # whether that one shows another training, by other sources
    data: Any


@dataclass
class SweepMirror:
    """One sweep, and what this process knows MLflow to hold of it."""

    sweep: SweepDirectory
    root: Path
    uri: str
    seen: dict[str, str] = field(default_factory=dict)

    def look(self) -> Look:
        """The sweep's directories now."""
        plan, runs = self.sweep.plan() or {}, self.sweep.runs()
        statuses = {run.key: str(run.status()) for run in runs}
        choices = _choices(plan)
        states = {
            run.key: fingerprint(run, statuses[run.key], choices.get(run.key, {}))
            for run in runs
            if statuses[run.key] != "new"
        }
        if states:
            files = [(str(f), (s := f.stat()).st_size, s.st_mtime_ns) for f in self._report()]
            own = json.dumps([list(statuses.values()), plan.get("description"), files])
            states[""] = own
        return Look(plan, runs, statuses, states)

    def unchanged(self, look: Look) -> bool:
        """Whether MLflow holds all of it already, as far as this process knows."""
        return look.states == self.seen

    def bring(self, client: Any, report: SyncReport, on_progress: OnProgress | None) -> None:
        """Tell MLflow what is new. Hold the lock, so that nobody else does."""
        look = self.look()
        report.count("waiting", sum(run.key not in look.states for run in look.runs))
        if not look.states:
            return
        changed = [run for run in look.runs if self._is_new(look, run.key)]
        report.count("unchanged", len(look.states) - 1 - len(changed))
        found = mirrors.find_experiment(client, self.sweep.name, self.root, self.uri)
        experiment, kept = str(found.experiment_id), _names(found.tags)
        names = dict(kept)
        report.experiments[self.sweep.name] = experiment
        known = mirrors.find_runs(client, experiment, {"", *(run.key for run in changed)})
        parent = known.get("") or self._create_parent(client, experiment, look)
        done, created = len(look.runs) - len(changed), set()
        for changes in _groups(self._read(look, changed, known, names, report)):
            _keep_names(client, experiment, names, kept)
            for change, outcome in self._tell(client, parent, changes, report):
                report.count(outcome)
                self.seen[change.run.key] = change.state
                if outcome == "created":
                    created.add(change.run.key)
            done += len(changes)
            if on_progress:
                on_progress(self.sweep.name, done, len(look.runs))
        if created and is_server(self.uri):  # requests are sent again where an answer is lost
            mirrors.find_runs(client, experiment, created)
        if on_progress and done < len(look.runs):
            on_progress(self.sweep.name, len(look.runs), len(look.runs))
        self._tell_parent(client, look, parent)
        self._tell_charts(client, experiment, look, names, anew=bool(changed))
        self.seen = {k: v for k, v in self.seen.items() if k in look.states} | {"": look.states[""]}

    def _is_new(self, look: Look, key: str) -> bool:
        return key in look.states and self.seen.get(key) != look.states[key]

    def _read(
        self,
        look: Look,
        changed: Sequence[RunDirectory],
        known: Json,
        names: dict[str, str],
        report: SyncReport,
    ) -> Iterator[Change]:
        """What is to be told of each run; those MLflow knows all about, and torn ones, are not."""
        choices = _choices(look.plan)
        for run in changed:
            state, found = look.states[run.key], known.get(run.key)
            if found and found.data.tags.get(SYNCED) == state:
                report.count("unchanged")
                self.seen[run.key] = state
                continue
            try:
                if (spec := run.spec()) is None:
                    report.count("waiting")
                    continue
                record = _record(run, spec, choices.get(run.key, {}), names, found)
                outdated = bool(found) and (
                    _other_sources(found, record) or _misnamed(found, names)
                )
                if outdated:
                    record = _record(run, spec, choices.get(run.key, {}), names, None)
            except UserError as error:  # one torn folder must not hide the others
                report.problems += (str(error),)
                self.seen[run.key] = state  # torn until its files change
                continue
            data = spec.get("config", {}).get("data")
            yield Change(run, state, record, found, outdated, data)

    def _tell(
        self, client: Any, parent: Any, changes: Sequence[Change], report: SyncReport
    ) -> list[tuple[Change, str]]:
        """Together if that can be; else each on its own, so that one refused hides no other."""
        if not is_server(self.uri):
            try:
                with told(self.uri), one_transaction(client, self.uri):
                    return [(change, _tell_run(client, change, parent)) for change in changes]
            except StoreAway:
                raise
            except UserError:
                pass  # nothing of it was kept
        outcomes = []
        for change in changes:
            try:
                with told(self.uri):
                    outcomes.append((change, _tell_run(client, change, parent)))
            except StoreAway:
                raise
            except UserError as error:
                report.problems += (f"{change.run.path}: {error}",)
        return outcomes

    def _create_parent(self, client: Any, experiment: str, look: Look) -> Any:
        planned = min(_times(look.runs, "spec.json"), default=0)
        tags = self._parent_tags(look)
        parent = mirrors.create_run(client, experiment, self.sweep.name, planned, tags)
        if is_server(self.uri):  # the runs name their parent: it must be the one that stays
            return mirrors.find_runs(client, experiment, {""})[""]
        return parent

    def _tell_parent(self, client: Any, look: Look, parent: Any) -> None:
        """The sweep's own run: how it stands, what it is about, and its report as artifacts."""
        description = self._description(look)
        files = [
            [str(file), hashlib.sha256(file.read_bytes()).hexdigest()] for file in self._report()
        ]
        tags = self._parent_tags(look)
        state = json.dumps([FORMAT, sorted(tags.items()), description, files])
        state = hashlib.sha256(state.encode()).hexdigest()[:16]
        old = parent.data.tags
        if old.get(SYNCED) == state:
            return
        # A note that somebody has changed in the browser is theirs.
        if old.get("mlflow.note.content", "") in ("", old.get("fewstep.description", "")):
            tags |= {"mlflow.note.content": description, "fewstep.description": description}
        status, ended = _parent_status(look)
        record = Record(self.sweep.name, status, parent.info.start_time, ended, tags, {}, [], [])
        mirrors.log_folder(client, parent, self.sweep.report)
        mirrors.set_status(client, parent, status, ended)
        mirrors.log_record(client, parent, record, state)

    def _tell_charts(
        self, client: Any, experiment: str, look: Look, names: dict[str, str], anew: bool
    ) -> None:
        """How MLflow's pages should show the sweep, and what it is about."""
        old = client.get_experiment(experiment).tags
        if not anew and "fewstep.description" in old:
            return
        done = [run for run in look.runs if look.statuses[run.key] == "done"]
        # by key, which is a hash: every n-th of the plan could be of one data set
        looks = list(_looks(sorted(done, key=lambda run: run.key)[:RUNS_LOOKED_AT], names))
        links = (
            f"[Methods, averaged over seeds]({view.address(experiment)}), "
            f"[every run]({view.address(experiment, view.RUNS)})"
        )
        # the links first: folded, MLflow shows the beginning alone
        note = f"{links}\n\n{_about(look.plan)}".strip()
        tags = view.tags(view.charted(looks))
        if old.get("mlflow.note.content", "") in ("", old.get("fewstep.description", "")):
            tags |= {"mlflow.note.content": note, "fewstep.description": note}
        for key, value in tags.items():
            if old.get(key) != value:
                client.set_experiment_tag(experiment, key, value)

    def _parent_tags(self, look: Look) -> dict[str, str]:
        states = list(look.statuses.values())
        counts = [f"{n} {state}" for state in ("done", "failed", "running", "new")
                  if (n := states.count(state))]  # fmt: skip
        return {
            "fewstep.role": "sweep",
            "fewstep.sweep": self.sweep.name,
            "fewstep.status": ", ".join(counts),
        }

    def _description(self, look: Look) -> str:
        """Of the sweep's run: what it is about, and its table once there is one."""
        table = self.sweep.report / "table.md"
        text = table.read_text(encoding="utf-8") if table.is_file() else ""
        parts = [_about(look.plan), text if len(text) < NOTE_LENGTH else ""]
        return "\n\n".join(part.strip() for part in parts if part.strip())

    def _report(self) -> list[Path]:
        return mirrors.artifact_files(self.sweep.report)


def _tell_run(client: Any, change: Change, parent: Any) -> str:
    """Make an MLflow run hold what was read of the run directory; ``created`` or ``updated``."""
    record, found = change.record, change.found
    if found and change.outdated:
        client.delete_run(found.info.run_id)
        found = None
    tags = record.tags | {"mlflow.parentRunId": parent.info.run_id}
    mirror = found or mirrors.create_run(
        client, parent.info.experiment_id, record.name, record.started, tags
    )
    mirrors.log_dataset(client, mirror, change.data)
    mirrors.set_status(client, mirror, record.status, record.ended)
    mirrors.drop_tags(client, mirror, kept=record.tags)
    mirrors.log_folder(client, mirror, change.run.diagnostics)
    mirrors.log_record(client, mirror, record, change.state)
    return "updated" if found else "created"


def _record(
    run: RunDirectory, spec: Json, choices: Json, names: dict[str, str], found: Any
) -> Record:
    try:
        return read_record(run, spec, choices, names, found.info.start_time if found else None)
    except TORN as error:
        torn = str(error) if isinstance(error, UserError) else f"{run.path} is torn ({error!r})"
        raise UserError(torn) from error


def _looks(
    runs: Sequence[RunDirectory], names: dict[str, str]
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The settings of runs, and the names of what they are recorded as."""
    for run in runs:
        with contextlib.suppress(*TORN):  # which has been told
            if (spec := run.spec()) is not None:
                yield dict(flatten(spec.get("config", {}))), cell_names(run, spec, names)


def _other_sources(found: Any, record: Record) -> bool:
    tags = found.data.tags
    return any(tags.get(s, new) != new for s in SOURCES if (new := record.tags.get(s)))


def _misnamed(found: Any, names: dict[str, str]) -> bool:
    """Whether a name of its metrics is another's in this sweep; older syncs named run by run."""
    return any(names.get(name, of) != of for name, of in _names(found.data.tags).items())


def _names(tags: Mapping[str, str]) -> dict[str, str]:
    """Whose each name of a metric is, as tags of an experiment or a run have it."""
    return {tag.removeprefix(OWNER): of for tag, of in tags.items() if tag.startswith(OWNER)}


def _keep_names(client: Any, experiment: str, names: dict[str, str], kept: dict[str, str]) -> None:
    """In the experiment, before any point has one: whoever syncs next goes by them."""
    for name in names.keys() - kept.keys():
        client.set_experiment_tag(experiment, f"{OWNER}{name}", names[name])
    kept.update(names)


def _groups(changes: Iterator[Change]) -> Iterator[list[Change]]:
    """The changes, in groups of a size for one transaction."""
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
    """The sweep's description, for MLflow's pages."""
    return view.as_written(str(plan.get("description") or "").strip())


def _choices(plan: Json) -> dict[str, Json]:
    return {run["key"]: run.get("choices") or {} for run in plan.get("runs", [])}


def _parent_status(look: Look) -> tuple[str, int | None]:
    states = set(look.statuses.values())
    if "running" in states:
        return "RUNNING", None
    if "new" in states:
        return "SCHEDULED", None
    ended = max(_times(look.runs, "result.json", "failure.json"), default=None)
    return "FAILED" if "failed" in states else "FINISHED", ended


def _times(runs: list[RunDirectory], *names: str) -> list[int]:
    """When these files of the runs were written, in milliseconds."""
    files = [file for run in runs for name in names if (file := run.path / name).is_file()]
    return [round(file.stat().st_mtime * 1000) for file in files]
