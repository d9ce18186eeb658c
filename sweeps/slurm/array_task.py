"""On a node: ``python -m fewstep.sweeps.slurm.array_task FOLDER``, one task of an array of jobs.

The runs of the task are in the submission's manifest, written before sbatch was called, and not in
submitit's pickle: a submitter that dies in between leaves a job that works. The rest is submitit's:
it receives the signal (USR2) before the time limit or at preemption, calls ``checkpoint``, and
requeues the job, which starts here again.
"""

import contextlib
import getpass
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.core.submission import process_job
from submitit.core.utils import DelayedSubmission

from fewstep.errors import counted
from fewstep.experiments import worker
from fewstep.experiments.store import failures
from fewstep.experiments.store.json_files import Json, read_json
from fewstep.experiments.store.lease import JOB, SUPERSEDED_TOKEN, Attempt, live_lease
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.files import append, io_error_class, replacing
from fewstep.sweeps.cpu_threads import cores, limits, threads
from fewstep.sweeps.launcher import Event
from fewstep.sweeps.local.fork_client import ignore_usr2
from fewstep.sweeps.local.worker_pool import GRACE_SECONDS, POLL_SECONDS, WorkerPool
from fewstep.sweeps.slurm import squeue as queue

NO_LIMIT = 10**6  # time-outs of a job that submitit allows
QUERY_SECONDS = 10.0
log = logging.getLogger(__name__)


class ArrayTaskFailed(Exception):
    """A run of the task failed; so the job fails, and jobs that depend on it are removed.

    ``code``: the job's exit code, by which ``reconcile`` knows a failure that was not written.
    """

    def __init__(self, message: str, code: int = worker.FAILED) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class ArrayTask:
    """One task of the array: some runs. submitit calls it, checkpoints it and calls it again."""

    folder: str
    index: int
    pool: WorkerPool | None = field(default=None, repr=False)
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __call__(self) -> None:
        manifest = read_manifest(Path(self.folder))
        sweep = Path(self.folder).parent.parent
        runs = [RunDirectory(sweep / key) for key in manifest["tasks"][self.index]]
        job = this_job()
        log.info("job %s, restart %s: %s", job["id"], job["restart"], counted(len(runs), "run"))
        if int(os.environ.get("SLURM_NTASKS", 1)) > 1:
            return self._run_rank(runs, job)
        at_once, stale = manifest["at_a_time"], StaleAttempts(job, manifest["name"])
        cpus, environment = cpus_of_task() / at_once, {JOB: json.dumps(job)}
        self.pool = WorkerPool(at_once, cpus, environment, yields=True, takes_over=stale)
        passed = passed_file(Path(self.folder), self.index, job["restart"])

        def on_event(event: Event, working: Sequence[RunDirectory]) -> None:
            log_event(event)
            if event.run is not None and event.kind in ("done", "failed"):
                try:
                    append(passed, f"{event.run.key}\n")
                except OSError as error:  # it counts as pending, until the job ends
                    log.warning("%s", error)

        outcome = self.pool.launch(runs, on_event)
        if self.pool.yielded:
            raise ArrayTaskFailed("SLURM has started this job again on another node")
        if outcome.interrupted:
            self._record_external_end([run for run in runs if run.key in outcome.interrupted])
        unfinished = sum(run.result() is None for run in runs)
        if unfinished:  # jobs of students depend on this one
            codes = [worker.UNRECORDED.get(kind) for kind in outcome.unrecorded.values()]
            code = next((code for code in codes if code is not None), worker.FAILED)
            raise ArrayTaskFailed(f"not done: {unfinished} of {counted(len(runs), 'run')}", code)
        return None

    def checkpoint(self) -> DelayedSubmission:
        """Have the runs save and stop; the caller requeues the job."""
        if self.pool is not None:
            self.pool.halt()
        elif self.process is not None:
            self.process.terminate()
            end = time.monotonic() + GRACE_SECONDS
            while self.process.poll() is None and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
        return DelayedSubmission(ArrayTask(self.folder, self.index))

    __submitit_checkpoint__ = checkpoint

    def _run_rank(self, runs: Sequence[RunDirectory], job: Json) -> None:
        """One rank of runs that use all tasks of the job, one after the other, in each task."""
        distributed = submitit.helpers.TorchDistributedEnvironment()
        # RANK, ...
        ranks = {k.upper(): str(v) for k, v in vars(distributed).items() if k[0] != "_"}
        thread_limits = limits(threads(cpus_of_task()))
        environment = {**os.environ, **thread_limits, **ranks, JOB: json.dumps(job)}
        is_stale = StaleAttempts(job, str(read_manifest(Path(self.folder))["name"]))
        for run in runs:
            attempt = live_lease(run)
            if attempt is not None and is_stale(attempt):
                environment[SUPERSEDED_TOKEN] = attempt.token
            with worker.open_log(run) as out, usr2_held():
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "fewstep.experiments.worker", str(run.path)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    preexec_fn=ignore_usr2,
                )
            while (code := self.process.poll()) is None:  # wait() would bar poll() in a handler
                time.sleep(POLL_SECONDS)
            if code == worker.INTERRUPTED and distributed.rank == 0:
                self._record_external_end([run])
            elif code == worker.INTERRUPTED:
                wait_for_the_end()  # rank 0 decides what happens to the job
            if code != worker.DONE:
                told = code if code in worker.UNRECORDED.values() else worker.FAILED
                raise ArrayTaskFailed(f"run {run.key} is not done (exit code {code})", told)

    def _record_external_end(self, runs: Sequence[RunDirectory]) -> None:
        """SIGTERM came, not USR2: the job was cancelled, or preempted without notice."""
        why = reason_of_end()
        unrecorded = [r for r in runs if r.result() is None and r.failure() is None]
        for run in unrecorded if why in ("cancelled", "timeout") else ():
            if live_lease(run) is None:
                by = "fewstep cancel" if run.cancel.exists() else "scancel"
                how = f"cancelled ({by})" if why == "cancelled" else "at its time limit"
                run.write("failure", failures.record(run, why, f"the job was {how}"))
        if why == "preempted":  # SLURM does not requeue a job that ends by itself now
            wait_for_the_end()


