"""Early stopping and search on real Ray: who is ended, what is proposed, and what is kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import checkpoint_steps, last_tensors, tiny

from fewstep.errors import UserError
from fewstep.experiments.run import prepare, run
from fewstep.experiments.rundir import RunDirectory, SweepDirectory
from fewstep.experiments.rungs import continue_stopped
from fewstep.sweeps.definition import Member
from fewstep.sweeps.launcher import Event, Outcome
from fewstep.sweeps.local import LocalLauncher
from fewstep.sweeps.ray.launcher import RayLauncher
from fewstep.sweeps.ray.settings import RaySettings

pytestmark = pytest.mark.xdist_group("ray")  # one Ray, in one process

EVALUATED = ("training.steps=30", "evaluation.steps=[1]", "training.checkpoint_every=10")
ASHA = {"scheduler": "asha", "rungs": [5, 15], "eta": 2, "max_parallel": 1}


def made(root: Path, lr: float, *overrides: str) -> RunDirectory:
    return prepare(tiny(root, *EVALUATED, f"training.lr={lr}", *overrides))


def silent(event: Event, working: Sequence[RunDirectory]) -> None:
    pass


def launch(runs: Sequence[RunDirectory], **settings: Any) -> Outcome:
    return RayLauncher(RaySettings.parse(settings)).launch(runs, silent)


def test_asha_ends_the_worst_early_and_marks_them(tmp_path, ray_here):
    good, fair, bad = (made(tmp_path, lr) for lr in (1e-2, 1e-3, 1e-9))
    outcome = launch([good, fair, bad], **ASHA)
    assert good.key in outcome.done  # the first at a rung has nobody above it
    assert outcome.failed == []
    assert bad.key in outcome.stopped
    assert bad.status() == "stopped"
    mark = bad.stopped()
    assert (mark["class"], mark["by"], mark["step"]) == ("early_stopped", "asha", 5)
    scores = {run.key: run.rungs()[5]["value"] for run in (good, fair, bad)}
    assert mark["scores"] == {"5": scores[bad.key]}
    assert scores[good.key] < scores[bad.key]
    assert checkpoint_steps(bad) == [5]
    assert bad.cells() == {}
    assert list(good.rungs()) == [5, 15]

    # started anew it knows the scores of those that are done, and ends a newcomer by them
    late = made(tmp_path, 1e-10)
    outcome = launch([good, fair, late], **ASHA)
    assert late.key in outcome.stopped
    assert len(good.attempts()) == 1

    # continued by a plain launch, it ends as if nobody had looked
    assert continue_stopped([bad, late]) == [bad, late]
    outcome = LocalLauncher(workers=1).launch([bad], silent)
    assert outcome.done == [bad.key]
    alone = made(tmp_path / "alone", 1e-9)
    run(alone)
    theirs, ours = last_tensors(alone), last_tensors(bad)
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def space_in(root: Path) -> Any:
    """Learning rates for two seeds; tiny batches do not go with the highest."""

    def space(suggest: Any) -> Sequence[Member]:
        lr = suggest.number("training.lr", 1e-5, 1e-1, log=True)
        size = suggest.choice("training.batch_size", ["8", "16"])
        if lr > 0.09:
            raise UserError("excluded")
        choices = {"training.lr": str(lr), "training.batch_size": size}
        settings = [f"{name}={value}" for name, value in choices.items()]
        return [
            Member(
                tiny(root, *EVALUATED, "training.steps=3", *settings, f"seed={seed}"),
                choices, seed, "tiny",
            )
            for seed in (0, 1)
        ]  # fmt: skip

    return space


def search(root: Path, **settings: Any) -> tuple[Outcome, list[str]]:
    """A search's end, and the keys in sweep.json."""
    sweep = SweepDirectory(root / "train")
    known = RaySettings.parse({"search": "optuna", "batch": 2, "seed": 3, **settings})
    outcome = RayLauncher(known, space=space_in(root), sweep=sweep).launch([], silent)
    return outcome, [member["key"] for member in (sweep.plan() or {})["runs"]]


def test_a_search_is_the_same_whatever_runs_at_once_and_goes_on(tmp_path, ray_here):
    whole, keys = search(tmp_path / "a", trials=6)
    assert sorted(whole.done) == sorted(keys)
    assert len(keys) == 12
    runs = [RunDirectory(tmp_path / "a/train" / key) for key in keys]
    assert all(len(run.attempts()) == 1 for run in runs)

    # in two parts, one run at a time
    _, first = search(tmp_path / "b", trials=4, max_parallel=1)
    assert first == keys[:8]
    outcome, both = search(tmp_path / "b", trials=6, max_parallel=1)
    assert both == keys
    assert sorted(outcome.done) == sorted(keys)
    assert all(len(RunDirectory(tmp_path / "b/train" / k).attempts()) == 1 for k in keys)

    # with another seed of the search, other settings
    other = RaySettings(search="optuna", trials=6, seed=4)
    from fewstep.sweeps.ray.proposals import Proposals

    proposals = Proposals(space_in(tmp_path / "c"), other, SweepDirectory(tmp_path / "c/train"))
    assert {run.key for run in proposals.next() or []}.isdisjoint(keys)


def test_proposals_learn_from_scores(tmp_path):
    """TPE, told that low learning rates are best, comes to propose them."""
    from fewstep.experiments.rundir import write_json
    from fewstep.sweeps.ray.proposals import Proposals

    settings = RaySettings(search="optuna", trials=40, batch=4)
    proposals = Proposals(space_in(tmp_path), settings, SweepDirectory(tmp_path / "train"))
    rates: list[float] = []
    while (batch := proposals.next()) is not None:
        for directory in batch:
            rate = directory.spec()["config"]["training"]["lr"]
            rates.append(rate)
            asked = directory.request()["evaluation"]
            cell = {"steps": 1, "weights": "ema", "guidance": 1.0, "sample_set": 0, "times": None}
            record = {"cell": cell, "value": rate, "asked": {"samples": asked["samples"]}}
            write_json(directory.cell_file("steps0001"), record)
            directory.write("result", {"key": directory.key})
    assert sum(rates[-20:]) < 0.2 * sum(rates[:20])


def test_settings_that_do_not_fit_are_told_in_one_line():
    for values, line in (
        ({"sheduler": "asha"}, "unknown setting of ray 'sheduler'; did you mean 'scheduler'?"),
        ({"scheduler": "ahsa"}, "ray.scheduler"),
        ({"scheduler": "asha"}, "ray.scheduler asha needs ray.rungs=[500,1000] or ray.grace=500"),
        ({"rungs": [20, 10]}, "ray.rungs must be rising training steps, got [20, 10]"),
        ({"rungs": 10}, "ray.rungs takes a list of whole numbers, got 10"),
        ({"eta": 1}, "ray.eta"),
        ({"trials": 1.5}, "ray.trials takes a whole number, got 1.5"),
        ({"address": "ray://head:10001"}, "ray.address 'ray://head:10001'"),
    ):
        with pytest.raises(UserError) as error:
            RaySettings.parse(values)
        assert line in str(error.value)
    geometric = RaySettings.parse({"scheduler": "asha", "grace": 100, "eta": 3})
    assert geometric.rung_steps()[:4] == (100, 300, 900, 2700)
    assert RaySettings.parse({"rungs": [5]}).rung_steps() == ()


def test_a_search_without_a_space_is_refused(tmp_path):
    launcher = RayLauncher(RaySettings(search="optuna"), sweep=SweepDirectory(tmp_path))
    with pytest.raises(UserError, match="has nothing to propose from"):
        launcher.launch([], silent)
