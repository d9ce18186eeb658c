"""Equal budgets: every run of a sweep spends the same, teachers included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fewstep.errors import UserError
from fewstep.experiments.cost.step_benchmark import TOLERANCE, Bench, Setting, Subject
from fewstep.experiments.store.json_files import read_json, write_json
from fewstep.sweeps.definition.parse import load
from fewstep.sweeps.definition.sweep import Sweep
from fewstep.sweeps.plan import plan

TEACHER = {"label": "teacher", "objective": "flow_matching", "training.steps": 400}
LITTLE = {"data": "gaussians", "backbone.width": 16, "backbone.depth": 1, "training.steps": 1000}


def swept(folder: Path, budget: Any, *objectives: Any, **base: Any) -> Sweep:
    spec = {"base": {**LITTLE, **base}, "axes": {"objective": list(objectives)}, "budget": budget}
    (folder / "mine.yaml").write_text(yaml.safe_dump(spec))
    return load(str(folder / "mine.yaml")).with_overrides([("runs", str(folder / "runs"))])


def steps(sweep: Sweep) -> dict[str, int]:
    return {m.choices["objective"]: m.config.training.steps for m in sweep.members()}


def test_images_are_shared_with_the_teacher(tmp_path: Path) -> None:
    small = {"label": "small", "objective": "flow_matching", "training.batch_size": 32}
    made = swept(tmp_path, "images", "flow_matching", small, TEACHER,
                 {"objective": "scd", "teacher": "teacher"},
                 {"label": "wide", "objective": "scd", "teacher": "teacher",
                  "training.batch_size": 256})  # fmt: skip
    assert made.total == 1000 * 128
    assert steps(made) == {
        "flow_matching": 1000, "small": 4000, "teacher": 400, "scd": 600, "wide": 300,
    }  # fmt: skip


def test_a_students_teacher_may_have_a_teacher(tmp_path: Path) -> None:
    second = {"label": "second", "objective": "reflow", "teacher": "teacher", "training.steps": 250}
    third = {"label": "third", "objective": "reflow", "teacher": "second"}
    assert steps(swept(tmp_path, "steps", "flow_matching", TEACHER, second, third))["third"] == 350
    said = swept(tmp_path, "steps", "flow_matching", TEACHER).budget_record or {}
    assert said["description"] == (
        "each run trains for 1,000 training steps, a student's with its teachers' (except teacher)"
    )
    told = {"equal": "steps", "teacher": False}
    assert steps(swept(tmp_path, told, "flow_matching", TEACHER, second, third))["third"] == 1000


def test_flops_are_those_that_are_counted(tmp_path: Path) -> None:
    deeper = {"label": "deeper", "objective": "flow_matching", "backbone.depth": 3}
    dit = {"data": "digits", "backbone.width": 64, "backbone.heads": 2}
    made = swept(tmp_path, "flops", "flow_matching", "scm", "mean_flow", deeper, **dit)
    members = {m.choices["objective"]: m.config for m in made.members()}
    for config in members.values():  # against steps that are made
        dataset = config.data.load()
        setting = Setting(config.backbone, dataset.shape, dataset.num_classes, batch=16)
        counted = Subject(config.objective, Bench(setting)).flops() * config.training.steps
        whole = counted * config.training.batch_size // 16
        assert whole == pytest.approx(made.total, rel=TOLERANCE)
    assert members["flow_matching"].training.steps == 1000
    assert members["deeper"].training.steps < 500


def test_drawing_pairs_costs_the_teachers_passes(tmp_path: Path) -> None:
    def after(pairs: int, **more: Any) -> int:
        reflow = {"objective": "reflow", "teacher": "teacher", "objective.pairs": pairs, **more}
        return steps(swept(tmp_path, "flops", "flow_matching", TEACHER, reflow))["reflow"]

    # a pass forward is a third of a step's cost for a row; 128 rows a step, 96 passes a pair
    drawn = {"objective.pair_steps": 96}
    assert after(128 * 4, **drawn) == 600 - 4 * 96 // 3
    assert after(128 * 4, **drawn, **{"objective.pair_solver": "heun"}) == 600 - 2 * 4 * 96 // 3
    guided = {"objective.teacher_guidance": 2.0, "training.label_dropout": 0.1}
    assert after(128 * 4, **drawn, **guided) == 600 - 2 * 4 * 96 // 3


def test_seconds_are_taken_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = {"equal": "seconds", "amount": 10}
    with pytest.raises(UserError, match="the speed of 'flow_matching' on this backbone") as told:
        swept(tmp_path, budget, "flow_matching").members()
    assert "(fewstep train objective=flow_matching ... training.steps=300" in str(told.value)
    run = swept(tmp_path, None, "flow_matching").with_overrides(["name=before"])
    directory = plan(run).runs[0].directory
    plan(run).write()
    write_json(directory.path / "result.json", {
        "images_per_second": 12_800.0, "evaluate_seconds": 0.0, "provenance": {"device": "cpu"},
    })  # fmt: skip
    made = swept(tmp_path, budget, "flow_matching")
    assert steps(made) == {"flow_matching": 1000}
    plan(made).write()
    kept = read_json(tmp_path / "runs/mine/sweep.json")["budget"]
    assert kept["images_per_second"] == {"flow_matching mlp 128": 12_800.0}
    result = read_json(directory.path / "result.json")
    write_json(directory.path / "result.json", {**result, "images_per_second": 6_400.0})
    assert steps(swept(tmp_path, budget, "flow_matching")) == {"flow_matching": 1000}
    again = swept(tmp_path, budget, "flow_matching").with_overrides(["name=another"])
    assert steps(again) == {"flow_matching": 500}


def test_who_sets_the_budget_may_be_named(tmp_path: Path) -> None:
    told = {"equal": "flops", "as": {"objective": "scm"}}
    made = steps(swept(tmp_path, told, "flow_matching", "scm"))
    assert made["scm"] == 1000 < made["flow_matching"]
    assert steps(swept(tmp_path, {"equal": "images", "amount": 640}, "scm")) == {"scm": 5}


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ("flop", "sweep .*: unknown budget 'flop'; did you mean 'flops'"),
        ({"equals": "flops"}, "or a mapping with equal:"),
        ({"equal": "flops", "amont": 3}, "did you mean 'amount'"),
        ({"equal": "flops", "amount": "much"}, "amount must be a number, got 'much'"),
        ({"equal": "flops", "as": {"objectiv": "scm"}}, "did you mean 'objective'"),
        ({"equal": "flops", "as": {"objective": "sc"}}, "did you mean 'scm'"),
        ({"equal": "seconds"}, "of seconds needs an amount"),
        ({"equal": "steps", "amount": 9, "as": {"objective": "scm"}}, "not both"),
        ({"equal": "steps", "teacher": "no"}, "teacher must be true or false, got 'no'"),
    ],
)
def test_a_bad_budget_is_told_in_a_line(tmp_path: Path, budget: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        swept(tmp_path, budget, "flow_matching", "scm")


def test_a_teacher_that_leaves_nothing_is_told(tmp_path: Path) -> None:
    made = swept(
        tmp_path, "steps", "flow_matching", {"objective": "scd", "teacher": "flow_matching"}
    )
    with pytest.raises(UserError, match=r"leaves no training step for scd.*take 1,000"):
        made.members()


def test_an_objective_that_does_not_state_its_cost_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.objectives.flow_matching import FlowMatching

    monkeypatch.setattr(FlowMatching, "step_cost", lambda self: None)
    with pytest.raises(UserError, match="'flow_matching' does not state the cost of its step"):
        swept(tmp_path, "flops", "flow_matching").members()
