"""Runs that are no longer in their sweep, but still in jobs or at work; no cluster is needed."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers.commands import TINY
from helpers.slurm_commands import Commands, sweep_of

from fewstep.cli.commands import sweep as launch
from fewstep.cli.commands.cancel import cancel
from fewstep.cli.commands.status import queued_runs, status
from fewstep.errors import UserError
from fewstep.experiments.store.json_files import write_json
from fewstep.experiments.store.lease import Attempt, RunLease
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps.definition.resources import Resources
from fewstep.sweeps.slurm.settings import SlurmSettings
from fewstep.sweeps.slurm.submission import Slurm
from fewstep.sweeps.status import orphaned_runs


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands(tmp_path / "bin", monkeypatch)
    made.program("scancel", 'echo "$@" >> cancelled; for job in "$@"; do rm queue/$job; done')
    monkeypatch.setenv("COLUMNS", "300")
    return made


@pytest.fixture
def sweep(tmp_path: Path, commands: Commands) -> SweepDirectory:
    """With a, in job 100_0; b and c, which were in it, are in jobs 100_1 and 100_2."""
    made = sweep_of(tmp_path, a=None, b=None, c=None)
    runs = made.runs()
    submitted = Slurm(made, SlurmSettings(finalize=False))
    submitted.submit(runs, {run.key: Resources() for run in runs})
    kept = {**(made.plan() or {}), "runs": (made.plan() or {})["runs"][:1]}
    write_json(made.path / "sweep.json", kept)
    return made


def left(sweep: SweepDirectory) -> list[str]:
    return [run.key for run in orphaned_runs(sweep, queued_runs(sweep))]


def cancelled(commands: Commands) -> list[str]:
    file = commands.folder / "cancelled"
    return file.read_text().split() if file.exists() else []


def test_status_tells_of_them(sweep: SweepDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    status("mine", runs=str(sweep.path.parent))
    told = capsys.readouterr().out
    assert "1 run: 1 queued" in told
    assert (
        "no longer in the sweep, but still queued or running: 2 runs (b, c); "
        "fewstep cancel mine --orphaned stops them\n"
    ) in told


@pytest.mark.parametrize(
    ("keys", "only", "jobs_of", "stays"),
    [
        ([], False, ["100_0", "100_1", "100_2"], []),
        (["b"], False, ["100_1"], ["c"]),
        ([], True, ["100_1", "100_2"], []),
        (["c"], True, ["100_2"], ["b"]),
    ],
)
def test_they_can_be_cancelled(
    sweep: SweepDirectory,
    commands: Commands,
    keys: list[str],
    only: bool,
    jobs_of: list[str],
    stays: list[str],
) -> None:
    assert left(sweep) == ["b", "c"]
    cancel("mine", keys, orphaned=only, runs=str(sweep.path.parent))
    assert cancelled(commands) == jobs_of
    assert left(sweep) == stays
    for key in {"b", "c"} - set(stays):
        assert (RunDirectory(sweep.path / key).failure() or {})["class"] == "cancelled"


def test_one_whose_directory_is_gone_is_still_in_its_job(
    sweep: SweepDirectory, commands: Commands
) -> None:
    shutil.rmtree(sweep.path / "b")
    assert left(sweep) == ["b", "c"]
    cancel("mine", ["b"], runs=str(sweep.path.parent))
    assert cancelled(commands) == ["100_1"]
    assert not (sweep.path / "b").exists()


def test_one_that_is_at_work_here_is_asked_to_stop_and_of_others_nothing_is_known(
    tmp_path: Path,
) -> None:
    sweep = sweep_of(tmp_path, a=None)
    there, gone = (RunDirectory(sweep.path / key) for key in ("there", "gone"))
    for run in (there, gone):
        run.path.mkdir()
    write_json(gone.lease, asdict(replace(Attempt.mine(), born=0.0)))  # it was killed
    with RunLease(there):
        assert left(sweep) == ["there"]
        cancel("mine", ["there"], runs=str(tmp_path))
        assert there.cancel.exists()
    assert left(sweep) == []
    with pytest.raises(UserError, match="no run 'there'"):
        cancel("mine", ["there"], runs=str(tmp_path))


def test_sweep_says_so_when_a_setting_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(launch, "launch", lambda *told: 0)
    (tmp_path / "mine.yaml").write_text("base: {data: digits}\naxes: {objective: [shortcut]}\n")

    def sweep(steps: int) -> str:
        settings = [*TINY, f"training.steps={steps}"]
        file, root = str(tmp_path / "mine.yaml"), str(tmp_path / "runs")
        assert launch.sweep(file, settings, runs=root) == 0
        return capsys.readouterr().out

    sweep(7)
    [run] = SweepDirectory(tmp_path / "runs/mine").runs()
    with RunLease(run):
        assert "no longer in the sweep" not in sweep(7)
        told = sweep(8)
    assert f"no longer in the sweep, but still queued or running: 1 run ({run.key})" in told
