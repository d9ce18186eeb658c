"""A run's folder is removed while the run is at work: that attempt leaves, and the run is new."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.tiny import checkpoint_steps, tiny

from fewstep.experiments.run import Interrupted, prepare, run
from fewstep.experiments.store.lease import LeaseLost, RunLease
from fewstep.experiments.store.run_directory import WORK, RunDirectory

SETTINGS = ("training.steps=9", "training.checkpoint_every=2", "training.log_every=1")


@pytest.mark.parametrize("told_to_stop", [False, True])
@pytest.mark.parametrize(
    ("phase", "done"), [("train", 3), ("train", 4), ("train", 9), ("evaluate", 1)]
)
def test_it_leaves_without_making_the_folder_again(
    tmp_path: Path, told_to_stop: bool, phase: str, done: int
) -> None:
    """Removed before it saves, at its end, and before it writes a cell; it looks once a second."""
    directory = prepare(tiny(tmp_path, *SETTINGS, "evaluation.steps=[1]"))

    def remove(now: str, so_far: int, total: int, rate: float) -> None:
        if now == phase and so_far >= done and directory.path.is_dir():
            shutil.rmtree(directory.path)

    def stop() -> bool:
        return told_to_stop and not directory.path.is_dir()

    with pytest.raises(LeaseLost, match="somebody has removed"):
        run(directory, stop, remove)
    assert not directory.path.exists()


def began_at(directory: RunDirectory) -> int:
    """The first step that the run makes."""
    steps: list[int] = []
    run(directory, on_progress=lambda phase, done, total, rate: steps.append(done))
    return steps[0]


def interrupted(tmp_path: Path) -> RunDirectory:
    """A run that left after four steps."""
    directory = prepare(tiny(tmp_path, *SETTINGS))
    with pytest.raises(Interrupted):
        run(directory, stop=lambda: directory.last_step() == 4)
    assert checkpoint_steps(directory) == [4, 5]
    return directory


def test_what_was_left_of_a_removed_run_is_no_beginning_of_the_next(tmp_path: Path) -> None:
    directory = interrupted(tmp_path)
    for name in WORK:  # an attempt that was saving as the folder was removed
        file = directory.path / name
        if not file.exists():
            file.mkdir() if "." not in name and name != "cancel" else file.touch()
    (directory.path / "mine.txt").touch()
    (directory.path / "spec.json").unlink()
    assert directory.status() == "new"
    prepare(tiny(tmp_path, *SETTINGS))
    left = {path.name for path in directory.path.iterdir()}
    assert left == {"spec.json", "request.json", "run.lock", "mine.txt"}
    assert began_at(directory) == 1
    assert [row["step"] for row in directory.metrics()] == list(range(1, 10))
    assert len(directory.attempts()) == 1


def test_a_folder_that_is_elsewhere_is_not_emptied(tmp_path: Path) -> None:
    directory = interrupted(tmp_path / "runs")
    elsewhere = shutil.move(directory.checkpoints, tmp_path / "big disk")
    directory.checkpoints.symlink_to(elsewhere)
    (directory.path / "spec.json").unlink()
    prepare(tiny(tmp_path / "runs", *SETTINGS))
    assert not directory.checkpoints.exists()
    assert len(list(elsewhere.iterdir())) == 2


def test_what_somebody_is_at_work_on_stays(tmp_path: Path) -> None:
    directory = interrupted(tmp_path)
    (directory.path / "spec.json").unlink()
    with RunLease(directory):
        prepare(tiny(tmp_path, *SETTINGS))
    assert checkpoint_steps(directory) == [4, 5]
    assert directory.spec() is not None


def test_what_another_has_begun_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = interrupted(tmp_path)
    spec = (directory.path / "spec.json").read_bytes()
    (directory.path / "spec.json").unlink()

    def enter(claim: RunLease) -> RunLease:
        (directory.path / "spec.json").write_bytes(spec)
        return entered(claim)

    entered = RunLease.__enter__
    monkeypatch.setattr(RunLease, "__enter__", enter)
    prepare(tiny(tmp_path, *SETTINGS))
    assert checkpoint_steps(directory) == [4, 5]


def test_a_run_that_is_done_and_lost_its_spec_keeps_what_it_found(tmp_path: Path) -> None:
    directory = prepare(tiny(tmp_path, *SETTINGS, "evaluation.steps=[1]"))
    result = run(directory)
    (directory.path / "spec.json").unlink()
    assert prepare(tiny(tmp_path, *SETTINGS, "evaluation.steps=[1]")) == directory
    assert run(directory) == result
    assert len(directory.cells()) == 1


def test_records_make_no_folder_of_a_removed_run(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "gone")
    directory.write("result", {"provenance": {}})
    for file in (directory.cell_file("cell"), directory.rung_file(3)):
        with pytest.raises(FileNotFoundError):
            directory.write_file(file, {})
    assert not directory.path.exists()
