"""What SLURM says of jobs: one call for many, and honest about what it does not know."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fewstep.errors import UserError

SECONDS = 30
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED")
WORKING = ("RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED")
IN_VAIN = "DependencyNeverSatisfied"  # why SLURM removed a job that waited for another
FIELDS = "JobArrayID:64,State:24,RestartCnt:12,NodeList:64,Comment:128,Reason:64,exit_code:12"

SIGNALLED = (str((128 + 12) << 8), "12", "140:0", "12:0", "0:12")
"""The exit code of a shell whose program died of signal 12 is 140. squeue has it as wait(2) does,
sacct as CODE:SIGNAL, and less 128."""

FOREIGN = re.compile("(SLURM|SUBMITIT|SBATCH|SALLOC|SRUN|SQUEUE|SACCT|SCANCEL|SCONTROL)_")
NEEDED = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")  # where the cluster is, who we are


@dataclass(frozen=True)
class Job:
    """A job, or one task of an array (``id`` as in 123_4).

    ``state`` is SLURM's word. ``restarts``: how often it was queued again. ``comment``: ours, which
    names the submission. ``code``: its exit code, in the words of who told it.
    """

    id: str
    state: str
    restarts: int = 0
    nodes: str = ""
    comment: str = ""
    reason: str = ""
    code: str = ""

    @property
    def live(self) -> bool:
        """Whether it is in the queue or at work."""
        return self.state in WAITING or self.state in WORKING

    @property
    def signalled(self) -> bool:
        """Whether its program died of the signal (USR2) that tells it to save."""
        return self.state == "FAILED" and self.code in SIGNALLED

    @property
    def waiting(self) -> bool:
        return self.state in WAITING


def available() -> bool:
    """Whether SLURM's commands are on this machine."""
    return shutil.which("squeue") is not None


def foreign() -> dict[str, str]:
    """What SLURM's commands would take from this environment, though nobody asked for it here.

    Variables win over what a script says (SBATCH_TIMELIMIT), hide jobs (SQUEUE_STATES), and, in a
    job, tell of that one: who submits may be a collector, or a person on an interactive node.
    """
    return {k: v for k, v in os.environ.items() if FOREIGN.match(k) and k not in NEEDED}


@contextlib.contextmanager
def ours() -> Iterator[None]:
    """Meanwhile this process' environment says nothing to SLURM's commands."""
    told = foreign()
    for name in told:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(told)


def command(*words: str) -> str:
    """The output of a SLURM command.

    Raises:
        UserError: it failed, or did not answer.
    """
    try:
        own = {k: v for k, v in os.environ.items() if k not in foreign()}
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, env=own)
    except FileNotFoundError:
        raise UserError(f"no SLURM on this machine: {words[0]} is not there") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"SLURM does not answer ({words[0]}, {SECONDS} s)") from None
    if done.returncode:
        told = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(f"{words[0]} failed: {told}")
    return done.stdout


def jobs(name: str, ids: Iterable[str]) -> dict[str, Job] | None:
    """The jobs that SLURM remembers, by id, an array's tasks one by one; None if it did not answer.

    ``ids``: of whole arrays or jobs, all called ``name``. squeue knows what is
    live, and for some minutes what has ended. Accounting, where there is any, knows the rest, but
    lags, and calls a job NODE_FAIL or PREEMPTED that will come back: where both know it, squeue is
    right.
    """
    asked = sorted(set(ids))
    if not asked:
        return {}
    try:
        # by name, whoever submitted them: asked for an id it has forgotten, squeue fails
        told = command("squeue", "-h", "-r", "-t", "all", "-n", name, "-O", FIELDS)
    except UserError:
        return None
    wanted = set(asked)
    found = {j.id: j for j in _parse(told) if j.id.split("_")[0] in wanted}
    for job in _accounted(asked):
        found.setdefault(job.id, job)
    return found


def by_comment(name: str, comment: str) -> list[Job]:
    """The jobs called ``name`` with this comment that SLURM remembers.

    Raises:
        UserError: SLURM did not answer.
    """
    told = command("squeue", "-h", "-r", "-t", "all", "-n", name, "-O", FIELDS)
    return [job for job in _parse(told) if job.comment == comment]


def cancel(ids: Iterable[str]) -> None:
    """Cancel jobs or tasks; those that are gone already are no error."""
    asked = sorted(set(ids))
    for begun in range(0, len(asked), 500):  # a command line has an end
        command("scancel", *asked[begun : begun + 500])


def array_limit() -> int:
    """How many tasks an array may have: MaxArraySize is one more than its largest index."""
    told = re.search(r"MaxArraySize\s*=\s*(\d+)", command("scontrol", "show", "config"))
    return max(1, int(told.group(1))) if told else 1000


def _parse(text: str) -> list[Job]:
    widths = [int(part.split(":")[1]) for part in FIELDS.split(",")]
    made = []
    for line in text.splitlines():
        values, begun = [], 0
        for width in widths:
            values.append(line[begun : begun + width].strip())
            begun += width
        id, state, restarts, nodes, comment, reason, code = values
        comment = "" if comment in ("(null)", "N/A") else comment
        made.append(Job(id, state, int(restarts or 0), nodes, comment, reason, code))
    return made


def _accounted(ids: list[str]) -> list[Job]:
    words = ("sacct", "-X", "-n", "-P", "-j", ",".join(ids), "-o", "JobID,State,NodeList,ExitCode")
    try:
        told = command(*words)
    except UserError:  # no accounting here
        return []
    made = []
    for line in told.splitlines():
        id, word, nodes, code = line.split("|")[:4]
        if "[" not in id:  # tasks that are still together have not begun: squeue knows them
            state = word.split(" ")[0]
            # who cancels is named ("CANCELLED by 0"), but for SLURM: what it removes waited in vain
            reason = IN_VAIN if word == "CANCELLED" else ""
            # it will come back, or is gone: only squeue can tell, and does not know it
            doubtful = state in (*WAITING, *WORKING, "NODE_FAIL", "PREEMPTED", "BOOT_FAIL")
            made.append(Job(id, "LOST" if doubtful else state, 0, nodes, "", reason, code))
    return made
