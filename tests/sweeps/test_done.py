"""How much of a run is done, as the time left of a sweep is told from it."""

from __future__ import annotations

import pytest
from helpers.tiny import tiny

from fewstep.experiments.evaluation import cells
from fewstep.experiments.run import prepare
from fewstep.experiments.rundir import RunDirectory
from fewstep.sweeps.done import Work


def told(phase: str, done: int, total: int) -> dict:
    return {"phase": phase, "done": done, "total": total}


def test_phases_and_cells_weigh_what_they_cost(tmp_path):
    run = prepare(
        tiny(
            tmp_path, "training.steps=10", "training.batch_size=20", "evaluation.samples=100",
            "evaluation.steps=[1,2,8]", "evaluation.guidance=[1,3]", "training.label_dropout=0.1",
        )
    )  # fmt: skip
    work = Work.of(run)
    assert work.training == 3 * 10 * 20
    assert work.cells == [100, 200, 200, 400, 800, 1600]
    assert work.share(told("pairs", 3, 4)) == 0
    assert work.share(told("train", 5, 10)) == pytest.approx(300 / 3900)
    assert work.share(told("evaluate", 0, 6)) == pytest.approx(600 / 3900)
    assert work.share(told("evaluate", 5, 6)) == pytest.approx(2300 / 3900)
    assert work.share(told("evaluate", 6, 6)) == 1
    # two are left of them, and it does not say which
    assert work.share(told("evaluate", 1, 2)) == pytest.approx(1 - 0.5 * 3300 / 3900)


def test_the_cells_are_those_that_are_evaluated_in_their_order(tmp_path):
    config = tiny(
        tmp_path, "evaluation.steps=[1,4]", "evaluation.times=[[1,0.5,0]]",
        "evaluation.weights=[ema,raw]", "evaluation.guidance=[1,2]", "evaluation.sample_sets=2",
        "training.label_dropout=0.1", "evaluation.samples=7",
    )  # fmt: skip
    asked = [7 * c.steps * (1 if c.guidance == 1 else 2) for c in cells(config.evaluation)]
    assert Work.of(prepare(config)).cells == asked


def test_a_run_that_is_not_prepared_has_no_cells(tmp_path):
    work = Work.of(RunDirectory(tmp_path / "s" / "0123456789ab"))
    assert work.share(told("train", 1, 2)) == 0.5
