"""Runs become SLURM jobs: arrays of tasks, in chunks, students after their teachers.

::

    runs/<sweep>/_slurm/<token>/
        manifest.json       what each task of the array runs; written before sbatch is called
        *_passed.txt        the runs that a task has finished with (``array_task.passed_file``)
        *.sh, *_log.out     submitit's script and the jobs' logs

The token is the job's comment. If a submitter dies before it has written the job's number, the next
command finds the job by its comment.
"""

import contextlib
import io
import logging
import os
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from filelock import Timeout
from submitit.core.utils import FailedJobError, FailedSubmissionError

from fewstep.errors import UserError, counted
from fewstep.experiments.store.json_files import CorruptFile, Json, read_json, write_json
from fewstep.experiments.store.provenance import now
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.files import locked
from fewstep.sweeps.definition.resources import Resources
from fewstep.sweeps.launcher import is_complete, teacher_of
from fewstep.sweeps.slurm import squeue as queue
from fewstep.sweeps.slurm.array_task import ArrayTask, passed_file
from fewstep.sweeps.slurm.arrays import Chunk, RunToSubmit, chunks
from fewstep.sweeps.slurm.sbatch import executor, finalizer
from fewstep.sweeps.slurm.settings import SlurmSettings

FOLDER = "_slurm"
LOCK_SECONDS = 600.0
LIMIT = re.compile(  # what sbatch says of one; of MaxJobCount after two minutes, the last
    "SubmitJob|submit limit|QOS policy|temporarily unavailable", re.IGNORECASE
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submission:
    """A submitted chunk, or a finalizer (``kind`` collect), from its manifest.

    ``job``: None if its number was never recorded. ``of``: the jobs that a finalizer waits for.
    ``cluster``: where it was submitted; numbers of jobs mean nothing on another.
    """

    folder: Path
    job: str | None
    tasks: tuple[tuple[str, ...], ...]
    created: str
    kind: str
    of: tuple[str, ...] = ()
    cluster: str = ""

    def task_of(self, index: int) -> str:
        """The id of a task; an array of one task is a plain job."""
        assert self.job is not None
        return self.job if len(self.tasks) == 1 else f"{self.job}_{index}"

    def log(self, index: int) -> Path:
        return self.folder / f"{self.task_of(index)}_0_log.out"

    def passed(self, index: int, job: queue.Job) -> Collection[str]:
        """The runs that a running task has finished with, however they ended."""
        file = passed_file(self.folder, index, job.restarts)
        return file.read_text().split() if not job.waiting and file.exists() else ()


@dataclass(frozen=True)
class Task:
    """The job of a run. ``pending``: whether it is live, and has not finished with the run."""

    submission: Submission
    index: int
    job: queue.Job | None
    pending: bool


class NoRoom(UserError):
    """A limit of submitted jobs is reached now, and will not be when others have ended."""


class Submitted(list[Submission]):
    """What a launch has submitted.

    ``refused``: why SLURM took no more; ``waiting``: those runs; ``finalized``: whether a finalizer
    follows; ``limit``: of submitted jobs, where accounting has one.
    """

    refused: str = ""
    waiting: tuple[str, ...] = ()
    finalized: bool = False
    limit: int | None = None


class Slurm:
    """The SLURM jobs of one sweep: submits them, and reads which there are."""

    def __init__(self, sweep: SweepDirectory, settings: SlurmSettings | None = None) -> None:
        self.sweep, self.settings = sweep, settings or SlurmSettings()
        self.name = f"fewstep-{sweep.name}"  # of the jobs

    def submit(
        self,
        runs: Sequence[RunDirectory],
        resources: Mapping[str, Resources],
        patient: bool = False,
    ) -> Submitted:
        """Submit the ``runs`` that are pending in no job; returns at once.

        Two processes that submit the same sweep take a lock, and the second finds the jobs of the
        first. A UserError if SLURM refuses all, or a time limit leaves no time to train. Where it
        takes some only, the finalizer submits the others when the first have ended. ``patient``:
        ``NoRoom`` where there is no room for a run and a finalizer now, but will be.
        """
        self.settings.check_hours(resources[run.key] for run in runs)
        folder = self.sweep.path / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked(folder / ".lock"):
            number = {key: job.id for key, job in self.queued().items()}
            missing = {run.key for run in runs if run.key not in number and not is_complete(run)}
            to_submit = [
                RunToSubmit(run.key, t if (t := teacher_of(run)) in missing | set(number) else None,
                       resources[run.key])
                for run in runs if run.key in missing
            ]  # fmt: skip
            done = Submitted()
            room = self._room(patient, done) if to_submit else None
            with self._partly(done):
                for chunk in chunks(to_submit, self.settings, queue.array_limit()):
                    self._submit_some(chunk, number, done, room)
            done.waiting = tuple(r.key for r in to_submit if r.key not in number)
            if self.settings.finalize:
                with self._partly(done):
                    jobs = [str(s.job) for s in done]
                    self._submit_finalizer(jobs, resources, done.waiting)
                    done.finalized = True
            return done

    @contextlib.contextmanager
    def _locked(self, file: Path) -> Iterator[None]:
        """Held while runs are submitted: whoever submits the sweep as well, sees them then."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(file, LOCK_SECONDS))
            except Timeout:
                raise UserError(
                    f"another process submits {self.sweep.name}: {file} stayed locked for "
                    f"{LOCK_SECONDS / 60:g} minutes"
                ) from None
            yield

    def _room(self, patient: bool, done: Submitted) -> int | None:
        """For how many tasks there is room beside the finalizer, which is a job, too."""
        room = queue.submit_room(self.settings.account, self.settings.qos)
        if room is None:
            return None
        done.limit = room.limit
        own = 1 if patient else 0  # a finalizer that submits is a job itself
        free = room.free - self.settings.finalize
        if free < 1 and patient and room.limit > own + self.settings.finalize:
            raise NoRoom(f"{room.limit} jobs may be submitted, and there is room for {room.free}")
        if room.free < 1:
            log.warning("the limit of %d jobs is reached: sbatch may wait", room.limit)
        return max(1, free)

    @contextlib.contextmanager
    def _partly(self, done: Submitted) -> Iterator[None]:
        """A refusal is no error where something has been submitted before."""
        try:
            yield
        except UserError as error:
            if not done:
                raise
            done.refused = done.refused or str(error)

    def _submit_some(
        self, chunk: Chunk, number: dict[str, str], done: Submitted, room: int | None
    ) -> None:
        """Submit the tasks of a chunk for which there is ``room``; ``number``: jobs by run."""
        if chunk.teacher is not None and chunk.teacher not in number:
            return  # it waits itself
        if room is not None:
            tasks = chunk.tasks[: max(0, room - sum(len(s.tasks) for s in done))]
            if len(tasks) < len(chunk.tasks):
                done.refused = (
                    done.refused or "a limit of jobs: MaxSubmitJobs, GrpSubmitJobs or MaxJobCount"
                )
            chunk = replace(chunk, tasks=tasks)
        if not chunk.tasks:
            return
        after = None if chunk.teacher is None else f"afterok:{number[chunk.teacher]}"
        while True:
            try:
                done.append(new := self._submit(chunk, after))
                break
            except UserError as error:
                if not LIMIT.search(str(error)) or len(chunk.tasks) == 1:
                    raise
                done.refused = done.refused or str(error)  # of a limit that we cannot ask for
                half = len(chunk.tasks) // 2
                log.warning("%s; trying %s of %d", error, counted(half, "task"), len(chunk.tasks))
                chunk = replace(chunk, tasks=chunk.tasks[:half])
        for i, keys in enumerate(new.tasks):
            number |= dict.fromkeys(keys, new.task_of(i))

    def scripts(self, arrays: Sequence[Chunk]) -> list[tuple[Chunk, str]]:
        """The sbatch script of each chunk, to be shown; nothing is written."""
        folder, pairs = self.sweep.path.absolute() / FOLDER / "TOKEN", []
        for chunk in arrays:
            after = None if chunk.teacher is None else f"afterok:JOB_OF_{chunk.teacher}"
            ex = executor(folder, self.name, self.settings, chunk, after)
            pairs.append((chunk, ex.script(len(chunk.tasks))))
        return pairs

    def finalizer_script(self) -> str:
        """The sbatch script of the finalizer, to be shown."""
        folder = self.sweep.path.absolute() / FOLDER / "TOKEN"
        ex = finalizer(folder, self.name, self.settings, "afterany:ALL_JOBS")
        return ex.script(module="finalize")

    def _submit(self, chunk: Chunk, after: str | None) -> Submission:
        folder = self.sweep.path / FOLDER / uuid.uuid4().hex[:12]
        ex = executor(folder, self.name, self.settings, chunk, after)
        tasks = [ArrayTask(str(folder), i) for i in range(len(chunk.tasks))]
        manifest = {
            "kind": "runs",
            "after": after,
            "minutes": self.settings.minutes(chunk.resources),
            "at_a_time": chunk.at_once(self.settings),
            "tasks": chunk.tasks,
        }

        def submit() -> Any:
            return ex.submit_array(tasks)[0] if len(tasks) > 1 else ex.submit(tasks[0])

        return self._sbatch(folder, manifest, submit, "the sweep's jobs")

    def _submit_finalizer(
        self, new: Sequence[str], resources: Mapping[str, Resources], waiting: Sequence[str]
    ) -> None:
        """Submit a job that syncs and reports when the others have ended, whatever their state.

        The others are ``new`` jobs, and older ones whose submitter died before this. Its manifest
        has the settings to submit lost runs again: ``launch.json`` may have changed.
        """
        known = self.submissions()
        jobs = queue.jobs(self.name, [s.job for s in known if s.job is not None]) or {}
        live = {id.split("_")[0] for id, job in jobs.items() if job.live}
        own = os.environ.get("SLURM_JOB_ID")  # a finalizer that submits jobs does not wait for them
        covered = {id for s in known if s.job in live - {own} for id in s.of}
        runs = {s.job for s in known if s.kind == "runs" and s.job in live}
        if not (others := sorted(({*new} | {str(job) for job in runs}) - covered)):
            return
        folder = self.sweep.path / FOLDER / uuid.uuid4().hex[:12]
        ex = finalizer(folder, self.name, self.settings, f"afterany:{':'.join(others)}")
        manifest = {
            "kind": "collect",
            "tasks": [[]],
            "of": others,
            "waiting": list(waiting),
            "settings": asdict(self.settings),
            "resources": {key: asdict(r) for key, r in resources.items()},
        }
        command = ex.command("finalize")
        self._sbatch(folder, manifest, lambda: ex._submit_command(command), "the finalizer")

    def _sbatch(
        self, folder: Path, manifest: Json, submit: Callable[[], Any], what: str
    ) -> Submission:
        """Have ``submit`` call sbatch; the manifest gets the job's number when it has one."""
        file = folder / "manifest.json"
        place = {"cluster": queue.cluster(), "job": None}
        manifest = {"name": self.name, "created": now(), **place, **manifest}
        write_json(file, manifest)
        try:  # submitit prints on stderr what its error repeats
            with queue.clean_environment(), contextlib.redirect_stderr(io.StringIO()):
                number = submit().job_id.split("_")[0]
        except (FailedJobError, FailedSubmissionError) as error:
            reason = _reason(error)
            if re.search("timed out|contact|onnection", reason):  # it may have accepted them
                raise UserError(
                    f"SLURM did not answer ({reason}); "
                    f"the same command finds the jobs that it accepted"
                ) from None
            write_json(file, {**manifest, "kind": "refused"})
            raise UserError(f"sbatch refused {what}: {reason}") from None
        write_json(file, {**manifest, "job": number})
        return _read(folder, {**manifest, "job": number})

    def submissions(self) -> list[Submission]:
        """All submissions to this cluster, oldest first; an unrecorded job is found by its comment.

        Those to another that shares the run root are left out, with a warning.
        """
        here = ""
        with contextlib.suppress(UserError):  # no cluster here: all are shown
            here = queue.cluster()
        return self._submissions(here)

    def _submissions(self, here: str) -> list[Submission]:
        submissions, elsewhere = [], dict[str, int]()
        for file in sorted((self.sweep.path / FOLDER).glob("*/manifest.json")):
            manifest = _manifest(file)
            if manifest["kind"] == "refused":
                continue
            there = manifest.get("cluster") or here
            if here and there != here:
                elsewhere[there] = elsewhere.get(there, 0) + 1
                continue
            if manifest["job"] is None:
                for job in queue.by_name(manifest["name"]):
                    if job.comment == file.parent.name:
                        manifest["job"] = job.id.split("_")[0]
                        write_json(file, manifest)
                        break
            submissions.append(_read(file.parent, manifest))
        for there, count in elsewhere.items():
            _warn(
                f"{counted(count, 'submission')} of {self.sweep.name} to the cluster {there} cannot"
                f" be seen from {here}: runs that still wait there may be submitted here again"
            )
        # created: whole seconds
        return sorted(submissions, key=lambda s: (s.created, int(s.job or 0)))

    def tasks(self) -> dict[str, Task]:
        """The task of each run in which it is pending; else its newest task."""
        submissions = [s for s in self._submissions(queue.cluster()) if s.kind == "runs"]
        jobs = queue.jobs(self.name, [s.job for s in submissions if s.job is not None])
        if jobs is None:
            raise UserError("SLURM does not answer (squeue)")
        tasks: dict[str, Task] = {}
        for s in submissions:
            for i, keys in enumerate(s.tasks):
                job = None if s.job is None else jobs.get(s.task_of(i))
                if job is not None and job.comment not in ("", s.folder.name):
                    job = None  # another submission's, of a cluster that counts as this one does
                live = job is not None and job.live
                passed = s.passed(i, job) if job is not None and job.live else ()
                for key in keys:
                    older = tasks.get(key)
                    if older is None or older.job is None or (job and not older.pending):
                        tasks[key] = Task(s, i, job, live and key not in passed)
        return tasks

    def never_began(self, run: RunDirectory) -> int:
        """How many jobs the run had since the last one in which it began."""
        began = {(attempt.get("job") or {}).get("id") for attempt in run.attempts()}
        submitted = [s for s in self.submissions() if s.job is not None]
        jobs = [
            s.task_of(i) for s in submitted for i, keys in enumerate(s.tasks) if run.key in keys
        ]
        return len(list(takewhile(lambda job: job not in began, reversed(jobs))))

    def queued(self) -> dict[str, queue.Job]:
        return {key: t.job for key, t in self.tasks().items() if t.job and t.pending}


def _read(folder: Path, m: Json) -> Submission:
    tasks = tuple(tuple(keys) for keys in m["tasks"])
    others = tuple(m.get("of", ()))
    where = m.get("cluster", "")
    return Submission(folder, m["job"], tasks, m["created"], m["kind"], others, where)


def _manifest(file: Path) -> Json:
    then = f"unless squeue shows a job with the comment {file.parent.name}, remove that folder"
    try:
        manifest = read_json(file) or {}
    except CorruptFile as error:
        raise CorruptFile(f"{error}; {then}") from None
    if lacks := {"kind", "job", "tasks", "created", "name"} - manifest.keys():
        raise CorruptFile(f"{file} lacks {', '.join(sorted(lacks))}; {then}")
    return manifest


@cache
def _warn(message: str) -> None:
    """Once per process: a command reads the submissions several times."""
    log.warning("%s", message)


def _reason(error: Exception) -> str:
    """sbatch's last error, without its name, in one line."""
    lines = [line for line in str(error).splitlines() if "error:" in line.lower()]
    reason = " ".join((lines[-1] if lines else str(error)).split())
    return re.sub(r"^(sbatch: )?(error: )?", "", reason)
