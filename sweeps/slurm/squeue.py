"""The state of jobs from squeue and sacct, in one call for many jobs; None where it is unknown."""

import contextlib
import getpass
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from subprocess import PIPE
from typing import NamedTuple

from fewstep.errors import UserError

log = logging.getLogger(__name__)
SECONDS = 30
QUIET_SECONDS = 5.0  # of waiting, before it is said
ACCOUNTING_SECONDS, SILENT_SECONDS = 10, 60
_hung = float("-inf")  # when accounting did not answer
ARRAY_LIMIT = 1000  # tasks of an array, where SLURM does not say
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED")
WORKING = ("RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED")
IN_VAIN = "DependencyNeverSatisfied"  # why SLURM removed a job whose dependency failed
FIELDS = "JobArrayID:64,State:24,RestartCnt:12,NodeList:64,Comment:128,Reason:64,exit_code:12"

FOREIGN = re.compile("(SLURM|SUBMITIT|SBATCH|SALLOC|SRUN|SQUEUE|SACCT|SCANCEL|SCONTROL)_")
NEEDED = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")  # address and credentials


class NoAnswer(UserError):
    """A command of SLURM that did not end in time."""


@dataclass(frozen=True)
class Job:
    """A job, or one task of an array (``id`` as in 123_4).

    ``state``: as SLURM calls it. ``restarts``: how often it was requeued. ``comment``: the token of
    the submission. ``code``: its exit code, as squeue or sacct writes it.
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
        return self.state in WAITING or self.state in WORKING

    def died_of(self, number: int) -> bool:
        """Whether its program died of this signal."""
        told = (str(number), f"{number}:0", f"0:{number}")  # less 128, or by sacct as a signal
        return self.exited(128 + number) or (self.state == "FAILED" and self.code in told)

    def exited(self, code: int) -> bool:
        """Whether it failed with this exit code: squeue has it as wait(2) does, sacct as 1:0."""
        return self.state == "FAILED" and self.code in (str(code << 8), f"{code}:0")

    @property
    def lacks_log(self) -> bool:
        """Whether SLURM could not open its log (ESLURMD_IO_ERROR): nothing of it has run."""
        return self.state == "FAILED" and self.code in ("4021", "0:53")  # of squeue, of sacct

    @property
    def waiting(self) -> bool:
        return self.state in WAITING


def available() -> bool:
    """Whether SLURM's commands are on this machine."""
    return shutil.which("squeue") is not None


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """Meanwhile this process' environment has no variables that change what SLURM's commands do.

    They override options of a script (SBATCH_TIMELIMIT), hide jobs (SQUEUE_STATES), or describe the
    job that we are in: the submitter may be a finalizer, or a person on an interactive node.
    """
    variables = {k: v for k, v in os.environ.items() if FOREIGN.match(k) and k not in NEEDED}
    for name in variables:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(variables)


def command(*words: str, seconds: float = SECONDS) -> str:
    """The output of a SLURM command; a UserError if it failed, or did not answer."""
    try:
        with clean_environment():
            process = subprocess.Popen(
                words, stdout=PIPE, stderr=PIPE, encoding="utf-8", errors="replace"
            )
    except FileNotFoundError:
        raise UserError(f"no SLURM on this machine: {words[0]} not found") from None
    with process:
        told, complaint = _answer(process, words[0], seconds)
    if process.returncode:
        reason = " ".join(complaint.split()) or f"exit code {process.returncode}"
        raise UserError(f"{words[0]} failed: {reason}")
    return told


def _answer(process: subprocess.Popen[str], name: str, seconds: float) -> tuple[str, str]:
    """The output of a command ``name``, of which a warning tells if it takes long."""
    quiet = min(seconds, QUIET_SECONDS)
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.communicate(timeout=quiet)
    if seconds > quiet:
        log.warning("waiting for SLURM (%s), at most %g s", name, seconds)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=seconds - quiet)
    process.kill()
    raise NoAnswer(f"SLURM does not answer ({name}, {seconds} s)")


def jobs(name: str, ids: Iterable[str]) -> dict[str, Job] | None:
    """The jobs that SLURM knows, by id, with a row per array task; None if it did not answer.

    ``ids``: of whole arrays or jobs, all called ``name``. squeue knows live jobs, and for minutes
    ended ones. Accounting, if there is any, knows the others; but it is late, and reports
    NODE_FAIL or PREEMPTED for requeued jobs. If both know a job, squeue is right.
    """
    if not (ids := sorted(set(ids))):
        return {}
    try:
        known = {job.id: job for job in by_name(name) if job.id.split("_")[0] in ids}
    except UserError:
        return None
    for job in _accounted(name, ids):
        known.setdefault(job.id, job)
    return known


def cancel(ids: Iterable[str]) -> None:
    """Cancel jobs or tasks; ended ones are no error."""
    ids = sorted(set(ids))
    for start in range(0, len(ids), 500):  # a command line has a maximal length
        command("scancel", *ids[start : start + 500])


def array_limit() -> int:
    """How many tasks an array may have: MaxArraySize is one more than its largest index."""
    size = _config("MaxArraySize")
    return max(1, int(size)) if size else ARRAY_LIMIT


