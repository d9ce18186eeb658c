"""One cluster for each process of tests of this folder.

Most of their time is SLURM's own waiting, so they are two groups (``xdist_group``), side by side.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import TINY, environment
from helpers.slurm import PORT, Box, lacking
from helpers.slurm_sweep import BASE, long
from helpers.third_party import SLOW, third_party

from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory


@pytest.fixture(scope="session")
def cluster() -> Iterator[Box]:
    """Started once; skips, and says what is missing, where there can be none."""
    if why := lacking():
        pytest.skip(why)
    # short: UNIX sockets live below it
    made = Box(Path(tempfile.mkdtemp(prefix="fsbox", dir="/tmp")), array=3, port=PORT, grace=20)
    try:
        made.up()
        yield made
    finally:
        made.down()
        shutil.rmtree(made.state, ignore_errors=True)


@pytest.fixture
def box(cluster: Box) -> Iterator[Box]:
    """The cluster, with nothing in its queue before and after."""
    yield cluster
    cluster.clear()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The long run, done on this machine without interruption."""
    folder = tmp_path_factory.mktemp("undisturbed")
    third_party(folder / "slow", "slow", SLOW)
    (folder / "mine.yaml").write_text(f"{BASE}axes:\n  case:\n  - {long('a')}\n")
    words = ["sweep", "mine.yaml", *TINY, "tracking.enabled=false"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fewstep", *words],
        cwd=folder,
        env={**environment(), "PYTHONPATH": f"{folder}/slow"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [run] = SweepDirectory(folder / "runs/mine").runs()
    return run
