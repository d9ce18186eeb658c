"""One Ray for all tests of a process that want one: starting it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Ray with two cores and a GPU that is not there, started in this process."""
    from fewstep.sweeps.ray import cluster
    from fewstep.sweeps.ray.settings import RaySettings

    with cluster.connected(RaySettings(cpus=2, gpus=1)):
        yield
