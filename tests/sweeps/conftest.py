"""Sweeps written into a file of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.sweeps import definition
from fewstep.sweeps.definition import Sweep


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Sweep]:
    def write_and_load(text: str, name: str = "mine.yaml") -> Sweep:
        (tmp_path / name).write_text(text)
        return definition.load(str(tmp_path / name))

    return write_and_load
