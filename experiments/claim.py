"""Who is at work on a run: ``claim.json``, one attempt at a time.

A file lock cannot tell. Over a network file system it may outlive its holder or miss it, and a node
that the scheduler has given up may go on holding one, and writing, while the run is started again
elsewhere. So an attempt names itself in the run's directory, shows that it lives by touching that
file, and looks again and again whether the name is still its own: the newer one wins, the older one
leaves without a word. A lock is held only for the moment in which the file changes hands.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from filelock import FileLock, Timeout

from fewstep.experiments.provenance import JOB as JOB
from fewstep.experiments.provenance import now
from fewstep.experiments.rundir import RunDirectory, Unreadable, read_json, write_json

BEAT_SECONDS = 10.0
STALE_SECONDS = 90.0  # of silence, after which an attempt on another machine is taken for dead
LOOK_SECONDS = 1.0
UNKNOWN = "unknown"  # token of an attempt whose claim nobody can read
SUPERSEDES = "FEWSTEP_SUPERSEDES"  # token of an attempt that the launcher knows to be over


class Busy(Exception):
    """Another process is at work on this run."""


class Superseded(Exception):
    """A newer attempt has taken the run, or it was removed; nothing more may be written."""


@dataclass(frozen=True)
class Attempt:
    """A process at work on a run.

    Attributes:
        token: unique. host, machine, pid, born: which process it is; ``machine`` is one boot of
            one kernel and one space of process ids. job: what the launcher says of itself.
    """

    token: str
    host: str
    machine: str
    pid: int
    born: float
    begun: str
    job: dict[str, Any] | None = None

    @classmethod
    def mine(cls) -> Attempt:
        """This process, with a new token."""
        job = json.loads(os.environ[JOB]) if os.environ.get(JOB) else None
        born = psutil.Process().create_time()
        return cls(uuid.uuid4().hex, os.uname().nodename, _machine(), os.getpid(), born, now(), job)


def holder(directory: RunDirectory) -> Attempt | None:
    """The attempt that holds the run, alive or not.

    A claim that a disk has damaged is somebody's on another machine: whoever it is sees that it is
    no longer its own, and leaves; to the others it is stale after the usual time.
    """
    try:
        found = read_json(directory.claim)
        return None if found is None else Attempt(**found)
    except (Unreadable, TypeError):
        return Attempt(UNKNOWN, "?", "another", 0, 0.0, "")


def alive(attempt: Attempt, claim: Path) -> bool:
    """Whether the attempt's process lives; by its last touch where it is on another machine."""
    if attempt.machine == _machine():
        try:
            process = psutil.Process(attempt.pid)
            same = abs(process.create_time() - attempt.born) < 1
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
    return _clock(claim.parent) - claim.stat().st_mtime < STALE_SECONDS


def _clock(folder: Path) -> float:
    """The time of the file system, for clocks of machines differ; ours where we may not write."""
    try:
        with tempfile.TemporaryFile(dir=folder) as fresh:
            return os.fstat(fresh.fileno()).st_mtime
    except OSError:
        return time.time()


def at_work(directory: RunDirectory) -> Attempt | None:
    """The living attempt that holds the run."""
    try:
        attempt = holder(directory)
        return attempt if attempt is not None and alive(attempt, directory.claim) else None
    except (FileNotFoundError, NotADirectoryError):
        return None


class Claim:
    """A context in which this process holds the run.

    Raises:
        Busy: another living attempt has it.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.attempt = Attempt.mine()
        self.looked = time.monotonic()
        self.cancelled = False  # whether somebody asked for it, as of the last look
        self._over = threading.Event()

    def __enter__(self) -> Claim:
        try:
            with FileLock(self.directory.lock, timeout=30):
                self._take()
        except Timeout:
            raise Busy(f"another process is at work on {self.directory.path}") from None
        threading.Thread(target=self._beat, daemon=True, name="claim").start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if not self.directory.path.is_dir():
            return  # somebody has removed it, and the lock would make it again
        with FileLock(self.directory.lock, timeout=30):
            if self._own():
                self.directory.claim.unlink(missing_ok=True)

    def check(self, at_once: bool = False) -> None:
        """Look, at most once a second unless ``at_once``, whether the run is still ours.

        Raises:
            Superseded: it is not.
        """
        if not at_once and time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        self.cancelled = self.directory.cancel.exists()
        if not self._own():
            gone = not self.directory.path.is_dir()
            told = "somebody has removed" if gone else "a newer attempt has"
            raise Superseded(f"{told} {self.directory.path}")

    def _take(self) -> None:
        path = self.directory.claim
        fresh = path.with_name(f".{path.name}.{self.attempt.token}")
        write_json(fresh, asdict(self.attempt))
        try:
            held = holder(self.directory)
            if held is not None and held.token != os.environ.get(SUPERSEDES) and alive(held, path):
                raise Busy(f"another process is at work on {self.directory.path}")
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)

    def _own(self) -> bool:
        held = holder(self.directory)
        return held is not None and held.token == self.attempt.token

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            try:
                if not self._own():
                    return
                os.utime(self.directory.claim)
            except OSError:  # the file system is away: try again
                continue


def _machine() -> str:
    """This boot of this kernel, and this space of process ids; empty where nobody can tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{os.uname().nodename} {int(psutil.boot_time())}"
