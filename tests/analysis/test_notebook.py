"""examples/analysis.ipynb runs from top to bottom on files as runs write them."""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat
import pytest
from helpers.synthetic_runs import Run, write_sweep

NOTEBOOK = Path(__file__).parents[2] / "examples" / "analysis.ipynb"


def test_the_notebook_runs_and_shows_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [Run("Flow", s, {1: 8.0 + s, 2: 4.0 + s / 10}) for s in range(3)]
    runs += [Run("sCM", s, {1: 2.0 + s / 4, 2: 1.9 + s / 7}) for s in range(3)]
    runs += [Run("Shortcut", 0, failure="nan")]
    monkeypatch.setenv("FEWSTEP_SWEEP", str(write_sweep(tmp_path, runs)))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept without
    done = nbclient.NotebookClient(notebook, timeout=120, resources={}).execute()
    said = "\n".join(
        output.get("text", "") or str(output.get("data", ""))
        for cell in done.cells
        for output in cell.get("outputs", [])
    )
    for fact in ("FD-digits-cnn@597", "sCM / Flow at 1: 0.25", "9.00 ± 2.48 (3)", "image/png",
                 "at least 10 seeds, got 3"):  # fmt: skip
        assert fact in said
