"""The run directory: all that is known of a run.

::

    runs/<sweep>/<key>/
        spec.json                 the whole resolved configuration, written once
        request.json              what was asked last of what may change: cells, device, logging,
                                  where the data are
        data.json                 which data it is trained on: hashes, numbers, names of classes
        metrics.jsonl             one line per logged step
        pairs/                    noise and what the teacher makes of it, where they are trained on
        checkpoints/              the last two checkpoints
        weights/                  those of single steps, kept to be evaluated (evaluation.at_steps)
        averages/                 averaged weights during training (training/posthoc_ema.py)
        evaluations/<cell>.json   one evaluated cell each
        solvers/<id>.json         solvers that were trained for such cells
        rungs/<step>.json         one cell, evaluated during training (early_stopping.py)
        samples/<cell>.npz        the first samples of that cell
        diagnostics/              what ``fewstep diagnose`` found, and its figures
        progress.json             where a running run is (for status; may be stale)
        log.txt                   what the process printed
        claim.json                the lease of the attempt that runs it (store/lease.py)
        cancel                    there when somebody asks it to stop
        attempts.jsonl            when, where and how each attempt began and ended
        failure.json              why the last attempt failed, if it did
        stopped.json              who ended it early, and at which step, if somebody did
        result.json               written last: its presence means done

This module imports no torch: ``status``, ``sync`` and the reports read thousands of these.
"""

import contextlib
import difflib
import glob
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fewstep.errors import UserError
from fewstep.experiments.store import json_files
from fewstep.experiments.store.json_files import (
    WRITTEN_AGAIN,
    CorruptFile,
    Json,
    read_json,
    read_record,
)
from fewstep.files import append, patiently

WORK = (
    "request.json", "data.json", "metrics.jsonl", "pairs", "checkpoints", "weights", "averages",
    "evaluations", "solvers", "rungs", "samples", "diagnostics", "progress.json", "log.txt",
    "cancel", "attempts.jsonl", "failure.json", "stopped.json",
)  # fmt: skip
"""What a run that is not done has in its folder beside its spec."""

TEACHERS = ("teacher", "weak_teacher")  # settings of a run that name another
UNWRITTEN = ("disk_full", "io_error")  # failures after which there may be no failure.json
CELL = {"cell", "metric", "value", "nfe"}  # what no record of a cell lacks
FAILURE = {"class", "message", "finished"}
DATA = {"name", "sha256", "train_sha256", "train", "test", "num_classes", "classes"}
CACHE = "_cache"  # below the root of runs: extractors, reference statistics, lists of packages

Status = Literal["done", "failed", "stopped", "running", "new"]


