"""Real data and pretrained weights for tests, which are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("FEWSTEP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def real_data(*names: str) -> Path:
    """The folder that contains ``names``; where one is missing, the test is skipped."""
    for name in names:
        if not (FOLDER / name).is_dir():
            pytest.skip(f"no {FOLDER / name}: set FEWSTEP_DATA to the folder with {name}")
    return FOLDER
