"""Where a result comes from: commit, versions, host, and the source it was made by."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from fewstep._version import __version__
from fewstep.experiments.store.json_files import Json
from fewstep.files import write_file

PACKAGES = ("torch", "numpy", "scipy", "hydra-core", "omegaconf", "safetensors")
JOB = "FEWSTEP_JOB"  # JSON: what a launcher says of itself, for status and for its own next attempt


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def commit() -> Json:
    """The commit of the checkout fewstep runs from, and whether it was edited; None outside git."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, timeout=20, check=True
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    # a wheel may be installed inside somebody else's checkout: that commit is not ours
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


@cache
def packages() -> str:
    """All that is installed, a line ``name==version`` each: what a lock file would pin."""
    lines = {f"{d.metadata['Name']}=={d.version}" for d in distributions()}
    return "".join(f"{line}\n" for line in sorted(lines, key=str.lower))


def lock() -> str:
    """12 hex digits of the hash of ``packages()``."""
    return hashlib.sha256(packages().encode()).hexdigest()[:12]


def save_packages(folder: Path) -> None:
    """Write ``packages()`` to ``folder``, once, under the name that ``lock()`` gives it."""
    file = folder / f"{lock()}.txt"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_file(file, packages())


def provenance_record() -> Json:
    """By which source, packages, machine and job something is made here and now."""
    job = os.environ.get(JOB)
    return {
        **commit(),
        "fewstep": __version__,
        "lock": lock(),
        "host": platform.node(),
        "job": json.loads(job) if job else None,
    }


def environment() -> Json:
    """The software and the machine."""
    installed = dict(line.split("==", 1) for line in packages().splitlines())
    return {
        **provenance_record(),
        "python": platform.python_version(),
        "versions": {name: installed.get(name) for name in PACKAGES},
        "platform": platform.platform(),
        "command": " ".join(sys.argv),
    }
