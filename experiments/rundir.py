"""The run directory: the only thing that travels up from a run, and the truth about it.

::

    runs/<sweep>/<key>/
        spec.json                 the whole resolved configuration, written once
        request.json              what was asked last of what may change: cells, device, logging
        metrics.jsonl             one line per logged step
        pairs/                    noise and what the teacher makes of it, where they are trained on
        checkpoints/              the last two checkpoints
        evaluations/<cell>.json   one evaluated cell each
        rungs/<step>.json         one cell, looked at while it trained (experiments/rungs.py)
        samples/<cell>.npz        the first samples of that cell
        diagnostics/              what ``fewstep diagnose`` found, and its figures
        progress.json             where a running run is (for status; may be stale)
        log.txt                   what the process printed
        claim.json                the attempt at work on it (experiments/claim.py)
        cancel                    there when somebody asks it to stop
        attempts.jsonl            when, where and how each attempt began and ended
        failure.json              why the last attempt failed, if it did
        stopped.json              who ended it early, and at which step, if somebody did
        result.json               written last: its presence means done

This module imports no torch: ``status``, ``sync`` and the reports read thousands of these.
"""

from __future__ import annotations

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
from fewstep.files import replacing

WORK = (
    "request.json", "metrics.jsonl", "pairs", "checkpoints", "evaluations", "rungs", "samples",
    "diagnostics", "progress.json", "log.txt", "cancel", "attempts.jsonl", "failure.json",
    "stopped.json",
)  # fmt: skip
"""What a run that is not done has in its folder beside its spec."""

CACHE = "_cache"  # below the root of runs: extractors, reference statistics, lists of packages

Json = dict[str, Any]
Status = Literal["done", "failed", "stopped", "running", "new"]


class Unreadable(UserError):
    """A file of a run or a sweep that is not what was written: a disk's fault, or an editor's.

    It was written atomically: no kill makes it so.
    """


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path`` atomically, in a folder that is made where it is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_json(path, value)


