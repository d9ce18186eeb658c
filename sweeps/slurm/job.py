"""On a node: ``python -m fewstep.sweeps.slurm.job FOLDER``, one task of a submission's array.

What the task has to do stands in the submission's manifest, written before sbatch was called, and
not in a pickle that submitit moves into place after it: a submitter that dies in between leaves no
orphan. The rest is submitit's: it hears the signal (USR2) that comes before the time limit or with
preemption, has us save, and puts the job back into the queue.

A job that is preempted, or whose node is lost, starts again here and goes on from the runs' own
checkpoints. Runs that were finished meanwhile, by whomever, are left as they are.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.core.submission import process_job
from submitit.core.utils import DelayedSubmission

from fewstep.experiments import failures, worker
from fewstep.experiments.claim import JOB, SUPERSEDES, Attempt, at_work
from fewstep.experiments.rundir import Json, RunDirectory, read_json
from fewstep.files import replacing
from fewstep.sweeps.fork import ignore_usr2
from fewstep.sweeps.launcher import Event
from fewstep.sweeps.local import GRACE_SECONDS, POLL_SECONDS, LocalLauncher
from fewstep.sweeps.slurm import queue
from fewstep.sweeps.threads import cores, limits, threads

FOR_EVER = 10**6  # time-outs that submitit lets a job have
ASK_SECONDS = 10.0
log = logging.getLogger(__name__)


class PackFailed(Exception):
    """A run of the pack failed; so the job does, and those that wait for it with afterok."""


@dataclass
class Pack:
    """One task of the array: some runs. What submitit calls, checkpoints and calls again."""

    folder: str
    index: int
    launcher: LocalLauncher | None = field(default=None, repr=False)
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __call__(self) -> None:
        manifest = read_manifest(Path(self.folder))
        sweep = Path(self.folder).parent.parent
        runs = [RunDirectory(sweep / key) for key in manifest["tasks"][self.index]]
        told = this_job()
        log.info("job %s, restart %s: %d runs", told["id"], told["restart"], len(runs))
        if int(os.environ.get("SLURM_NTASKS", 1)) > 1:
            return self._rank(runs, told)
        self.launcher = LocalLauncher(
            workers=manifest["at_a_time"],
            cpus=cpus_of_task() / manifest["at_a_time"],
            environment={JOB: json.dumps(told)},
            yields=True,
            over=Ghosts(told, manifest["name"]),
        )
        passed = passed_file(Path(self.folder), self.index, told["restart"])

        def on_event(event: Event, working: Sequence[RunDirectory]) -> None:
            report(event)
            if event.run is not None and event.kind in ("done", "failed"):
                with passed.open("a") as file:
                    file.write(f"{event.run.key}\n")

        outcome = self.launcher.launch(runs, on_event)
        if self.launcher.yielded:
            raise PackFailed("the job was started again elsewhere: this is its ghost")
        if outcome.interrupted:
            self._ended_from_outside([run for run in runs if run.key in outcome.interrupted])
        left = sum(run.result() is None for run in runs)
        if left:  # not the job's success: students wait for it
            raise PackFailed(f"{left} of {len(runs)} runs are not done")
        return None

    def checkpoint(self) -> DelayedSubmission:
        """Have the runs save and leave; the job is queued again by whoever calls this."""
        if self.launcher is not None:
            self.launcher.halt()
        elif self.process is not None:
            self.process.terminate()
            end = time.monotonic() + GRACE_SECONDS
            while self.process.poll() is None and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
        return DelayedSubmission(Pack(self.folder, self.index))

    __submitit_checkpoint__ = checkpoint

    def _rank(self, runs: Sequence[RunDirectory], told: Json) -> None:
        """One rank of runs that have all tasks of the job to themselves, one after the other.

        Every task of the job comes here. SLURM sends its signals to the ranks, too.
        """
        held = limits(threads(cpus_of_task()))
        environment = {**os.environ, **held, **rank_environment(), JOB: json.dumps(told)}
        ghosts = Ghosts(told, str(read_manifest(Path(self.folder))["name"]))
        for run in runs:
            attempt = at_work(run)
            if attempt is not None and ghosts(attempt):
                environment[SUPERSEDES] = attempt.token
            with run.log.open("ab") as out:
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
            if code == worker.INTERRUPTED and int(environment["RANK"]) == 0:
                self._ended_from_outside([run])
            elif code == worker.INTERRUPTED:
                wait_for_the_end()  # the first says what becomes of the job
            if code != worker.DONE:
                raise PackFailed(f"run {run.key} is not done (exit code {code})")

    def _ended_from_outside(self, runs: Sequence[RunDirectory]) -> None:
        """SIGTERM came, not USR2: somebody cancelled the job, or it is preempted without notice."""
        why = reason_of_end()
        left = [r for r in runs if r.result() is None and r.failure() is None]
        for run in [r for r in left if at_work(r) is None]:
            if why in ("cancelled", "timeout"):
                how = WORDS["by us" if why == "cancelled" and run.cancel.exists() else why]
                run.write("failure", failures.record(run, why, f"the job was {how}"))
        if why == "preempted":  # a job that ends by itself now is not queued again
            wait_for_the_end()


def wait_for_the_end() -> None:
    """Until SLURM kills us."""
    while True:
        signal.pause()


WORDS = {
    "cancelled": "cancelled (scancel)",
    "by us": "cancelled (fewstep cancel)",
    "timeout": "at its time limit",
}


def passed_file(folder: Path, index: int, restart: int) -> Path:
    """Where a task writes which of its runs it has done with, since it was started that time.

    It does not come back to these, though it goes on with others; but it does once it is queued
    again. Whether a run is yet to be tried again does not show in the run's own files.
    """
    return folder / f"{index}_{restart}_passed.txt"


def report(event: Event) -> None:
    """A line in the job's log."""
    if event.run is not None:
        failure = event.run.failure() if event.kind in ("failed", "again") else None
        why = f": {failure['class']}: {failure['message']}" if failure else ""
        log.info("%s %s%s", event.kind, event.run.key, why)


