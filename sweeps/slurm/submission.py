"""Runs become SLURM jobs: arrays of packs, in chunks, students after their teachers.

::

    runs/<sweep>/_slurm/<token>/
        manifest.json       what each task of the array runs; written before sbatch is called
        *.sh, *_log.out     submitit's script and the jobs' logs

The token is the job's comment. A submitter that dies before it has noted the job's number is made
good by the next command: it finds the job by its comment.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import submitit
from filelock import FileLock
from submitit.core.utils import FailedJobError, FailedSubmissionError

from fewstep.errors import UserError
from fewstep.experiments.provenance import now
from fewstep.experiments.rundir import Json, RunDirectory, SweepDirectory, read_json, write_json
from fewstep.sweeps.launcher import finished, teacher_of
from fewstep.sweeps.resources import Resources
from fewstep.sweeps.slurm import queue
from fewstep.sweeps.slurm.chunks import Chunk, Wanted, chunks
from fewstep.sweeps.slurm.job import FOR_EVER, Pack
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


class Executor(submitit.SlurmExecutor):
    """submitit's, but the nodes start ``fewstep.sweeps.slurm.job``, which needs no pickle."""

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} -u -P -m fewstep.sweeps.slurm.job {shlex.quote(str(self.folder))}"

    def script(self, tasks: int) -> str:
        """The sbatch script of an array of ``tasks``."""
        if tasks > 1:
            self.parameters["map_count"] = tasks
        text = self._make_submission_file_text(self._submitit_command_str, "0")
        self.parameters.pop("map_count", None)
        return text


def executor(
    folder: Path,
    name: str,
    settings: SlurmSettings,
    resources: Resources,
    dependency: str | None = None,
    at_once: int = 1,
) -> Executor:
    """What submits a chunk from ``folder`` (which need not be there yet).

    ``resources`` are a run's; a job asks for those of ``at_once`` runs.

    Raises:
        UserError: no SLURM on this machine.
    """
    python = settings.python or shlex.quote(sys.executable)
    try:
        made = Executor(folder, max_num_timeout=FOR_EVER, python=python)
    except RuntimeError:
        raise UserError(
            "no SLURM on this machine (srun is not there): submit from a login node"
        ) from None
    options = {str(k).replace("_", "-"): v for k, v in settings.options.items()}
    options["requeue"] = True
    if resources.memory_gb is not None:  # SLURM counts in 2^20 bytes
        options.setdefault("mem", f"{math.ceil(at_once * resources.memory_gb * 1e9 / 2**20)}M")
    if dependency is not None:
        options["kill-on-invalid-dep"] = "yes"
    wanted: dict[str, Any] = {
        "job_name": name,
        "comment": folder.name,
        "time": minutes(settings, resources),
        "signal_delay_s": settings.save_seconds,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.processes_per_node,
        "cpus_per_task": max(1, math.ceil(at_once * resources.cpus / resources.processes_per_node)),
        "stderr_to_stdout": True,
        "array_parallelism": settings.max_parallel or 10**6,
        "additional_parameters": options,
        "wckey": None,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "gres": settings.gres,
        "setup": list(settings.setup) or None,
        # several processes are one run: one that dies ends the others
        "srun_args": [
            *(["--kill-on-bad-exit=1"] if resources.processes > 1 else []),
            *settings.srun,
        ]
        or None,
        "dependency": dependency,
    }
    if resources.gpus and settings.gres is None:
        wanted["gpus_per_node"] = math.ceil(at_once * resources.gpus)
    made.parameters.update({k: v for k, v in wanted.items() if v is not None or k == "wckey"})
    return made


@contextlib.contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Without what SLURM tells a job in its environment, which sbatch would hand on.

    Who submits may be in a job himself: a collector, or a person on an interactive node.
    """
    told = {k: v for k, v in os.environ.items() if k.startswith(("SLURM_", "SUBMITIT_"))}
    told.pop("SLURM_CONF", None)
    for name in told:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(told)


def minutes(settings: SlurmSettings, resources: Resources) -> int:
    """The time limit of a job."""
    return math.ceil(60 * (settings.hours if resources.hours is None else resources.hours))


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
        """Submit those of ``runs`` that are in no job yet; returns at once.

        Two who submit the same sweep at the same time come here one after the other, and the second
        finds the first one's jobs.

        Raises:
            UserError: SLURM refuses, or does not answer.
        """
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
        ex = executor(folder, self.name, self.settings, chunk.resources, after, at_once)
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
            with outside_of_jobs():
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
        small = Resources(cpus=1, hours=1.0)
        settings = self.settings
        ex = executor(folder, self.name, settings, small, f"afterany:{':'.join(jobs)}")
        folder.mkdir(parents=True)
        command = f"{ex.python} -u -P -m fewstep.sweeps.slurm.collect {shlex.quote(str(folder))}"
        manifest = {
            "name": self.name,
            "kind": "collect",
            "created": now(),
            "tasks": [[]],
            "settings": asdict(settings),
            "resources": {key: asdict(r) for key, r in resources.items()},
        }
        write_json(folder / "manifest.json", {**manifest, "job": None, "of": list(jobs)})
        try:
            with outside_of_jobs():
                job = ex._submit_command(command)
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
        return sorted(made, key=lambda s: s.created)

    def jobs(self) -> dict[str, tuple[Submission, int, queue.Job | None]]:
        """The newest task of each run: its submission, its index, and what SLURM says of it.

        Raises:
            UserError: SLURM does not answer.
        """
        submissions = [s for s in self.submissions() if s.kind == "runs"]
        found = queue.jobs(self.name, [s.job for s in submissions if s.job is not None])
        if found is None:
            raise UserError("SLURM does not answer (squeue)")
        made: dict[str, tuple[Submission, int, queue.Job | None]] = {}
        for s in submissions:
            for i, keys in enumerate(s.tasks):
                job = None if s.job is None else found.get(s.task_of(i))
                for key in keys:
                    before = made.get(key)
                    older = None if before is None else before[2]
                    if older is None or (job is not None and not older.live):
                        made[key] = (s, i, job)
        return made

    def never_began(self, run: RunDirectory) -> int:
        """How many jobs the run had in which it did not begin."""
        jobs = sum(run.key in keys for s in self.submissions() for keys in s.tasks)
        return jobs - len({(a.get("job") or {}).get("id") for a in run.attempts()})

    def queued(self) -> dict[str, queue.Job]:
        """The runs that are in a live job, with that job."""
        return {key: job for key, (_, _, job) in self.jobs().items() if job and job.live}


def _read(folder: Path) -> Submission:
    m: Json = read_json(folder / "manifest.json") or {}
    tasks = tuple(tuple(keys) for keys in m["tasks"])
    return Submission(folder, m["name"], m["job"], tasks, m["created"], m["kind"])


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if "error:" in line.lower()]
    return " ".join((lines[-1] if lines else str(error)).split())


def scripts(
    sweep: SweepDirectory, made: Sequence[Chunk], settings: SlurmSettings
) -> list[tuple[Chunk, str]]:
    """The sbatch script of each chunk, to be read; nothing is written."""
    told = []
    for chunk in made:
        folder = sweep.path.absolute() / FOLDER / "TOKEN"
        after = None if chunk.teacher is None else f"afterok:JOB_OF_{chunk.teacher}"
        at_once, name = chunk.at_once(settings), f"fewstep-{sweep.name}"
        ex = executor(folder, name, settings, chunk.resources, after, at_once)
        told.append((chunk, ex.script(len(chunk.tasks))))
    return told
