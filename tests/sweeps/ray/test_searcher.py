"""Early stopping and search on real Ray: who is ended, what is proposed, and what is kept of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import checkpoint_steps, last_tensors, tiny

from fewstep.cli.commands.sweep import sweep
from fewstep.errors import UserError
from fewstep.experiments.early_stopping import continue_stopped
from fewstep.experiments.run import prepare, run
from fewstep.experiments.store.json_files import write_json
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps.definition import parse as definition
from fewstep.sweeps.launcher import Event, LaunchRequest, Outcome, launcher
from fewstep.sweeps.plan import plan
from fewstep.sweeps.ray.proposals import Proposals
from fewstep.sweeps.ray.settings import RaySettings

pytestmark = pytest.mark.xdist_group("ray")  # one Ray, in one process

ray_settings = partial(launcher, "ray")
EVALUATED = ("training.steps=30", "evaluation.steps=[1]", "training.checkpoint_every=10")
ASHA = {"scheduler": "asha", "rungs": [5, 15], "eta": 2, "max_parallel": 1}


def made(root: Path, lr: float, *overrides: str) -> RunDirectory:
    return prepare(tiny(root, *EVALUATED, f"training.lr={lr}", *overrides))


def silent(event: Event, working: Sequence[RunDirectory]) -> None:
    pass


def launch(runs: Sequence[RunDirectory], **settings: Any) -> Outcome:
    return launcher("ray", settings).launch(LaunchRequest.of(runs), silent)


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

    # continued as any launcher does, it ends as if nobody had looked
    assert continue_stopped([bad, late]) == [bad, late]
    run(bad)
    assert bad.status() == "done"
    alone = made(tmp_path / "alone", 1e-9)
    run(alone)
    theirs, ours = last_tensors(alone), last_tensors(bad)
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


SWEEP = """
base: {data: digits, backbone.width: 16, backbone.depth: 1, backbone.heads: 2, training.steps: 3,
       evaluation.steps: [1], evaluation.extractor: raw, tracking.enabled: false}
axes:
  training.lr: {loguniform: [1.0e-5, 1.0e-1]}
  training.batch_size: [8, 16]
sample: 1
exclude: [{training.batch_size: 8}]
seeds: 2
ray: {search: optuna, batch: 2, seed: 3}
"""


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., list[str]]:
    """``fewstep sweep``, with Ray; the keys in sweep.json after it."""
    (tmp_path / "mine.yaml").write_text(SWEEP)

    def searched(root: Path, *overrides: str) -> list[str]:
        file = str(tmp_path / "mine.yaml")
        assert sweep(file, list(overrides), launcher="ray", runs=str(root)) == 0
        return [member["key"] for member in (SweepDirectory(root / "mine").plan() or {})["runs"]]

    return searched


def test_a_plan_says_how_many_runs_a_search_may_add(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(SWEEP)
    file, settings, root = str(tmp_path / "mine.yaml"), ["ray.trials=4"], tmp_path / "runs"
    told = "search optuna: up to 8 more runs (4 trials x 2 seeds)"
    for name, there in (("ray", True), ("local", False)):
        assert sweep(file, settings, plan=True, launcher=name, runs=str(root)) == 0
        lines = capsys.readouterr().out.splitlines()
        assert any(line.startswith(f"{told}, about ") for line in lines) is there  # by FLOPs
    made = plan(definition.load(file).with_overrides([*settings, ("runs", str(root))]))
    request = replace(made.request(made.to_do), seconds={"a": 60.0, "b": 30.0})
    assert launcher("ray", made.sweep.launchers["ray"]).preview(request) == [
        f"{told}, about 6.0 minutes if they take as long as the others"
    ]
    assert not launcher("ray", made.sweep.launchers["ray"]).preview(replace(request, sweep=None))


def test_a_search_is_the_same_whatever_runs_at_once_and_goes_on(tmp_path, ray_here, search):
    keys = search(tmp_path / "a", "ray.trials=4")
    # the sample comes first; proposals that are excluded are proposals, but no runs
    assert 2 < len(keys) < 10
    runs = [RunDirectory(tmp_path / "a/mine" / key) for key in keys]
    assert [len(run.attempts()) for run in runs] == [1] * len(keys)
    assert {run.spec()["config"]["training"]["batch_size"] for run in runs} == {16}
    assert (tmp_path / "a/mine/report/runs.csv").read_text().count("done") == len(keys)

    # in two parts, one run at a time
    begun = search(tmp_path / "b", "ray.trials=2", "ray.max_parallel=1")
    assert begun == keys[: len(begun)]
    assert 2 < len(begun) < len(keys)
    assert search(tmp_path / "b", "ray.trials=4", "ray.max_parallel=1") == keys
    runs = [RunDirectory(tmp_path / "b/mine" / key) for key in keys]
    assert [len(run.attempts()) for run in runs] == [1] * len(keys)

    # what was proposed stays in the sweep when it is launched without a search
    assert search(tmp_path / "b", "ray.search=none") == keys


def proposals_of(text: str, root: Path, **settings: Any) -> Proposals:
    file = root / "mine.yaml"
    file.write_text(text)
    made = definition.load(str(file)).with_overrides([("runs", str(root))])
    known = RaySettings(search="optuna", **settings)
    return Proposals(made, known, SweepDirectory(root / "mine"))


def test_proposals_learn_from_scores(tmp_path):
    """TPE, told that a learning rate of 0.001 is best, comes to propose what is near."""
    text = SWEEP.replace("exclude: [{training.batch_size: 8}]\n", "")
    proposals = proposals_of(text, tmp_path, trials=80)
    scores: list[float] = []
    while (batch := proposals.next()) is not None:
        for directory in batch:
            rate = directory.spec()["config"]["training"]["lr"]
            scores.append(abs(math.log10(rate) + 3))
            asked = directory.request()["evaluation"]
            cell = {"steps": 1, "weights": "ema", "guidance": 1.0, "sample_set": 0, "times": None}
            record = {"cell": cell, "value": scores[-1], "asked": {"samples": asked["samples"]}}
            record |= {"metric": {}, "nfe": 1}
            write_json(directory.cell_file("steps0001"), record)
            directory.write("result", {"key": directory.key, "provenance": {}})
    assert sum(scores[-40:]) < 0.6 * sum(scores[:40])


def test_the_space_is_what_the_axes_say(tmp_path):
    text = """