@contextlib.contextmanager
def usr2_held() -> Iterator[None]:
    """A context in which the signal to save waits: a process that is being started has no name.

    A mask would hold it back from this thread alone, and Python runs the handler here whichever
    thread the signal reaches (NumPy's libraries have threads of their own).
    """
    came: list[int] = []
    handler = signal.signal(signal.SIGUSR2, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, handler)
        if came:
            signal.raise_signal(signal.SIGUSR2)


def wait_for_the_end() -> None:
    """Wait until SLURM kills this process."""
    while True:
        signal.pause()


def passed_file(folder: Path, index: int, restart: int) -> Path:
    """Lists the runs that a task does not try again since its last restart, failed ones, too."""
    return folder / f"{index}_{restart}_passed.txt"


def log_event(event: Event) -> None:
    """Write an event to the job's log."""
    if event.run is not None:
        failure = event.reason()
        why = f": {failure['class']}: {failure['message']}" if failure else ""
        log.info("%s %s%s", event.kind, event.run.key, why)


def cpus_of_task() -> int:
    """The cores that the job has for each of its tasks; a process may see all of the node."""
    return int(os.environ.get("SLURM_CPUS_PER_TASK") or cores())


@dataclass
class StaleAttempts:
    """Whether SLURM has ended or requeued the job of a live attempt: the attempt is over."""

    job: Json
    name: str
    answers: dict[str, tuple[float, bool]] = field(default_factory=dict)

    def __call__(self, attempt: Attempt) -> bool:
        other = attempt.job
        if other is None or other.get("launcher") != "slurm":
            return False
        if other["id"] == self.job["id"]:
            return bool(other["restart"] < self.job["restart"])
        queried, stale = self.answers.get(attempt.token, (0.0, False))
        if not stale and time.monotonic() - queried > QUERY_SECONDS:
            stale = self._is_over(other)
            self.answers[attempt.token] = (time.monotonic(), stale)
        return stale

    def _is_over(self, job: Json) -> bool:
        if (jobs := queue.jobs(self.name, [job["id"].split("_")[0]])) is None:
            return False
        now = jobs.get(job["id"])
        if now is None:  # SLURM has forgotten it; jobs of other users may be hidden
            return all(job.get(who) == self.job[who] for who in ("user", "cluster"))
        return not now.live or now.waiting or now.restarts > job["restart"]


def this_job() -> Json:
    """The description of this job in a run's lease."""
    environment = submitit.JobEnvironment()
    return {
        "launcher": "slurm",
        "id": environment.job_id,
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "node": os.environ.get("SLURMD_NODENAME", environment.hostname),
        "user": getpass.getuser(),
        "cluster": os.environ.get("SLURM_CLUSTER_NAME", ""),
    }


def reason_of_end() -> str:
    """cancelled | preempted | timeout | unknown: why this job got a SIGTERM."""
    try:
        text = queue.command("scontrol", "show", "job", submitit.JobEnvironment().job_id)
    except Exception:  # some sites allow no queries from nodes
        return "unknown"
    if not re.search(r"PreemptTime=(None|N/A)", text):
        return "preempted"
    ran, limit = (_seconds(text, field) for field in ("RunTime", "TimeLimit"))
    return "timeout" if ran is not None and limit is not None and ran >= limit else "cancelled"


def _seconds(text: str, name: str) -> int | None:
    if (match := re.search(rf"{name}=(?:(\d+)-)?(\d+):(\d+):(\d+)", text)) is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def read_manifest(folder: Path) -> dict[str, Any]:
    """``manifest.json`` of a submission."""
    manifest = read_json(folder / "manifest.json")
    assert manifest is not None, f"no manifest in {folder}"
    return manifest


def main() -> int:
    """The task that SLURM started; its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        process(Path(sys.argv[1]))
    except (ArrayTaskFailed, worker.NoLog) as failure:
        log.error("%s", failure)
        return failure.code
    except OSError as error:  # before or after its runs, which record their own
        if (kind := io_error_class(error)) is None:
            raise
        log.error("%s", error)
        return worker.UNRECORDED[kind]
    return worker.DONE


def process(folder: Path) -> None:
    """Have submitit call the task in ``folder`` that is this job's."""
    os.environ["SUBMITIT_FOLDER"] = str(folder)
    pickle = submitit.JobEnvironment().paths.submitted_pickle
    if not pickle.exists():  # its submitter has not written it yet, or has died
        index = int(os.environ.get("SLURM_ARRAY_TASK_ID", 0))
        delayed = DelayedSubmission(ArrayTask(str(folder), index))
        delayed.set_timeout(read_manifest(folder)["minutes"], NO_LIMIT)
        with replacing(pickle) as other:
            delayed.dump(other)
    # left by a job that was killed while it saved: submitit does not overwrite it
    pickle.with_name(f"{pickle.name}.save_tmp").unlink(missing_ok=True)
    process_job(folder)


if __name__ == "__main__":  # the pickle names this module's classes as others import them
    from fewstep.sweeps.slurm import array_task

    sys.exit(array_task.main())
