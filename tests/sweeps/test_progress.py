"""How much of a run is done, as the time left of a sweep is told from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.tiny import tiny

from fewstep.cli.views import live_progress as live
from fewstep.experiments.evaluation.evaluate import cells
from fewstep.experiments.evaluation.sampling import calls
from fewstep.experiments.run import prepare, run
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.progress import WorkEstimate


def told(phase: str, done: int, total: int) -> dict:
    return {"phase": phase, "done": done, "total": total}


def test_phases_weigh_what_they_cost(tmp_path):
    more = ("evaluation.guidance=[1,3]", "training.label_dropout=0.1")
    directory = prepare(
        tiny(
            tmp_path, "training.steps=10", "training.batch_size=20", "evaluation.samples=100",
            "evaluation.steps=[1,2,8]", *more,
        )
    )  # fmt: skip
    work = WorkEstimate.of(directory)
    assert (work.training, work.evaluation) == (3 * 10 * 20, 100 * 11 * 3)
    assert work.share(told("pairs", 3, 4)) == 0
    assert work.share(told("train", 5, 10)) == pytest.approx(300 / 3900)
    assert work.share(told("evaluate", 0, 70)) == pytest.approx(600 / 3900)
    assert work.share(told("evaluate", 70, 70)) == 1


def test_evaluation_is_what_its_cells_take(tmp_path):
    config = tiny(
        tmp_path, "evaluation.steps=[1,4]", "evaluation.times=[[1,0.5,0]]",
        "evaluation.weights=[ema,raw]", "evaluation.guidance=[1,2]", "evaluation.sample_sets=2",
        "training.label_dropout=0.1", "evaluation.samples=7",
    )  # fmt: skip
    data = config.data.load()
    assert WorkEstimate.of(prepare(config)).evaluation == 7 * sum(
        calls(config, data, cell) for cell in cells(config.evaluation, config.training)
    )


def test_as_many_samples_as_are_held_out(tmp_path):
    directory = prepare(tiny(tmp_path, "evaluation.steps=[1,2]", "training.steps=2"))
    run(directory)
    assert WorkEstimate.of(directory).evaluation == 597 * 3


def test_a_run_that_is_not_prepared(tmp_path):
    work = WorkEstimate.of(RunDirectory(tmp_path / "s" / "0123456789ab"))
    assert work.share(told("train", 1, 2)) == 0.5


def test_the_time_left_goes_by_what_was_done_since_work_began(monkeypatch):
    """Not by the 20 s in which the first process started."""
    clock = {"now": 0.0}
    monkeypatch.setattr(live.time, "monotonic", lambda: clock["now"])
    view = live.SweepView([RunDirectory(Path("s") / name) for name in "abcd"], {})
    told = []
    for now, done in ((0.0, 0.0), (20.0, 0.5), (30.0, 1.0), (40.0, 1.5)):
        clock["now"] = now
        told.append(view._left(done))
    assert told == ["?", "?", "1:00", "0:50"]