def cpus_of_task() -> int:
    """The cores that the job has for each of its tasks: not those a process sees.

    Where a cluster does not bind processes to cores, it sees all that the node has.
    """
    return int(os.environ.get("SLURM_CPUS_PER_TASK") or cores())


def rank_environment() -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun sets them."""
    torch_env = submitit.helpers.TorchDistributedEnvironment()
    return {
        "RANK": str(torch_env.rank),
        "WORLD_SIZE": str(torch_env.world_size),
        "LOCAL_RANK": str(torch_env.local_rank),
        "LOCAL_WORLD_SIZE": str(torch_env.local_world_size),
        "MASTER_ADDR": torch_env.master_addr,
        "MASTER_PORT": str(torch_env.master_port),
    }


@dataclass
class Ghosts:
    """Whether an attempt that seems alive is over for SLURM: its node was given up, not stopped."""

    mine: Json
    name: str
    asked: dict[str, tuple[float, bool]] = field(default_factory=dict)

    def __call__(self, attempt: Attempt) -> bool:
        job = attempt.job
        if job is None or job.get("launcher") != "slurm":
            return False
        if job["id"] == self.mine["id"]:
            return bool(job["restart"] < self.mine["restart"])
        asked, told = self.asked.get(attempt.token, (0.0, False))
        if not told and time.monotonic() - asked > ASK_SECONDS:
            told = self._over(job)
            self.asked[attempt.token] = (time.monotonic(), told)
        return told

    def _over(self, job: Json) -> bool:
        found = queue.jobs(self.name, [job["id"].split("_")[0]])
        if found is None:
            return False
        now = found.get(job["id"])
        if now is None:  # forgotten; or of somebody, or a cluster, that we are not shown
            return all(job.get(who) == self.mine[who] for who in ("user", "cluster"))
        return not now.live or now.waiting or now.restarts > job["restart"]


def this_job() -> Json:
    """What this job says of itself in a claim."""
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
        told = queue.command("scontrol", "show", "job", submitit.JobEnvironment().job_id)
    except Exception:  # some sites allow no queries from nodes
        return "unknown"
    if not re.search(r"PreemptTime=(None|N/A)", told):
        return "preempted"
    ran, limit = (_seconds(told, field) for field in ("RunTime", "TimeLimit"))
    return "timeout" if ran is not None and limit is not None and ran >= limit else "cancelled"


def _seconds(text: str, name: str) -> int | None:
    found = re.search(rf"{name}=(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def read_manifest(folder: Path) -> dict[str, Any]:
    """``manifest.json`` of a submission."""
    manifest = read_json(folder / "manifest.json")
    assert manifest is not None, f"no manifest in {folder}"
    return manifest


def main() -> None:
    """The task that SLURM started."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    folder = Path(sys.argv[1])
    os.environ["SUBMITIT_FOLDER"] = str(folder)
    pickle = submitit.JobEnvironment().paths.submitted_pickle
    if not pickle.exists():  # its submitter has not come to it yet, or never will
        delayed = DelayedSubmission(
            Pack(str(folder), int(os.environ.get("SLURM_ARRAY_TASK_ID", 0)))
        )
        minutes = read_manifest(folder)["minutes"]
        delayed.set_timeout(minutes, FOR_EVER)
        with replacing(pickle) as other:
            delayed.dump(other)
    # a job that was killed while it saved left this, and submitit does not write over it
    pickle.with_name(f"{pickle.name}.save_tmp").unlink(missing_ok=True)
    process_job(folder)


if __name__ == "__main__":
    main()
