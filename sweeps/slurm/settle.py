"""What SLURM knows of a run's end and the run itself could not write down."""

from __future__ import annotations

from fewstep.experiments import failures
from fewstep.experiments.claim import at_work
from fewstep.experiments.rundir import SweepDirectory
from fewstep.sweeps.slurm.queue import IN_VAIN, Job
from fewstep.sweeps.slurm.settings import SlurmSettings
from fewstep.sweeps.slurm.submission import Slurm

ENDS = {
    "CANCELLED": ("cancelled", "the job was cancelled"),
    "TIMEOUT": ("timeout", "the job reached its time limit before it could save"),
    "DEADLINE": ("timeout", "the job reached its deadline"),
    "OUT_OF_MEMORY": ("oom", "the job took more memory than it asked for"),
    "NODE_FAIL": ("lost_node", "the node was lost"),
    "BOOT_FAIL": ("lost_node", "the node did not start"),
    "LOST": ("lost_node", "the node was lost, and the job is in the queue no more"),
    "PREEMPTED": ("preempted", "another job took the node, and the job is in the queue no more"),
    "FAILED": ("bug", "the job failed"),
}


def settle(sweep: SweepDirectory) -> dict[str, str]:
    """Record why runs ended whose job is gone and that say nothing themselves; key -> class.

    Raises:
        UserError: SLURM does not answer.
    """
    made = {}
    runs = {run.key: run for run in sweep.runs()}
    for key, task in Slurm(sweep, SlurmSettings()).tasks().items():
        run, submission, job = runs.get(key), task.submission, task.job
        if run is None or job is None or job.state not in ENDS:
            continue
        if run.status() in ("done", "stopped") or at_work(run) is not None:
            continue
        last = (run.attempts() or [{}])[-1]
        its = (last.get("job") or {}).get("id") == job.id
        if not its and last.get("begun", "") > submission.created:
            continue  # somebody else had it after that job
        kind, message = ENDS[job.state]
        failure = run.failure()
        if failure is not None and not its and failure["finished"] <= submission.created:
            failure = None  # of an earlier job
        if failure is not None and not (its and kind == "oom" and failure["class"] == "killed"):
            continue  # it says so itself; but one killed for its memory does not know why
        if its and job.state == "FAILED" and last.get("ended") == "interrupted":
            kind, message = "preempted", "it saved, but its job could not be queued again"
        elif job.signalled:  # nobody was there to hear it
            kind, message = "preempted", "it was told to save as it began, and could not yet"
        elif not its and job.state == "FAILED":
            message = "the job failed before the run could begin"
        elif _never_began(job) and kind == "cancelled":
            message = "the job was cancelled before it began"
            if job.reason == IN_VAIN:
                kind, message = "no_teacher", "the run's teacher failed or was lost"
        elif kind == "cancelled" and run.cancel.exists():
            message = "the job was cancelled (fewstep cancel)"
        log = submission.log(task.index)
        where = f"job {job.id}, log: {log}" if log.exists() else f"job {job.id}"
        run.write("failure", failures.record(run, kind, f"{message} ({where})"))
        made[key] = kind
    return made


def _never_began(job: Job) -> bool:
    return job.nodes in ("", "None assigned")