def replace_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path`` atomically (temporary name, fsync, rename)."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=True) + "\n"
    with replacing(path) as other, other.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path | str) -> Json | None:
    """The JSON object in ``path``; None where there is no such file.

    Raises:
        Unreadable: the file is there but is not a JSON object.
    """
    try:
        with open(path, "rb", buffering=0) as file:  # half the time of read_text, 100,000 times
            content = file.readall()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        value = json.loads(content.decode("utf-8"))
    except ValueError as error:  # no JSON, or no text at all
        raise Unreadable(f"{path} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise Unreadable(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def read_record(path: Path | str) -> Json | None:
    """As ``read_json``, of what a launch makes again: the error says how to go on."""
    try:
        return read_json(path)
    except Unreadable as error:
        anew = ", and the run anew unless it is done" if str(path).endswith("spec.json") else ""
        raise Unreadable(
            f"{error}; remove that file, and launching the sweep makes it again{anew}"
        ) from None


def read_lines(path: Path) -> list[Json]:
    """The JSON objects in the lines of ``path``; what a kill has torn is passed over."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run, by name. Reading never creates anything."""

    path: Path

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

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def pairs(self) -> Path:
        return self.path / "pairs"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def diagnostics(self) -> Path:
        return self.path / "diagnostics"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def lock(self) -> Path:
        return self.path / "run.lock"

    @property
    def claim(self) -> Path:
        return self.path / "claim.json"

    @property
    def cancel(self) -> Path:
        return self.path / "cancel"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def spec(self) -> Json | None:
        return read_record(self.path / "spec.json")

    def request(self) -> Json | None:
        return read_record(self.path / "request.json")

    def result(self) -> Json | None:
        return read_record(self.path / "result.json")

    def failure(self) -> Json | None:
        return read_record(self.path / "failure.json")

    def stopped(self) -> Json | None:
        return read_record(self.path / "stopped.json")

    def progress(self) -> Json | None:
        """What the process told last; None where it has not, or nobody can read it."""
        with contextlib.suppress(Unreadable):  # it is of the moment: the next is as good
            return read_json(self.path / "progress.json")
        return None

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
        begun = (
            self.checkpoints.is_dir()
            or self.pairs.is_dir()
            or (self.path / "progress.json").is_file()
        )
        return "running" if begun else "new"

    def metrics(self) -> list[Json]:
        """The lines of metrics.jsonl, by step; torn ones are passed over.

        Should two attempts have written for a moment, they wrote the same: one line a step is kept.
        """
        rows = {row["step"]: row for row in read_lines(self.metrics_file) if "step" in row}
        return [rows[step] for step in sorted(rows)]

    def note(self, token: str, **what: Any) -> None:
        """Add a line about the attempt ``token`` to attempts.jsonl."""
        line = {"token": token, "host": os.uname().nodename, "pid": os.getpid(), **what}
        if not self.path.is_dir():
            return  # somebody has removed it
        with (self.path / "attempts.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def attempts(self) -> list[Json]:
        """What is known of each attempt, oldest first; one that lacks ``ended`` was killed."""
        found: dict[str, Json] = {}
        for line in read_lines(self.path / "attempts.jsonl"):
            if "token" in line:  # else it is not one of ours
                found.setdefault(line["token"], {}).update(line)
        return list(found.values())

    def last_step(self) -> int:
        """The step of the newest checkpoint, 0 without one."""
        steps = [p.name.removeprefix("step-") for p in self.checkpoints.glob("step-*")]
        return max((int(step) for step in steps if step.isdigit()), default=0)

    def kept(self) -> dict[str, int]:
        """How much of the run's work outlives an interruption; each number only grows."""
        return {
            "step": self.last_step(),
            "pairs": sum(1 for _ in self.pairs.glob("*.safetensors")),
            "rungs": sum(1 for _ in (self.path / "rungs").glob("*.json")),
            "cells": sum(1 for _ in (self.path / "evaluations").glob("*.json")),
        }

    def cells(self) -> dict[str, Json]:
        """Evaluated cells by name, in name order."""
        folder = os.path.join(self.path, "evaluations")
        try:
            names = sorted(n for n in os.listdir(folder) if n.endswith(".json"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = ((name, read_record(os.path.join(folder, name))) for name in names)
        return {name[: -len(".json")]: cell for name, cell in found if cell is not None}

    def cell_file(self, name: str) -> Path:
        return self.path / "evaluations" / f"{name}.json"

    def rungs(self) -> dict[int, Json]:
        """What was found at each rung, by training step."""
        files = sorted((self.path / "rungs").glob("*.json"))
        found = {int(file.stem): record for file in files if (record := read_json(file))}
        return dict(sorted(found.items()))

    def rung_file(self, step: int) -> Path:
        return self.path / "rungs" / f"{step}.json"

    def diagnosed(self) -> Json | None:
        """``diagnostics/diagnostics.json``."""
        return read_json(self.diagnostics / "diagnostics.json")

    def write(self, name: str, value: Json) -> None:
        """Write ``<name>.json`` atomically; nothing where somebody has removed the directory."""
        with contextlib.suppress(FileNotFoundError):
            replace_json(self.path / f"{name}.json", value)

    def write_within(self, file: Path, value: Json) -> None:
        """Write a cell's or rung's ``file``; the folder it is in is made, but not the run's own.

        Raises:
            FileNotFoundError: somebody has removed the run.
        """
        file.parent.mkdir(exist_ok=True)
        replace_json(file, value)

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
        return read_record(self.path / "sweep.json")

    def runs(self) -> list[RunDirectory]:
        """The members named in sweep.json, in its order; every run folder where there is none."""
        plan = self.plan()
        if plan is not None:
            return [RunDirectory(self.path / run["key"]) for run in plan["runs"]]
        if not self.path.is_dir():
            return []
        return [RunDirectory(p.parent) for p in sorted(self.path.glob("*/spec.json"))]

    def chosen(
        self, keys: Sequence[str], among: Sequence[RunDirectory] | None = None
    ) -> list[RunDirectory]:
        """The runs whose keys begin with one of ``keys``; all where none is given.

        ``among``: these of its runs; by default its members.

        Raises:
            UserError: no run has such a key.
        """
        runs = self.runs() if among is None else among
        for key in keys:
            if not any(run.key.startswith(key) for run in runs):
                near = {run.key[: len(key)]: run.key for run in runs}
                found = difflib.get_close_matches(key, near, n=1, cutoff=0.5)
                hint = f"; did you mean {near[found[0]]!r}?" if found else ""
                raise UserError(f"sweep {self.name} has no run {key!r}{hint}")
        return [run for run in runs if not keys or run.key.startswith(tuple(keys))]


def find_sweeps(root: Path) -> list[SweepDirectory]:
    """All sweeps under the run root, by name."""
    if not root.is_dir():
        return []
    folders = sorted({p.parent.parent for p in root.glob("*/*/spec.json")})
    planned = {p.parent for p in root.glob("*/sweep.json")}
    return [SweepDirectory(p) for p in sorted(planned.union(folders))]


def find_run(name: str, root: Path) -> RunDirectory:
    """A run by its directory, or by the beginning of its key, or SWEEP/KEY, under ``root``.

    Raises:
        UserError: none, or several.
    """
    path = Path(name)
    if (path / "spec.json").is_file():
        return RunDirectory(path.resolve())
    sweep, _, key = name.rpartition("/")
    if key and "/" not in sweep and root.is_dir():
        within = glob.escape(sweep) or "*"
        found = sorted(p.parent for p in root.glob(f"{within}/{glob.escape(key)}*/spec.json"))
        if len(found) == 1:
            return RunDirectory(found[0].resolve())
        if found:
            told = ", ".join(str(p) for p in found)
            raise UserError(f"run {name!r} is ambiguous (choices: {told})")
    raise UserError(
        f"no run {name!r}: neither a run directory, nor the beginning of a key under {root}/"
    )