class Entry:
    """A file or folder of a run: as an attribute of a ``RunDirectory``, its path."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: "RunDirectory", kind: object = None) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run, by name. Reading never creates anything."""

    path: Path

    checkpoints = Entry("checkpoints")
    weights = Entry("weights")
    averages = Entry("averages")
    pairs = Entry("pairs")
    samples = Entry("samples")
    solvers = Entry("solvers")
    diagnostics = Entry("diagnostics")
    metrics_file = Entry("metrics.jsonl")
    log = Entry("log.txt")
    lock = Entry("run.lock")
    lease = Entry("claim.json")
    cancel = Entry("cancel")

    @property
    def key(self) -> str:
        return self.path.name

    @property
    def sweep(self) -> str:
        return self.path.parent.name

    @property
    def cache(self) -> Path:
        """What it shares with the other runs below its root."""
        return self.path.parent.parent / CACHE

    def spec(self) -> Json | None:
        return read_record(self.path / "spec.json")

    def request(self) -> Json | None:
        return read_record(self.path / "request.json")

    def data(self) -> Json | None:
        """Which data it is trained on; None before it begins, and for runs of fewstep 0.2."""
        then = "; remove that file, and it is not known which data the run is trained on"
        try:
            record = read_json(file := self.path / "data.json")
        except CorruptFile as error:
            raise CorruptFile(f"{error}{then}") from None
        return _complete(file, record, DATA, then)

    def made_in(self) -> Path:
        """The folder that relative paths in its settings are relative to."""
        spec = self.spec() or {}
        if (folder := spec.get("directory")) is not None and Path(folder).is_dir():
            return Path(folder)
        runs = Path(spec.get("config", {}).get("runs", ""))  # moved, or made by fewstep 0.2
        above = self.path.absolute().parents[1]  # the run root
        if runs.is_absolute() or above.parts[-len(runs.parts) :] != runs.parts:
            return Path.cwd()
        return above.parents[len(runs.parts) - 1]

    def result(self) -> Json | None:
        return _complete(file := self.path / "result.json", read_record(file), {"provenance"})

    def failure(self) -> Json | None:
        """Why the last attempt failed, also where no failure.json could be written."""
        record = read_record(file := self.path / "failure.json")
        return _complete(file, record, FAILURE) or self._unwritten_failure()

    def stopped(self) -> Json | None:
        return read_record(self.path / "stopped.json")

    def progress(self) -> Json | None:
        """The last progress that the process wrote; None without one, or if it cannot be read."""
        try:  # it is of the moment: the next is as good
            progress = json.loads((self.path / "progress.json").read_bytes())
        except (OSError, ValueError):
            return None
        return progress if isinstance(progress, dict) else None

    def status(self) -> Status:
        """``done`` | ``failed`` | ``stopped`` | ``running`` (begun, perhaps interrupted) | ``new``.

        Stopped: ended early by a search algorithm, which is no failure. New is also what has lost
        its spec.json, whatever else is left of it.
        """
        if (self.path / "result.json").is_file():
            return "done"
        if not (self.path / "spec.json").is_file():
            return "new"
        if (self.path / "failure.json").is_file():
            return "failed"
        if (self.path / "stopped.json").is_file():
            return "stopped"
        if self._unwritten_failure() is not None:
            return "failed"
        begun = self.checkpoints.is_dir() or self.pairs.is_dir()
        return "running" if begun or (self.path / "progress.json").is_file() else "new"

    def metrics(self) -> list[Json]:
        """The lines of metrics.jsonl, by step; torn ones are passed over.

        Should two attempts have written for a moment, they wrote the same: one line a step is kept.
        """
        rows = {
            row["step"]: row for row in json_files.read_lines(self.metrics_file) if "step" in row
        }
        return [rows[step] for step in sorted(rows)]

    def record_attempt(self, token: str, **what: Any) -> None:
        """Add a line about the attempt ``token`` to attempts.jsonl."""
        line = {"token": token, "host": os.uname().nodename, "pid": os.getpid(), **what}
        if self.path.is_dir():  # else somebody has removed it
            patiently(lambda: append(self.path / "attempts.jsonl", json.dumps(line) + "\n"))

    def attempts(self) -> list[Json]:
        """What is known of each attempt, oldest first; one that lacks ``ended`` was killed."""
        attempts: dict[str, Json] = {}
        for line in json_files.read_lines(self.path / "attempts.jsonl"):
            if "token" in line:  # else it is not one of ours
                attempts.setdefault(line["token"], {}).update(line)
        return list(attempts.values())

    def _unwritten_failure(self) -> Json | None:
        """Of an attempt whose last line was all that still fitted on a disk."""
        if not (attempts := self.attempts()) or attempts[-1].get("ended") not in UNWRITTEN:
            return None
        if (self.path / "result.json").is_file():
            return None  # it lacks cells, and is done
        last = attempts[-1]
        told = "the failure could not be written"
        return failure_record(self.key, last["ended"], told, last.get("begun", ""))

    def last_step(self) -> int:
        """The step of the newest checkpoint, 0 without one."""
        steps = [p.name.removeprefix("step-") for p in self.checkpoints.glob("step-*")]
        return max((int(step) for step in steps if step.isdigit()), default=0)

    def has_weights(self, step: int) -> bool:
        """Whether those after ``step`` updates were kept to be evaluated."""
        return (self.weights / f"step-{step:08d}").is_dir()

    def first_weights(self) -> Json | None:
        """Of which other run its first weights are; None for random ones, and before it begins."""
        if (result := self.result()) is not None:
            return result.get("initialised")
        states = sorted(self.checkpoints.glob("step-*/state.json"))
        return (read_record(states[-1]) or {}).get("initialised") if states else None

    def saved_work(self) -> dict[str, int]:
        """How much of the run's work outlives an interruption; each number only grows."""
        files = {"pairs": "*.safetensors", "rungs": "*.json", "evaluations": "*.json"}
        pairs, rungs, cells = (len(list((self.path / f).glob(g))) for f, g in files.items())
        return {"step": self.last_step(), "pairs": pairs, "rungs": rungs, "cells": cells}

    def cells(self, damaged: list[CorruptFile] | None = None) -> dict[str, Json]:
        """Evaluated cells by name, in name order; errors of single files go to ``damaged``."""
        folder = os.path.join(self.path, "evaluations")
        try:
            names = sorted(n for n in os.listdir(folder) if n.endswith(".json"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        cells = {}
        for name in names:
            try:
                path = os.path.join(folder, name)
                cell = _complete(path, read_record(path), CELL)
            except CorruptFile as error:
                if damaged is None:
                    raise
                damaged.append(error)
                continue
            if cell is not None:
                cells[name[: -len(".json")]] = cell
        return cells

    def cell_file(self, name: str) -> Path:
        return self.path / "evaluations" / f"{name}.json"

    def rungs(self) -> dict[int, Json]:
        """What was found at each rung, by training step."""
        files = sorted((self.path / "rungs").glob("*.json"))
        records = {int(file.stem): record for file in files if (record := read_json(file))}
        return dict(sorted(records.items()))

    def rung_file(self, step: int) -> Path:
        return self.path / "rungs" / f"{step}.json"

    def diagnosis(self) -> Json | None:
        return read_json(self.diagnostics / "diagnostics.json")

    def write(self, name: str, value: Json) -> None:
        """Write ``<name>.json`` atomically; nothing where somebody has removed the directory."""
        with contextlib.suppress(FileNotFoundError):
            json_files.replace_json(self.path / f"{name}.json", value)

    def write_file(self, file: Path, value: Json) -> None:
        """Write a cell's or rung's ``file``; ``FileNotFoundError`` if the run was removed."""
        file.parent.mkdir(exist_ok=True)
        json_files.replace_json(file, value)

    def remove(self, name: str) -> None:
        """Remove ``<name>.json`` if it is there."""
        (self.path / f"{name}.json").unlink(missing_ok=True)

    def leftovers(self) -> list[Path]:
        """The files and folders of ``WORK`` that are there."""
        return [path for name in WORK if os.path.lexists(path := self.path / name)]

    def clear(self) -> None:
        """Remove them: by name, for who else keeps something here keeps it."""
        for path in self.leftovers():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def was_asked(cell: Json, request: Json) -> bool:
    """Whether a cell's record answers ``request``, one metric as the settings write it."""
    return request in (cell.get("asked"), *cell.get("asked_also", ()))


def _complete(
    file: Path | str, record: Json | None, names: set[str], then: str = WRITTEN_AGAIN
) -> Json | None:
    """``record`` of ``file``; ``CorruptFile`` if it lacks one of ``names``."""
    if record is not None and (lacks := names - record.keys()):
        raise CorruptFile(f"{file} lacks {', '.join(sorted(lacks))}{then}")
    return record


def failure_record(key: str, kind: str, message: str, finished: str, **more: Any) -> Json:
    """What failure.json holds. ``more``: traceback, log_tail (the last lines), step."""
    record = {"key": key, "class": kind, "message": message, "finished": finished}
    return {"traceback": "", "log_tail": [], "step": None, **record, **more}


@dataclass(frozen=True)
class SweepDirectory:
    """``runs/<sweep>/``: sweep.json (the plan's members) and one folder per run."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def report(self) -> Path:
        return self.path / "report"

    def plan(self) -> Json | None:
        """``sweep.json``: ``{name, description, axes, runs: [{key, seed, choices}]}``."""
        plan = read_record(file := self.path / "sweep.json")
        if plan is not None and not isinstance(plan.get("runs"), list):
            raise CorruptFile(f"{file} lists no runs{WRITTEN_AGAIN}")
        return plan

    def runs(self) -> list[RunDirectory]:
        """The members named in sweep.json, in its order; every run folder where there is none."""
        if (plan := self.plan()) is not None:
            return [RunDirectory(self.path / run["key"]) for run in plan["runs"]]
        if not self.path.is_dir():
            return []
        return [RunDirectory(p.parent) for p in sorted(self.path.glob("*/spec.json"))]

    def select(
        self, keys: Sequence[str], among: Sequence[RunDirectory] | None = None
    ) -> list[RunDirectory]:
        """The runs whose keys begin with one of ``keys``; all where none is given.

        ``among``: these of its runs; by default its members. ``UserError`` for an unknown key.
        """
        runs = self.runs() if among is None else among
        for key in keys:
            if not any(run.key.startswith(key) for run in runs):
                near = {run.key[: len(key)]: run.key for run in runs}
                matches = difflib.get_close_matches(key, near, n=1, cutoff=0.5)
                hint = f"; did you mean {near[matches[0]]!r}?" if matches else ""
                raise UserError(f"sweep {self.name} has no run {key!r}{hint}")
        return [run for run in runs if not keys or run.key.startswith(tuple(keys))]


def is_readable(run: RunDirectory) -> bool:
    """Whether what a launcher reads of the run is neither damaged nor out of reach."""
    try:
        run.spec(), run.request(), run.result(), run.failure()
    except (CorruptFile, OSError):
        return False
    return True


def find_sweeps(root: Path) -> list[SweepDirectory]:
    """All sweeps under the run root, by name."""
    if not root.is_dir():
        return []
    folders = sorted({p.parent.parent for p in root.glob("*/*/spec.json")})
    planned = {p.parent for p in root.glob("*/sweep.json")}
    return [SweepDirectory(p) for p in sorted(planned.union(folders))]


def find_run(name: str, root: Path) -> RunDirectory:
    """A run by directory, its key's beginning, or SWEEP/KEY under ``root``; or ``UserError``."""
    path = Path(name)
    if (path / "spec.json").is_file():
        return RunDirectory(path.resolve())
    sweep, _, key = name.rpartition("/")
    if key and "/" not in sweep and root.is_dir():
        within = glob.escape(sweep) or "*"
        matches = sorted(p.parent for p in root.glob(f"{within}/{glob.escape(key)}*/spec.json"))
        if len(matches) == 1:
            return RunDirectory(matches[0].resolve())
        if matches:
            raise UserError(f"run {name!r} is ambiguous (choices: {', '.join(map(str, matches))})")
    raise UserError(
        f"no run {name!r}: neither a run directory, nor the beginning of a key "
        f"under {root.absolute()}/"
    )
