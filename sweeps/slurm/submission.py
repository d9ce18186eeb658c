"""Runs become SLURM jobs: arrays of packs, in chunks, students after their teachers.

::

    runs/<sweep>/_slurm/<token>/
        manifest.json       what each task of the array runs; written before sbatch is called
        *_passed.txt        which of its runs a task has done with (``job.passed_file``)
        *.sh, *_log.out     submitit's script and the jobs' logs

The token is the job's comment. A submitter that dies before it has noted the job's number is made
good by the next command: it finds the job by its comment.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path

from filelock import FileLock
from submitit.core.utils import FailedJobError, FailedSubmissionError

from fewstep.errors import UserError
from fewstep.experiments.provenance import now
from fewstep.experiments.rundir import Json, RunDirectory, SweepDirectory, read_json, write_json
from fewstep.sweeps.launcher import finished, teacher_of
from fewstep.sweeps.resources import Resources
from fewstep.sweeps.slurm import queue
from fewstep.sweeps.slurm.chunks import Chunk, Wanted, chunks
from fewstep.sweeps.slurm.job import Pack, passed_file
from fewstep.sweeps.slurm.script import check_hours, collector, executor, minutes
from fewstep.sweeps.slurm.settings import SlurmSettings

FOLDER = "_slurm"


@dataclass(frozen=True)
class Submission:
    """A chunk that was submitted, as its manifest tells it; ``job`` is None if nobody noted it."""

    folder: Path
    name: str
    job: str | None
    tasks: tuple[tuple[str, ...], ...]
    created: str
    kind: str = "runs"

    @property
    def token(self) -> str:
        return self.folder.name

    def task_of(self, index: int) -> str:
        """The id of a task: an array of one is a plain job."""
        assert self.job is not None
        return self.job if len(self.tasks) == 1 else f"{self.job}_{index}"

    def log(self, index: int) -> Path:
        """Where a task's output is."""
        return self.folder / f"{self.task_of(index)}_0_log.out"

    def passed(self, index: int, job: queue.Job) -> Collection[str]:
        """The runs that a task at work has done with, however they ended."""
        file = passed_file(self.folder, index, job.restarts)
        return file.read_text().split() if not job.waiting and file.exists() else ()


@dataclass(frozen=True)
class Task:
    """Where a run was submitted, and what SLURM says of that.

    ``pending``: whether the job is live, and has not done with the run.
    """

    submission: Submission
    index: int
    job: queue.Job | None
    pending: bool


