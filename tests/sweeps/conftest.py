"""Sweeps written into a file of their own, and one Ray for all tests that want one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fewstep.sweeps.definition import parse as definition
from fewstep.sweeps.definition.parse import Sweep


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Sweep]:
    def write_and_load(text: str, name: str = "mine.yaml") -> Sweep:
        (tmp_path / name).write_text(text)
        return definition.load(str(tmp_path / name))

    return write_and_load


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """Ray with two cores and a GPU that is not there; starting it takes seconds."""
    from fewstep.sweeps.ray.environment import ray_environment
    from fewstep.sweeps.ray.settings import RaySettings

    with ray_environment(own_cluster=True):
        from fewstep.sweeps.ray import cluster

        with cluster.connected(RaySettings(cpus=2, gpus=1)):
            yield
