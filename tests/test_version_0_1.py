"""A run root written by version 0.1.0 (``fixtures/v0_1``): later versions go on with it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from helpers.commands import fewstep, succeed
from submitit.core.utils import DelayedSubmission

from fewstep.experiments.store.run_directory import RunDirectory

FIXTURE = Path(__file__).parent / "fixtures/v0_1"
FLOW, STUDENT, INTERRUPTED = "c749a43780cb", "b7c9b3207ed9", "9b49803b1e2d"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_status_evaluate_report_and_sync_work_on_it(root: Path) -> None:
    status = succeed("status", "old", cwd=root)
    assert re.search(r"^11 runs: 6 done, 1 interrupted, 2 failed", status, re.M), status
    assert "6bae686d5d66 nan: the loss or its gradient is not finite at step 2" in status
    # a student, whose teacher is another run there; the cells that it had are not measured again
    before = RunDirectory(root / "runs/old" / STUDENT).cells()
    succeed("evaluate", f"old/{STUDENT}", "evaluation.steps=[3]", cwd=root)
    after = RunDirectory(root / "runs/old" / STUDENT).cells()
    assert {name: after[name] for name in before} == before
    (new,) = after.keys() - before.keys()
    assert after[new]["metric"]["id"] == before[min(before)]["metric"]["id"]
    assert "Shortcut" in succeed("report", "old", cwd=root)
    (row,) = [line for line in (root / "runs/old/report/table.md").read_text().splitlines()
              if line.startswith("| Shortcut")]  # fmt: skip
    assert "0.132" in row  # the mean of 0.141 and 0.122, as version 0.1 had it
    first, again = succeed("sync", "old", cwd=root), succeed("sync", "old", cwd=root)
    assert "9 created, 0 updated, 0 unchanged" in first  # two runs have not begun
    assert "0 created, 0 updated, 9 unchanged" in again


def test_the_same_sweep_file_finds_its_runs_and_resumes_what_was_interrupted(root: Path) -> None:
    plan = succeed("sweep", "old.yaml", "--plan", cwd=root)
    assert "10 runs (1 new, 1 interrupted, 2 failed, 0 cells, 6 stale, 0 cached)" in plan
    assert "defaults of fewstep 0.2, with which the sweep was begun (training.clip=1.0" in plan
    done = fewstep("sweep", "old.yaml", "objective=[interrupted]", "seeds=[0]", cwd=root)
    assert done.returncode == 1, done.stderr  # the failed runs of before are still failed
    run = RunDirectory(root / "runs/old" / INTERRUPTED)
    result = run.result()
    assert result is not None
    assert len(run.cells()) == 2
    first, second = run.attempts()
    assert (first["ended"], second["ended"], second["step"]) == ("interrupted", "done", 220)
    steps = [row["step"] for row in run.metrics()]
    assert steps == list(range(10, 2001, 10))  # none is lost and none is there twice


def test_what_queued_jobs_name_is_still_there() -> None:
    """The batch scripts start modules, and submitit's pickles name a class, of version 0.1."""
    for folder, module in (("4802b3e2931e", "job"), ("d72f758dfbd9", "collect")):
        (script,) = (FIXTURE / "runs/old/_slurm" / folder).glob("*_submission.sh")
        (name,) = re.findall(r"-m (fewstep\.[\w.]+) ", script.read_text())
        assert name == f"fewstep.sweeps.slurm.{module}"
        __import__(name)
    for index in range(2):
        pickle = FIXTURE / f"runs/old/_slurm/4802b3e2931e/55892581_{index}_submitted.pkl"
        task = DelayedSubmission.load(pickle).function
        assert type(task).__module__ == "fewstep.sweeps.slurm.array_task"
        assert (Path(task.folder).name, task.index) == ("4802b3e2931e", index)
