"""A real MLflow server over a real PostgreSQL, ours alone, that can be killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS_TO_START = 60.0
# No workers for jobs nobody starts: they take the first half minute of both cores.
SETTINGS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def postgres_binaries() -> Path | None:
    """The folder of ``initdb`` and ``postgres``: on the path, or where Debian has them."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent  # all of them are where that link leads
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda f: float(f.parent.name))
    return folders[-1] if folders else None


class Process:
    """A command that runs in a session of its own until it is killed, with all it has started."""

    def __init__(self, command: list[object], home: Path, user: str | None = None) -> None:
        self.command, self.home, self.user = list(map(str, command)), home, user
        self.log = home / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, ready: Callable[[], bool]) -> None:
        """Start, and return once ``ready()``."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.home, user=self.user, start_new_session=True,
                env=os.environ | SETTINGS, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        end = time.monotonic() + SECONDS_TO_START
        while not ready():
            said = self.log.read_text()
            assert self.process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.1)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, how)
            self.process.wait(20)
            self.process = None


class Postgres(Process):
    """PostgreSQL on a socket in a folder of its own."""

    def __init__(self, binaries: Path, home: Path) -> None:
        # it refuses to run as root; Debian's package brings a user for it
        user = "postgres" if os.getuid() == 0 else None
        if user:
            shutil.chown(home, user)
        data, self.binaries = home / "data", binaries
        initdb = [binaries / "initdb", "-D", data, "-U", "mlflow", "-A", "trust", "-E", "UTF8",
                  "--locale=C", "--no-sync"]  # fmt: skip
        subprocess.run(initdb, cwd=home, user=user, check=True, capture_output=True)
        options = ["-k", home, "-c", "listen_addresses=", "-F"]
        super().__init__([binaries / "postgres", "-D", data, *options], home, user)
        self.uri = f"postgresql+psycopg://mlflow@/postgres?host={home}"

    def up(self) -> None:
        self.start(self._ready)

    def _ready(self) -> bool:
        asked = [self.binaries / "pg_isready", "-q", "-h", self.home]
        return subprocess.run(asked, check=False).returncode == 0


class Server(Process):
    """``mlflow server`` with its artifacts in ``home``, always on the same port."""

    def __init__(self, store: str, home: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        script = Path(sys.executable).with_name("mlflow")
        where = ["--backend-store-uri", store, "--artifacts-destination", home / "artifacts"]
        super().__init__([script, "server", *where, "--port", self.port, "--workers", 1], home)

    def up(self) -> None:
        self.start(self._ready)

    def _ready(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
        except OSError:
            return False
        return True


@contextmanager
def server_on_postgres(binaries: Path) -> Iterator[tuple[Server, Postgres]]:
    """Both, up; down and gone at the end."""
    # below /tmp: a socket's path may have 107 bytes, and another user must be able to enter
    home = Path(tempfile.mkdtemp(prefix="fewstep-pg-", dir="/tmp"))
    home.chmod(0o755)
    (home / "db").mkdir()
    (home / "server").mkdir()
    database = Postgres(binaries, home / "db")
    server = Server(database.uri, home / "server")
    try:
        database.up()
        server.up()
        yield server, database
    finally:
        server.kill()
        database.kill(signal.SIGQUIT)
        shutil.rmtree(home)
