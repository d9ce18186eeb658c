"""Processes of their own that need not import for seconds before they begin.

``multiprocessing``'s fork server imports once what a command or a worker imports, and each process
is forked from it: it can be killed, has an environment, a folder and an exit code like any other.
tests/test_package.py and tests/cli/test_start.py, and whatever SLURM, Ray and the launchers start,
begin cold, as for a user.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

# not fewstep.cli, which looks at the terminal and the environment when it is imported
IMPORTED = (
    *("fewstep.sweeps.plan", "fewstep.experiments.run", "fewstep.experiments.tracking.sync"),
    *("fewstep.analysis", "fewstep.reports.report", "mlflow", "matplotlib.pyplot", "typer", "rich"),
    *("torch._dynamo", "scipy.linalg"),
)

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(list(IMPORTED))


def _begin(
    module: str,
    arguments: Sequence[str],
    cwd: str,
    environment: Mapping[str, str],
    said: Sequence[str],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    os.chdir(cwd)
    for descriptor, path in enumerate(said, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def start(
    module: str, *arguments: object, cwd: Path, environment: Mapping[str, str], out: Path, err: Path
) -> BaseProcess:
    """``python -m module arguments...``, started; what it says goes to ``out`` and ``err``."""
    given = (module, list(map(str, arguments)), str(cwd), dict(environment), (str(out), str(err)))
    process = _forkserver.Process(target=_begin, args=given)
    process.start()
    return process
