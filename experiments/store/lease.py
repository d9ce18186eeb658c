"""The lease of a run: which attempt may write to it (``claim.json``, the name of version 0.1).

A file lock is not enough: on a network file system it may outlive its holder, and a node that the
scheduler has given up may keep one, and keep writing, while the run is started again elsewhere. So
an attempt writes its token into the run's directory, touches that file as a heartbeat, and checks
that the token is still its own: the newer attempt wins. A file lock is held only while it changes.
"""

import contextlib
import json
import os
import tempfile
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil
from filelock import Timeout

from fewstep.experiments.store.json_files import CorruptFile, read_json, write_json
from fewstep.experiments.store.provenance import JOB as JOB
from fewstep.experiments.store.provenance import now
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.files import locked, patiently

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 90.0  # of silence, after which an attempt on another machine is taken for dead
LOOK_SECONDS = 1.0
LOCK_SECONDS = 30.0
UNKNOWN = "unknown"  # token of an attempt whose lease nobody can read
SUPERSEDED_TOKEN = "FEWSTEP_SUPERSEDES"  # token of an attempt that the launcher knows to be over


class RunLocked(Exception):
    """Another process holds the lease of this run."""


class LeaseLost(Exception):
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
    def mine(cls) -> Self:
        """This process, with a new token."""
        job = json.loads(os.environ[JOB]) if os.environ.get(JOB) else None
        born = psutil.Process().create_time()
        return cls(uuid.uuid4().hex, os.uname().nodename, _machine(), os.getpid(), born, now(), job)


def holder(directory: RunDirectory) -> Attempt | None:
    """The attempt that holds the run, alive or not.

    A damaged lease counts as that of another machine: its holder sees that it is lost and exits;
    for others it is stale after the usual time.
    """
    try:
        record = read_json(directory.lease)
        return None if record is None else Attempt(**record)
    except (CorruptFile, TypeError):
        return Attempt(UNKNOWN, "?", "another", 0, 0.0, "")


def is_alive(attempt: Attempt, lease: Path) -> bool:
    """Whether the attempt's process lives; by its last touch where it is on another machine."""
    if attempt.machine == _machine():
        try:
            process = psutil.Process(attempt.pid)
            same = abs(process.create_time() - attempt.born) < 1
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
    return _clock(lease.parent) - lease.stat().st_mtime < STALE_SECONDS


def _clock(folder: Path) -> float:
    """The time of the file system, for clocks of machines differ; ours where we may not write."""
    try:
        with tempfile.TemporaryFile(dir=folder) as fresh:
            return os.fstat(fresh.fileno()).st_mtime
    except OSError:
        return time.time()


def live_lease(directory: RunDirectory) -> Attempt | None:
    """The living attempt that holds the run."""
    try:
        attempt = holder(directory)
        return attempt if attempt is not None and is_alive(attempt, directory.lease) else None
    except (FileNotFoundError, NotADirectoryError):
        return None


class RunLease:
    """A context in which this process holds the run; ``RunLocked`` if another attempt does."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.attempt = Attempt.mine()
        self.looked = time.monotonic()
        self.cancelled = False  # whether somebody asked for it, as of the last look
        self._over = threading.Event()

    def __enter__(self) -> Self:
        try:
            with locked(self.directory.lock, LOCK_SECONDS):
                self._take()
        except Timeout:
            raise RunLocked(f"another process runs {self.directory.path}") from None
        threading.Thread(target=self._beat, daemon=True, name="lease").start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        with contextlib.suppress(OSError, Timeout):  # then it is stale: this process is over
            if not self.directory.path.is_dir():
                return  # somebody has removed it, and the lock would make it again
            with locked(self.directory.lock, LOCK_SECONDS):
                if self._own():
                    self.directory.lease.unlink(missing_ok=True)

    def check(self, at_once: bool = False) -> None:
        """Raise ``LeaseLost`` unless the run is ours; looks once a second, or ``at_once``."""
        if not at_once and time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        self.cancelled = patiently(self.directory.cancel.exists)
        if not self._own():
            gone = not self.directory.path.is_dir()
            what = "somebody has removed" if gone else "a newer attempt has"
            raise LeaseLost(f"{what} {self.directory.path}")

    def _take(self) -> None:
        path = self.directory.lease
        fresh = path.with_name(f".{path.name}.{self.attempt.token}")
        write_json(fresh, asdict(self.attempt))
        try:
            held, superseded = holder(self.directory), os.environ.get(SUPERSEDED_TOKEN)
            if held is not None and held.token != superseded and is_alive(held, path):
                raise RunLocked(f"another process runs {self.directory.path}")
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)

    def _own(self) -> bool:
        held = holder(self.directory)
        return held is not None and held.token == self.attempt.token

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            try:
                if not self._own():
                    return
                os.utime(self.directory.lease)
            except OSError:  # the file system is away: try again
                continue


def _machine() -> str:
    """This boot of this kernel, and this space of process ids; empty where nobody can tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{os.uname().nodename} {int(psutil.boot_time())}"