def cluster() -> str:
    """The name of the cluster that the commands ask; empty where it has none."""
    return _config("ClusterName")


def _config(name: str) -> str:
    found = re.search(rf"^{name}\s*=\s*(\S+)", command("scontrol", "show", "config"), re.MULTILINE)
    return found.group(1) if found else ""


class Room(NamedTuple):
    """How many jobs and tasks may be submitted: at most, and now."""

    limit: int
    free: int


def submit_room(account: str | None, qos: str | None) -> Room | None:
    """How many jobs and tasks this user may submit; None where nothing says or limits it.

    By MaxSubmitJobs of the user's association with ``account`` (None: the default one) and of the
    QOS, and, as far as jobs of others are shown, by GrpSubmitJobs of the account and MaxJobCount of
    the cluster.
    """
    rooms = [*_rooms_of_accounting(account, qos), *_room_of_cluster()]
    return min(rooms, key=lambda room: room.free, default=None)


def _room_of_cluster() -> list[Room]:
    """Of all users: SLURM refuses the last of MaxJobCount, and counts ended jobs for minutes."""
    try:
        limit = int(_config("MaxJobCount")) - 1
        taken = len(command("squeue", "-h", "-r", "-a", "-t", "all", "-o", "%i").splitlines())
    except (UserError, ValueError):  # it does not say
        return []
    return [Room(limit, max(0, limit - taken))]


def _rooms_of_accounting(account: str | None, qos: str | None) -> list[Room]:
    """Of the user, the QOS and the account."""
    user = getpass.getuser()
    show = ("sacctmgr", "-nP", "show")
    try:
        if account is None:
            default = _rows(*show, "user", user, "format=DefaultAccount")
            account = default[0][0] if default else None
        own = [
            row
            for row in _rows(
                *show, "assoc", "where", f"user={user}", "format=Account,MaxSubmit,DefaultQOS"
            )
            if row[0] == account
        ]
        used = {qos or row[2] or "normal" for row in own}
        of_qos = _rows(*show, "qos", "format=Name,MaxSubmitPU")
        of_user = [row[1] for row in [*own, *(row for row in of_qos if row[0] in used)]]
        of_account = [
            row[2]
            for row in _rows(
                *show,
                "assoc",
                "where",
                f"account={account}",
                "user=",
                "format=Account,User,GrpSubmit",
            )
            if row[0] == account and not row[1]
        ]
        rooms = []
        for limits, whose in ((of_user, ("-u", user)), (of_account, ("-A", str(account)))):
            if numbers := [int(limit) for limit in limits if limit.isdigit()]:
                taken = len(_rows("squeue", "-h", "-r", *whose, "-o", "%i"))
                rooms.append(Room(min(numbers), max(0, min(numbers) - taken)))
    except (UserError, IndexError):  # no accounting here
        return []
    return rooms


def _rows(*words: str) -> list[list[str]]:
    return [line.split("|") for line in _accounting(*words).splitlines()]


def _accounting(*words: str) -> str:
    """``command``, of a database that may hang: then it is not asked again for a minute."""
    global _hung
    if time.monotonic() - _hung < SILENT_SECONDS:
        raise UserError("accounting did not answer a moment ago")
    try:
        return command(*words, seconds=ACCOUNTING_SECONDS)
    except NoAnswer:
        _hung = time.monotonic()
        raise


def by_name(name: str) -> list[Job]:
    """The jobs of all users called ``name``; not by ids: squeue fails if it forgot one of them."""
    text = command("squeue", "-h", "-r", "-t", "all", "-n", name, "-O", FIELDS)
    widths = [int(part.split(":")[1]) for part in FIELDS.split(",")]
    columns = list(pairwise(accumulate(widths, initial=0)))
    jobs = []
    for line in text.splitlines():
        values = [line[start:end].strip() for start, end in columns]
        id, state, restarts, nodes, comment, reason, code = values
        comment = "" if comment in ("(null)", "N/A") else comment
        jobs.append(Job(id, state, int(restarts or 0), nodes, comment, reason, code))
    return jobs


def _accounted(name: str, ids: list[str]) -> list[Job]:
    # numbers alone are no identity: SLURM may begin to count anew, and another cluster does
    fields = "JobID,State,NodeList,ExitCode,JobName,Comment"
    words = ("sacct", "-X", "-n", "-P", "-j", ",".join(ids), "-o", fields)
    try:
        text = _accounting(*words)
    except NoAnswer as error:
        log.warning("%s: what only accounting knows is not shown", error)
        return []
    except UserError:  # no accounting here
        return []
    jobs = []
    for line in text.splitlines():
        id, word, nodes, code, called, comment = line.split("|")[:6]
        if called == name and "[" not in id:  # tasks in one row have not started: squeue knows them
            state = word.split(" ")[0]
            # "CANCELLED by 0" names the user; SLURM itself only removes jobs that waited in vain
            reason = IN_VAIN if word == "CANCELLED" else ""
            # it is requeued, or gone: only squeue would know, and it does not
            doubtful = state in (*WAITING, *WORKING, "NODE_FAIL", "PREEMPTED", "BOOT_FAIL")
            jobs.append(Job(id, "LOST" if doubtful else state, 0, nodes, comment, reason, code))
    return jobs
