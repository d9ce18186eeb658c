"""Finished runs that several tests look at; each is made once, by the real command."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import TINY, TINY_DIT, succeed


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run of flow matching on 2-D points, and one of its rival."""
    folder = tmp_path_factory.mktemp("vectors")
    for rate in ("1e-3", "2e-3"):
        given = ("training.steps=20", "evaluation.steps=[1]", f"training.lr={rate}")
        succeed("train", *TINY, *given, cwd=folder)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run of flow matching on digits."""
    folder = tmp_path_factory.mktemp("images")
    given = ("training.steps=12", "training.checkpoint_every=4", "evaluation.steps=[1,2]")
    succeed("train", *TINY_DIT, *given, "evaluation.extractor=raw", cwd=folder)
    return folder