class Slurm:
    """Submits the runs of one sweep, and knows what was submitted."""

    def __init__(self, sweep: SweepDirectory, settings: SlurmSettings) -> None:
        self.sweep, self.settings = sweep, settings

    @property
    def name(self) -> str:
        """What the sweep's jobs are called."""
        return f"fewstep-{self.sweep.name}"

    def submit(
        self, runs: Sequence[RunDirectory], resources: Mapping[str, Resources]
    ) -> list[Submission]:
        """Submit those of ``runs`` that are pending in no job yet; returns at once.

        Two who submit the same sweep at the same time come here one after the other, and the second
        finds the first one's jobs.

        Raises:
            UserError: SLURM refuses, or does not answer; a time limit with no time to work.
        """
        check_hours(self.settings, [resources[run.key] for run in runs])
        folder = self.sweep.path / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=600):
            number = {key: job.id for key, job in self.queued().items()}
            left = {run.key for run in runs if run.key not in number and not finished(run)}
            wanted = [
                Wanted(run.key, t if (t := teacher_of(run)) in left | set(number) else None,
                       resources[run.key])
                for run in runs if run.key in left
            ]  # fmt: skip
            made: list[Submission] = []
            for chunk in chunks(wanted, self.settings, queue.array_limit()):
                after = None if chunk.teacher is None else f"afterok:{number[chunk.teacher]}"
                done = self._submit(chunk, after)
                made.append(done)
                number |= {
                    key: done.task_of(i) for i, keys in enumerate(done.tasks) for key in keys
                }
            if self.settings.collect:
                self._collect_all([s.job for s in made if s.job is not None], resources)
            return made

    def _submit(self, chunk: Chunk, after: str | None) -> Submission:
        folder = self.sweep.path / FOLDER / uuid.uuid4().hex[:12]
        at_once = chunk.at_once(self.settings)
        limited = replace(self.settings, max_parallel=chunk.max_parallel)
        ex = executor(folder, self.name, limited, chunk.resources, after, at_once, len(chunk.tasks))
        manifest = {
            "name": self.name,
            "kind": "runs",
            "job": None,
            "created": now(),
            "after": after,
            "minutes": minutes(self.settings, chunk.resources),
            "at_a_time": at_once,
            "tasks": [list(keys) for keys in chunk.tasks],
        }
        write_json(folder / "manifest.json", manifest)
        packs = [Pack(str(folder), i) for i in range(len(chunk.tasks))]
        try:
            with queue.ours(), quietly():
                jobs = ex.submit_array(packs) if len(packs) > 1 else [ex.submit(packs[0])]
        except (FailedJobError, FailedSubmissionError) as error:
            reason = _reason(error)
            if re.search("timed out|contact|onnection", reason):  # it may have been taken
                raise UserError(
                    f"SLURM did not answer ({reason}); the same command finds out what it took"
                ) from None
            write_json(folder / "manifest.json", {**manifest, "kind": "refused"})
            raise UserError(f"sbatch refused the sweep's jobs: {reason}") from None
        number = jobs[0].job_id.split("_")[0]
        write_json(folder / "manifest.json", {**manifest, "job": number})
        return _read(folder)

    def _collect_all(self, new: Sequence[str], resources: Mapping[str, Resources]) -> None:
        """A collector for ``new`` jobs, and for older ones whose submitter died before that."""
        known = queue.jobs(self.name, [s.job for s in self.submissions() if s.job is not None])
        live = {id.split("_")[0] for id, job in (known or {}).items() if job.live}
        manifests = [read_json(s.folder / "manifest.json") or {} for s in self.submissions()]
        collectors = [m for m in manifests if m["kind"] == "collect" and m["job"] in live]
        own = os.environ.get("SLURM_JOB_ID")  # a collector that submits is none for what it submits
        covered = {id for m in collectors if m["job"] != own for id in m["of"]}
        runs = {m["job"] for m in manifests if m["kind"] == "runs"}
        if wanted := sorted((set(new) | (live & runs)) - covered):
            self._collect(wanted, resources)

    def _collect(self, jobs: Sequence[str], resources: Mapping[str, Resources]) -> None:
        """A job that syncs and reports when all others have ended, however they ended.

        With what it needs to submit lost runs again: ``launch.json`` may be another's then.
        """
        folder = self.sweep.path / FOLDER / uuid.uuid4().hex[:12]
        ex = collector(folder, self.name, self.settings, f"afterany:{':'.join(jobs)}")
        folder.mkdir(parents=True)
        manifest = {
            "name": self.name,
            "kind": "collect",
            "created": now(),
            "tasks": [[]],
            "settings": asdict(self.settings),
            "resources": {key: asdict(r) for key, r in resources.items()},
        }
        write_json(folder / "manifest.json", {**manifest, "job": None, "of": list(jobs)})
        try:
            with queue.ours(), quietly():
                job = ex._submit_command(ex.command("collect"))
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"sbatch refused the collector: {_reason(error)}") from None
        write_json(folder / "manifest.json", {**manifest, "job": job.job_id, "of": list(jobs)})

    def submissions(self) -> list[Submission]:
        """All there were, oldest first; a job that nobody noted is found by its comment."""
        made = []
        for file in sorted((self.sweep.path / FOLDER).glob("*/manifest.json")):
            manifest = read_json(file) or {}
            if manifest.get("kind") == "refused":
                continue
            if manifest["job"] is None:
                found = queue.by_comment(manifest["name"], file.parent.name)
                if found:
                    manifest["job"] = found[0].id.split("_")[0]
                    write_json(file, manifest)
            made.append(_read(file.parent))
        return sorted(made, key=lambda s: (s.created, int(s.job or 0)))  # seconds are long

    def tasks(self) -> dict[str, Task]:
        """The newest task of each run, but that in which it is pending, if there is one.

        Raises:
            UserError: SLURM does not answer.
        """
        submissions = [s for s in self.submissions() if s.kind == "runs"]
        found = queue.jobs(self.name, [s.job for s in submissions if s.job is not None])
        if found is None:
            raise UserError("SLURM does not answer (squeue)")
        made: dict[str, Task] = {}
        for s in submissions:
            for i, keys in enumerate(s.tasks):
                job = None if s.job is None else found.get(s.task_of(i))
                live = job is not None and job.live
                passed = s.passed(i, job) if job is not None and job.live else ()
                for key in keys:
                    older = made.get(key)
                    if older is None or older.job is None or (job and not older.pending):
                        made[key] = Task(s, i, job, live and key not in passed)
        return made

    def never_began(self, run: RunDirectory) -> int:
        """How many jobs the run had since the last one in which it began."""
        began = {(attempt.get("job") or {}).get("id") for attempt in run.attempts()}
        noted = [s for s in self.submissions() if s.job is not None]
        jobs = [s.task_of(i) for s in noted for i, keys in enumerate(s.tasks) if run.key in keys]
        return len(list(takewhile(lambda job: job not in began, reversed(jobs))))

    def queued(self) -> dict[str, queue.Job]:
        """The runs that are pending in a live job, with that job."""
        return {key: t.job for key, t in self.tasks().items() if t.job and t.pending}


def _read(folder: Path) -> Submission:
    m: Json = read_json(folder / "manifest.json") or {}
    tasks = tuple(tuple(keys) for keys in m["tasks"])
    return Submission(folder, m["name"], m["job"], tasks, m["created"], m["kind"])


def quietly() -> contextlib.redirect_stderr[io.StringIO]:
    """submitit prints what sbatch says on stderr, and the error that it raises says it again."""
    return contextlib.redirect_stderr(io.StringIO())


def _reason(error: Exception) -> str:
    """sbatch's last error, without its name, in one line."""
    lines = [line for line in str(error).splitlines() if "error:" in line.lower()]
    told = " ".join((lines[-1] if lines else str(error)).split())
    return re.sub(r"^(sbatch: )?(error: )?", "", told)


def scripts(
    sweep: SweepDirectory, made: Sequence[Chunk], settings: SlurmSettings
) -> list[tuple[Chunk, str]]:
    """The sbatch script of each chunk, to be read; nothing is written."""
    told = []
    for chunk in made:
        folder = sweep.path.absolute() / FOLDER / "TOKEN"
        after = None if chunk.teacher is None else f"afterok:JOB_OF_{chunk.teacher}"
        at_once, name = chunk.at_once(settings), f"fewstep-{sweep.name}"
        limited = replace(settings, max_parallel=chunk.max_parallel)
        ex = executor(folder, name, limited, chunk.resources, after, at_once, len(chunk.tasks))
        told.append((chunk, ex.script(len(chunk.tasks))))
    return told


def last_script(sweep: SweepDirectory, settings: SlurmSettings) -> str:
    """The sbatch script of the collector, to be read."""
    folder = sweep.path.absolute() / FOLDER / "TOKEN"
    ex = collector(folder, f"fewstep-{sweep.name}", settings, "afterany:ALL_JOBS")
    return ex.script(1, "collect")
