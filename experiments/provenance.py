"""Where a result comes from: commit, versions, host, and the source it was made by."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

import fewstep
from fewstep.experiments.rundir import Json
from fewstep.files import replacing

PACKAGES = ("torch", "numpy", "scipy", "hydra-core", "omegaconf", "safetensors")
JOB = "FEWSTEP_JOB"  # JSON: what a launcher says of itself, for status and for its own next attempt


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def source_hash(thing: object) -> str:
    """12 hex digits of the hash of the code behind an objective or a backbone.

    The file that defines its class, and those of the same room that it takes anything from: paths
    and samplers, embeddings. So a changed sign is seen wherever it stands.
    """
    return _hash(type(thing).__module__)


@cache  # a plan asks for thousands, and what was imported stays as it is
def _hash(defining: str) -> str:
    digest = hashlib.sha256()
    for module in sorted(_sources(defining, set())):
        file = getattr(sys.modules[module], "__file__", None)
        digest.update(Path(file).read_bytes() if file else b"")
    return digest.hexdigest()[:12]


def _sources(module: str, seen: set[str]) -> set[str]:
    """``module`` and, transitively, the modules of our rooms that its names come from."""
    seen.add(module)
    for value in vars(sys.modules[module]).values():
        origin = getattr(value, "__module__", None) or ""
        ours = origin.startswith(("fewstep.objectives", "fewstep.backbones"))
        if ours and origin not in seen and origin in sys.modules:
            _sources(origin, seen)
    return seen


@cache
def commit() -> Json:
    """The commit of the checkout fewstep runs from, and whether it was edited; None outside git."""

    def git(*arguments: str) -> str | None:
        folder = Path(fewstep.__file__).resolve().parent
        try:
            told = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return told.stdout.strip() if told.returncode == 0 else None

    # a wheel may be installed inside somebody else's checkout: that commit is not ours
    tracked = git("ls-files", "--error-unmatch", "__init__.py")
    if tracked is None:
        return {"commit": None, "dirty": None}
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


@cache
def packages() -> str:
    """All that is installed, a line ``name==version`` each: what a lock file would pin."""
    found = {f"{d.metadata['Name']}=={d.version}" for d in distributions()}
    return "".join(f"{line}\n" for line in sorted(found, key=str.lower))


def lock() -> str:
    """12 hex digits of the hash of ``packages()``."""
    return hashlib.sha256(packages().encode()).hexdigest()[:12]


def keep_packages(folder: Path) -> None:
    """Write ``packages()`` to ``folder``, once, under the name that ``lock()`` gives it."""
    file = folder / f"{lock()}.txt"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as other:
            other.write_text(packages(), encoding="utf-8")


def made_by() -> Json:
    """By which source, packages, machine and job something is made here and now."""
    job = os.environ.get(JOB)
    return {
        **commit(),
        "lock": lock(),
        "host": platform.node(),
        "job": json.loads(job) if job else None,
    }


def environment() -> Json:
    """The software and the machine."""
    return {
        **made_by(),
        "fewstep": fewstep.__version__,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "command": " ".join(sys.argv),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
