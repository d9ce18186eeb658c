"""Cells of earlier training steps: what training to there gives, and never a run's result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import last_tensors, times_changed, tiny
from safetensors.torch import load_file
from torch import Tensor

from fewstep.analysis import load, summarise
from fewstep.analysis.filters import select
from fewstep.analysis.over_training import over_training
from fewstep.errors import UserError
from fewstep.experiments.run import Interrupted, prepare, run
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.experiments.tracking.run_record import read_record
from fewstep.reports.report import write_report
from fewstep.sweeps.definition.parse import load as load_sweep
from fewstep.sweeps.plan import plan
from fewstep.sweeps.status import run_status

EIGHT = ("training.steps=8", "evaluation.steps=[1,2]", "training.checkpoint_every=3")


def made(root: Path, *overrides: str) -> RunDirectory:
    directory = prepare(tiny(root, *EIGHT, *overrides))
    run(directory)
    return directory


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return made(tmp_path_factory.mktemp("watched"), "evaluation.at_steps=[4,6]")


def values(directory: RunDirectory) -> dict[tuple[int | None, int], float]:
    """By training step (None: the last) and number of sampling steps."""
    return {
        (r["cell"].get("at_step"), r["cell"]["steps"]): r["value"]
        for r in directory.cells().values()
    }


def kept(directory: RunDirectory, step: int) -> dict[str, Tensor]:
    return load_file(directory.weights / f"step-{step:08d}" / "tensors.safetensors")


def test_they_are_what_training_to_there_gives(tmp_path: Path, watched: RunDirectory) -> None:
    short = prepare(tiny(tmp_path, "training.steps=4", "evaluation.steps=[1,2]"))
    run(short)  # its schedule is constant, so its first 4 steps are the same
    alone = made(tmp_path)
    assert alone.key == watched.key
    found, lone, early = values(watched), values(alone), values(short)
    assert len(found) == 6
    assert {k: v for k, v in found.items() if k[0] is None} == lone
    assert {steps: found[4, steps] for steps in (1, 2)} == {s: early[None, s] for s in (1, 2)}
    assert found[4, 1] != found[6, 1] != found[None, 1]
    ours, theirs = last_tensors(watched), last_tensors(alone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert kept(watched, 4).keys() < theirs.keys()  # no optimiser
    assert set(watched.cells()) > set(alone.cells())  # those of the last step keep their files


def test_a_resumed_run_keeps_the_same(tmp_path: Path, watched: RunDirectory) -> None:
    again = prepare(tiny(tmp_path, *EIGHT, "evaluation.at_steps=[4,6]"))
    reached = 0

    def stop() -> bool:
        return reached >= 5

    def note(phase: str, done: int, total: int, rate: float) -> None:
        nonlocal reached
        reached = done

    with pytest.raises(Interrupted):
        run(again, stop, note)
    (again.checkpoints / "step-00000005" / "tensors.safetensors").unlink()  # from 3 once more
    run(again)
    assert values(again) == values(watched)
    for step in (4, 6):
        ours, theirs = kept(again, step), kept(watched, step)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_step_that_has_passed_is_refused_before_anything_is_written(
    tmp_path: Path, watched: RunDirectory
) -> None:
    root = watched.path.parent.parent
    before = times_changed(watched.path)
    with pytest.raises(UserError, match=r"is at step 8 and has kept no weights of step 5: leave 5"):
        prepare(tiny(root, *EIGHT, "evaluation.at_steps=[4,5]"))
    assert times_changed(watched.path) == before
    # what is evaluated already needs no weights
    alone = made(tmp_path, "evaluation.at_steps=[4]")
    for file in (alone.weights / "step-00000004").iterdir():
        file.unlink()
    (alone.weights / "step-00000004").rmdir()
    prepare(tiny(tmp_path, *EIGHT, "evaluation.at_steps=[4]"))
    with pytest.raises(UserError, match="no weights of step 4"):
        prepare(tiny(tmp_path, *EIGHT, "evaluation.at_steps=[4]", "evaluation.steps=[4]"))


def test_post_hoc_averages_at_steps_where_they_are_stored(tmp_path: Path) -> None:
    stored = (
        "training.posthoc_ema=[0.05,0.1]", "training.posthoc_every=2",
        "evaluation.weights=[{sigma_rel:0.1}]",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"sigma_rel-0.1 is known at every training.posthoc_every"):
        tiny(tmp_path, *EIGHT, *stored, "evaluation.at_steps=[5]")
    long = made(tmp_path, *stored, "evaluation.at_steps=[4]")
    short = prepare(tiny(tmp_path, *EIGHT, *stored, "training.steps=4"))
    run(short)
    assert values(long)[4, 1] == values(short)[None, 1]


def test_a_search_and_status_look_at_the_last_step(watched: RunDirectory) -> None:
    found = values(watched)
    assert run_status(watched).values == {1: found[None, 1], 2: found[None, 2]}


def test_mlflow_has_a_curve_over_images_for_each_number_of_calls(watched: RunDirectory) -> None:
    record = read_record(watched, watched.spec() or {}, {}, {})
    found = values(watched)
    curve = {p.step: p.value for p in record.values if p.key == "fd_nfe_2_vs_images"}
    assert curve == {64: found[4, 2], 96: found[6, 2], 128: found[None, 2]}
    assert {p.step: p.value for p in record.values if p.key == "fd_vs_nfe"} == {
        1: found[None, 1], 2: found[None, 2]
    }  # fmt: skip


def test_the_frame_the_curves_and_the_report(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    axes = "axes: {objective: [flow_matching, consistency]}\nseeds: 2\n"
    file.write_text(f"name: study\nbase: {{data: digits}}\n{axes}")
    overrides: list[Any] = [
        "backbone.width=16", "backbone.depth=1", "backbone.heads=2", "training.batch_size=16",
        "evaluation.extractor=raw", *EIGHT, "evaluation.at_steps=[4]", f"runs={tmp_path}",
    ]  # fmt: skip
    planned = plan(load_sweep(str(file)).with_overrides(overrides))
    planned.write()
    for member in planned.runs:
        run(member.directory)
    frame = load(SweepDirectory(tmp_path / "study"))
    assert sorted(frame["at_step"].dropna().unique()) == [4]
    cells = select(frame, {})
    assert cells["at_step"].isna().all()
    assert len(cells) == 8
    curves = over_training(frame, cells)
    assert list(curves) == [1, 2]
    for steps in (1, 2):
        for method, curve in curves[steps].items():
            assert list(curve) == [64.0, 128.0]
            mine = frame[(frame["method"] == method) & (frame["steps"] == steps)]
            early = mine.loc[mine["at_step"] == 4, "value"]
            assert curve[64.0].mean == pytest.approx(early.mean())
            assert curve[64.0].n == 2
            table = summarise(frame).cells[method, steps]
            assert curve[128.0].mean == pytest.approx(table.mean)
            assert curve[128.0].half_width == pytest.approx(table.half_width)
    written = write_report(frame, {}, tmp_path / "report")
    assert {"fd_over_training.png", "fd_over_training.pdf"} <= set(written)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Quality over training" in page
    last = frame[frame["at_step"].isna()]
    assert over_training(last, cells) == {}
    without = write_report(last, {}, tmp_path / "report")
    assert "fd_over_training.png" not in without
    assert not (tmp_path / "report" / "fd_over_training.png").exists()
    assert frame["first_spike"].isna().all()  # too few lines to tell
