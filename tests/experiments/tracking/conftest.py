"""A run root with its MLflow database, and a sweep in it: what tests of a sync begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import tracking as fake

from fewstep.experiments.store.run_directory import SweepDirectory
from fewstep.experiments.tracking.sync import sync, tracking_uri


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run root whose path needs quoting; its database is shared by the module."""
    return tmp_path_factory.mktemp("run root")


@pytest.fixture(scope="module")
def client(root: Path) -> Any:
    sync([], root)  # creates the database, under the lock
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri(root))


@pytest.fixture
def sweep(root: Path, request: pytest.FixtureRequest) -> SweepDirectory:
    """Of the module's KEYS, called as the test."""
    return fake.make_sweep(root, request.node.name.removeprefix("test_"), request.module.KEYS)