base: {data: digits}
axes:
  objective: [flow_matching, shortcut]
  objective.bootstrap_share: {uniform: [0.2, 0.6], when: {objective: shortcut}}
  training.batch_size: {uniform: [30, 40]}
sample: 1
seeds: [7]
"""
    proposals = proposals_of(text, tmp_path, trials=12, batch=12)
    configs = [directory.spec()["config"] for directory in proposals.next() or []]
    assert len(configs) == 12
    for config in configs:
        assert config["seed"] == 7
        assert config["training"]["batch_size"] in range(30, 41)
        if config["objective"]["name"] == "shortcut":
            assert 0.2 <= config["objective"]["bootstrap_share"] <= 0.6
    assert {config["objective"]["name"] for config in configs} == {"flow_matching", "shortcut"}
    told = [member["choices"] for member in proposals.directory.plan()["runs"]]
    assert all(
        ("objective.bootstrap_share" in choices) == (choices["objective"] == "shortcut")
        for choices in told
    )
    # with another seed of the search, other settings
    other = proposals_of(text, tmp_path, trials=12, batch=12, seed=1)
    assert {r.key for r in other.next() or []} != {m.key for p in proposals.batch for m in p.runs}


def test_settings_that_do_not_fit_are_told_in_one_line():
    for values, line in (
        ({"sheduler": "asha"}, "unknown setting 'sheduler' of ray; did you mean 'scheduler'?"),
        ({"scheduler": "ahsa"}, "ray.scheduler"),
        ({"scheduler": "asha"}, "ray.scheduler asha needs ray.rungs=[500,1000] or ray.grace=500"),
        ({"rungs": [20, 10]}, "ray.rungs must be rising training steps, got [20, 10]"),
        ({"rungs": 10}, "ray.rungs must be a list, got 10"),
        ({"eta": 1}, "ray.eta"),
        ({"trials": 1.5}, "ray.trials must be a whole number, got 1.5"),
        ({"address": "ray://head:10001"}, "ray.address 'ray://head:10001'"),
    ):
        with pytest.raises(UserError) as error:
            ray_settings(values)
        assert line in str(error.value)
    geometric = ray_settings({"scheduler": "asha", "grace": 100, "eta": 3})
    assert geometric.rung_steps()[:4] == (100, 300, 900, 2700)
    assert ray_settings({"rungs": [5]}).rung_steps() == ()


def test_a_search_without_a_space_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: {data: gaussians}\nseeds: 2\n")
    made = definition.load(str(tmp_path / "mine.yaml"))
    request = LaunchRequest(SweepDirectory(tmp_path), {}, sweep=made)
    with pytest.raises(UserError, match="no axis of the sweep has more than one value"):
        launcher("ray", {"search": "optuna"}).launch(request, silent)
