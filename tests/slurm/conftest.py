"""One cluster for all tests of this folder, which run in one process (their xdist_group)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.slurm import Box, lacking


@pytest.fixture(scope="session")
def cluster() -> Iterator[Box]:
    """Started once; skips, and says what is missing, where there can be none."""
    if why := lacking():
        pytest.skip(why)
    # short: UNIX sockets live below it
    made = Box(Path(tempfile.mkdtemp(prefix="fsbox", dir="/tmp")), array=5, port=17817, grace=20)
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
