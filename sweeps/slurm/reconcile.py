"""Records how runs ended that could not record it themselves, from the state of their jobs."""

import contextlib
import signal

from fewstep.experiments import worker
from fewstep.experiments.store import failures
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.lease import live_lease
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory, is_readable
from fewstep.sweeps.slurm.setup_lines import FAILED, failed_line
from fewstep.sweeps.slurm.squeue import IN_VAIN, Job
from fewstep.sweeps.slurm.submission import Slurm

ENDS = {
    "CANCELLED": ("cancelled", "the job was cancelled"),
    "TIMEOUT": ("timeout", "the job reached its time limit before it could save"),
    "DEADLINE": ("timeout", "the job reached its deadline"),
    "OUT_OF_MEMORY": ("oom", "the job took more memory than it asked for"),
    "NODE_FAIL": ("lost_node", "the node was lost"),
    "BOOT_FAIL": ("lost_node", "the node did not start"),
    "LOST": ("lost_node", "the node was lost, and the job was not requeued"),
    "PREEMPTED": ("preempted", "another job took the node, and the job was not requeued"),
    "FAILED": ("bug", "the job failed"),
    "COMPLETED": ("bad_data", "the job ended before the run began (does slurm.setup end it?)"),
}


def reconcile(sweep: SweepDirectory) -> dict[str, str]:
    """Record why runs ended whose job is gone and that have no record; failure classes by key."""
    classes = {}
    runs = {run.key: run for run in sweep.runs()}
    for key, task in Slurm(sweep).tasks().items():
        run, submission, job = runs.get(key), task.submission, task.job
        if run is None or job is None or job.state not in ENDS:
            continue
        if not is_readable(run):  # whoever looks at it names the file
            continue
        if run.status() in ("done", "stopped") or live_lease(run) is not None:
            continue
        last = (run.attempts() or [{}])[-1]
        if _is_recorded(run, last, job, submission.created):
            continue
        if job.state == "COMPLETED" and any(_is_in_job(a, job) for a in run.attempts()):
            continue
        log = submission.log(task.index)
        if job.exited(FAILED) and (line := failed_line(log)) is not None:
            kind, message = "bad_data", line
        elif job.lacks_log:
            kind, message = "io_error", f"SLURM could not open the job's log in {log.parent}"
        else:
            kind, message = _end(run, last, job)
        where = f"job {job.id}, log: {log}" if log.exists() else f"job {job.id}"
        with contextlib.suppress(OSError):  # status reads, and writes only what helps
            run.write("failure", failures.record(run, kind, f"{message} ({where})"))
        classes[key] = kind
    return classes


def _is_recorded(run: RunDirectory, last: Json, job: Job, submitted: str) -> bool:
    """Whether the run's files say why it ended, or another job has had the run since."""
    in_job = _is_in_job(last, job)
    if not in_job and last.get("begun", "") > submitted:
        return True
    failure = run.failure()
    if failure is None or (not in_job and failure["finished"] <= submitted):
        return False  # none, or one of an earlier job
    # a run that was killed for its memory does not know why
    return not (in_job and ENDS[job.state][0] == "oom" and failure["class"] == "killed")


def _end(run: RunDirectory, last: Json, job: Job) -> tuple[str, str]:
    """The failure class and message of a run whose job ended."""
    in_job, (kind, message) = _is_in_job(last, job), ENDS[job.state]
    for unrecorded, code in worker.UNRECORDED.items():
        if job.exited(code):
            return unrecorded, "the failure could not be written"
    if job.died_of(signal.SIGKILL):
        return "killed", "a process of the job was killed by SIGKILL"
    if in_job and job.state == "FAILED" and last.get("ended") == "interrupted":
        return "preempted", "it saved, but its job could not be queued again"
    if job.died_of(signal.SIGUSR2):  # it had no handler yet
        return "preempted", "it got the signal to save while it was starting"
    if not in_job and job.state == "FAILED":
        return kind, "the job failed before the run could begin"
    if kind == "cancelled" and job.nodes in ("", "None assigned"):
        if job.reason == IN_VAIN:
            return "no_teacher", "the run's teacher failed or was lost"
        return kind, "the job was cancelled before it began"
    if kind == "cancelled" and run.cancel.exists():
        return kind, "the job was cancelled (fewstep cancel)"
    return kind, message


def _is_in_job(attempt: Json, job: Job) -> bool:
    return (attempt.get("job") or {}).get("id") == job.id
