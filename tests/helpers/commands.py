"""The real command line: ``python -m fewstep ...`` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from helpers import warm

TIMEOUT_SECONDS = 180.0

# show what is deprecated, and the words of such a warning of fewstep
WARNING_ENVIRONMENT = {"PYTHONWARNINGS": "default::DeprecationWarning"}
DEPRECATED = "the old name will be removed in"

# a network and a data set on which thousands of steps take seconds
TINY = (
    "data=gaussians",
    "backbone.width=16",
    "backbone.depth=1",
    "training.batch_size=16",
    "training.validate_every=0",
)
TINY_DIT = (
    "data=digits",
    "backbone.width=16",
    "backbone.depth=1",
    "backbone.heads=2",
    "training.batch_size=16",
)


def environment() -> dict[str, str]:
    """This process' environment, less what would change where things go or how they look."""
    changing = ("FEWSTEP_DATA", "MLFLOW_TRACKING_URI", "COLUMNS", "FORCE_COLOR", "PYTHONPATH")
    return {k: v for k, v in os.environ.items() if k not in changing} | {"OMP_NUM_THREADS": "1"}


def start(*arguments: object, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    """The command, started with more ``variables``; its output comes with ``communicate``."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "fewstep", *map(str, arguments)],
        cwd=cwd,
        env={**environment(), **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Its end, awaited for at most ``TIMEOUT_SECONDS``."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end after {TIMEOUT_SECONDS} s:\n{out}\n{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(
    *arguments: object, cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """The command, run to its end, awaited for at most ``TIMEOUT_SECONDS``; it begins warm."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = warm.start(
            "fewstep", *arguments, cwd=cwd, environment=environment, out=out, err=err
        )
        process.join(TIMEOUT_SECONDS)
        late = process.exitcode is None
        if late:
            process.kill()
            process.join()
        said = out.read_text(), err.read_text()
        assert not late, f"no end after {TIMEOUT_SECONDS} s:\n{said[0]}\n{said[1]}"
        assert process.exitcode is not None
        return subprocess.CompletedProcess(arguments, process.exitcode, *said)


def fewstep(*arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in ``environment()`` and more ``variables``, run to its end."""
    return run(*arguments, cwd=cwd, environment={**environment(), **variables})


def succeed(*arguments: object, cwd: Path, **variables: str) -> str:
    """The command's stdout; fails the test, with all it said, unless it exits with 0."""
    done = fewstep(*arguments, cwd=cwd, **variables)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def wait_for(
    condition: Callable[[], object], what: str, seconds: float = 180.0, every: float = 0.05
) -> None:
    """Return once ``condition()`` holds, asked ``every`` so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        time.sleep(every)


def tree(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Every file under ``folder`` with its time of change and content."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None)
        for p in sorted(folder.rglob("*"))
    }
