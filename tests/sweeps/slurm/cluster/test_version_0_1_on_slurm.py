"""Jobs that version 0.1 has queued run with this version: their scripts name its modules."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from helpers.commands import wait_for
from helpers.slurm import Box

from fewstep.experiments.store.json_files import read_json, write_json
from fewstep.experiments.store.run_directory import RunDirectory

pytestmark = pytest.mark.xdist_group("slurm")  # one cluster, in one process

FIXTURE = Path(__file__).parents[3] / "fixtures/v0_1"
ARRAY, FINALIZER = "4802b3e2931e", "d72f758dfbd9"
OLD_PYTHON, OLD_ROOT = "/tmp/old/.venv/bin/python", "/tmp/fx/"


def submit(box: Box, folder: Path, after: str = "") -> str:
    """Submit the script of a submission as 0.1 wrote it, less its paths and its delay; its job."""
    (script,) = folder.glob("*_submission.sh")
    text = script.read_text().replace(OLD_ROOT, f"{folder.parents[3]}/")
    assert OLD_PYTHON in text
    lines = text.replace(OLD_PYTHON, sys.executable).splitlines()
    kept = [line for line in lines if not line.startswith("#SBATCH --begin")]
    script.write_text("\n".join(kept).replace("afterany:55892581", f"afterany:{after}") + "\n")
    job = box.run("sbatch", "--parsable", script, cwd=folder.parents[3]).strip()
    manifest = read_json(folder / "manifest.json") or {}
    of = {"of": [after]} if after else {}
    write_json(folder / "manifest.json", {**manifest, "job": job, **of})
    return job


def test_its_queued_scripts_run_and_finalize(tmp_path: Path, box: Box) -> None:
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    sweep = tmp_path / "runs/old"
    keys = [key for task in (read_json(sweep / "_slurm" / ARRAY / "manifest.json") or {})["tasks"]
            for key in task]  # fmt: skip
    runs = [RunDirectory(sweep / key) for key in keys]
    assert [run.status() for run in runs] == ["new", "new"]
    job = submit(box, sweep / "_slurm" / ARRAY)
    submit(box, sweep / "_slurm" / FINALIZER, after=job)

    def logs() -> str:
        return "\n".join(file.read_text() for file in sweep.glob("_slurm/*/*.out"))

    # not an empty queue: what 0.1 had lost is submitted again, with its delay of two hours
    wait_for(lambda: "report: exit code" in logs(), "the finalizer", 200, every=0.5)
    assert [run.status() for run in runs] == ["done", "done"], logs()
    assert [run.attempts()[0]["job"]["id"] for run in runs] == [f"{job}_0", f"{job}_1"]
    assert "sync: exit code 0" in logs()
    assert "report: exit code 0" in logs()
    assert (sweep / "report/table.md").exists()
