"""``fewstep diagnose`` on a run and on a sweep, through the real command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from helpers.commands import fewstep, succeed, tree


@pytest.fixture
def run(vectors: Path, tmp_path: Path) -> Path:
    shutil.copytree(vectors / "runs", tmp_path / "runs")
    return sorted(tmp_path.glob("runs/train/*/spec.json"))[0].parent


def test_a_run_then_its_sweep(run, tmp_path):
    before = tree(run)
    told = succeed("diagnose", run.name[:6], "--samples", 200, cwd=tmp_path)
    assert re.search(r"^jump against the exact flow, RMS error +d = 1/128 +[\d.]+$", told, re.M)
    assert f"  {run}/diagnostics/diagnostics.json" in told.splitlines()
    names = {p.name for p in (run / "diagnostics").iterdir()}
    assert names == {"diagnostics.json", "diagnostics.npz", "loss_grid.png", "denoising.png",
                     "loss_vs_log_snr.png", "jump_error.png"}  # fmt: skip
    facts = json.loads((run / "diagnostics/diagnostics.json").read_text())
    assert (facts["key"], facts["rows"], len(facts["jump_error"])) == (run.name, 200, 8)
    after = tree(run)
    assert {k: v for k, v in after.items() if not k.startswith("diagnostics")} == before

    told = succeed("diagnose", "train", "--samples", 200, cwd=tmp_path)
    assert f"{run.name} Flow matching, seed 0: measured before" in told
    assert len(re.findall(r"Flow matching, seed 0: \d+ s", told)) == 1
    known = (run / "diagnostics/diagnostics.json").stat().st_mtime_ns
    assert known == after["diagnostics/diagnostics.json"][0]
    report = tmp_path / "runs/train/report"
    assert {p.name for p in report.iterdir()} == {
        "diagnostics.md", "jump_error.csv", "jump_error.png", "jump_error.pdf",
        "loss_vs_log_snr.csv", "loss_vs_log_snr.png", "loss_vs_log_snr.pdf",
    }  # fmt: skip


def test_what_cannot_be_diagnosed(run, tmp_path):
    other = next(p.parent for p in run.parent.glob("*/spec.json") if p.parent != run)
    (other / "result.json").unlink()
    for arguments, says in (
        ((other.name,), f"run {other.name} is not finished (running): train it to its end first"),
        (("nope",), "no run 'nope': neither a run directory, nor the beginning of a key under "
                    f"{tmp_path}/runs/, nor a sweep (choices: train)"),
        ((run.name, "--samples", "0"), "--samples must be"),
    ):  # fmt: skip
        done = fewstep("diagnose", *arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.startswith("error: ")
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1
