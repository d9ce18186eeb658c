"""The tutorial of a first sweep, on a real cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import wait_for
from helpers.pages import Tutorial
from helpers.slurm import Box

pytestmark = pytest.mark.xdist_group("slurm faults")  # one cluster, in one process


def test_a_first_slurm_sweep(tmp_path: Path, box: Box) -> None:
    tutorial = Tutorial("tutorials/first_slurm_sweep.md", tmp_path, box.environment)
    report = tmp_path / "runs/first/report/table.md"
    # "When the queue is empty": before the page's last command
    before, after = tutorial.text.split("## The table")
    tutorial.text = before
    tutorial.run()
    assert "submitted" not in tutorial.said  # the page's second submission
    wait_for(lambda: report.exists() and box.idle(), "the report of the last job", 300, every=0.5)
    tutorial.text = after
    tutorial.run()
    assert (tmp_path / "paper/table.tex").exists()
    assert "Consistency" in report.read_text()
