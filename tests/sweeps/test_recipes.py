"""How runs differ from a recipe, and what sweep.json and captions say of that."""

from __future__ import annotations

import json

import pytest
from helpers.synthetic_runs import Run, write_sweep

from fewstep.analysis.frame import load
from fewstep.analysis.summary import summarise
from fewstep.errors import UserError
from fewstep.experiments.config.run_config import compose
from fewstep.reports.content.captions import caption
from fewstep.sweeps import recipes
from fewstep.sweeps.plan import plan
from fewstep.sweeps.recipes import Difference, recipe_record

RECIPE = """
base: {data: gaussians, training.lr: 2.0e-4}
axes:
  objective:
    - {objective: flow_matching, objective.interpolant: trig, label: FM}
    - {objective: shortcut, objective.target: online, label: SC}
    - {objective: shortcut, objective.target: ema, label: SC EMA}
    - {objective: scd, teacher: FM, label: CD}
recipe:
  paper: a paper
  sources:
    {data: table 1, objective: title, objective.interpolant: section 1, teacher: section 4,
     SC/objective.target: section 3, SC EMA/objective.target: appendix}
  unknown: {training.lr: not printed}
  differs: [Its network has other layers.]
"""
LISTS = "which lists 1 setting whose published value is unknown and 1 thing that fewstep cannot do"


@pytest.fixture
def sweep(write):
    return write(RECIPE, "paper.yaml")


def test_the_nearest_run_is_compared_setting_by_setting(sweep):
    name = sweep.recipe.name
    run = ["data=gaussians", "objective=shortcut", "objective.target=ema", "training.lr=2e-4"]
    beside = recipes.compare(compose([*run, "training.eps=1e-9"]), name)
    assert beside.member.choices["objective"] == "SC EMA"
    assert beside.differences == (Difference("training.eps", 1e-9, 1e-8, "default"),)
    places = "evaluation.extractor={name: inception, weights: /a/b.pth}"
    (other,) = recipes.compare(compose([*run, places]), name).differences
    assert (other.setting, other.run, other.paper) == ("evaluation.extractor", "inception", "auto")
    labelled = recipes.compare(compose(run), name, "SC")
    assert labelled.differences == (Difference("objective.target", "ema", "online", "section 3"),)
    where = [
        "data.seed=3",
        "training.device=cpu",
        "evaluation.batch_size=7",
        "evaluation.steps=[3]",
    ]
    found = recipes.compare(compose([*run, *where[1:], "training.lr=1e-3"]), name).differences
    assert {d.setting: d.source for d in found} == {
        "training.lr": "unknown: not printed",
        "evaluation.steps": "default",
    }


def test_a_teacher_is_compared_as_its_student_is(sweep, write):
    students = [m for m in sweep.members() if m.choices["objective"] == "CD"]
    known = {m.config.key: m.config for m in sweep.members()}
    assert recipes.settings(students[0].config, known)["teacher"] == "flow_matching"
    assert recipe_record(sweep)["settings"] == []
    path, steps = "objective.interpolant: linear", "training.steps: 40, training.lr: 1.0e-3"
    made = write(
        f"recipe: {sweep.recipe.name}\n"
        "base: {data: gaussians, training.lr: 1.0e-3}\n"
        "axes: {objective: [{objective: flow_matching, label: short, "
        f"{path}, {steps}}}, {{objective: scd, teacher: short, label: CD}}]}}"
    )
    record = recipe_record(made)["settings"]
    of_students = [s for s in record if s.startswith("teacher")]
    # the rate, which both differ in, is told once
    assert of_students == ["teacher.objective.interpolant", "teacher.training.steps"]
    student = next(m for m in made.members() if m.choices["objective"] == "CD")
    own = {m.config.key: m.config for m in made.members()}
    sources = {
        d.setting: (d.run, d.paper, d.source)
        for d in recipes._compare(
            student.config, own, sweep.recipe, list(sweep.members()), "CD"
        ).differences
    }
    assert sources["teacher.objective.interpolant"] == ("linear", "trig", "section 1")
    assert "teacher" not in sources


def test_an_objective_that_the_recipe_lacks(sweep):
    beside = recipes.compare(compose(["data=gaussians", "objective=ect"]), sweep.recipe.name)
    assert not beside.same_objective
    assert [d.setting for d in beside.differences] == ["objective", "training.lr"]
    assert beside.differences[0].paper == "flow_matching"
    with pytest.raises(UserError, match="sweep digits is no recipe"):
        recipes.compare(compose([]), "digits")


def test_the_closest_recipe_has_the_objective_and_then_the_data():
    ect = compose(["objective=ect", "data=cifar10"])
    assert recipes.closest(ect) == "papers/ect_cifar10"
    with pytest.raises(UserError, match="no recipe has the objective shortcut_continuous"):
        recipes.closest(compose(["objective=shortcut_continuous"]))
    assert recipes.made_from(None, "ict_cifar10") == "papers/ict_cifar10"
    assert recipes.made_from({"recipe": {"name": "x.yaml"}}, "ict_cifar10") == "x.yaml"
    assert recipes.made_from({}, "mine") is None


def test_the_sweep_keeps_what_it_was_made_from(sweep, write, tmp_path):
    root = ("runs", str(tmp_path / "runs"))
    told = f"As published (recipe {sweep.recipe.name}, {LISTS})"
    assert recipe_record(sweep)["description"] == told
    few = sweep.with_overrides([root, "training.steps=9", "objective=SC", "evaluation.steps=[1]"])
    plan(few).write()
    record = json.loads((tmp_path / "runs/paper/sweep.json").read_text())["recipe"]
    assert record["settings"] == ["training.steps"]
    assert record["description"].startswith("1 setting differs from recipe /")
    made = write(f"recipe: {sweep.recipe.name}\nbase: {{objective: shortcut, data: gaussians}}")
    assert recipe_record(made)["settings"] == ["training.lr"]


def test_the_caption_says_so(tmp_path):
    folder = write_sweep(tmp_path, [Run("A", 0, {1: 1.0}), Run("B", 0, {1: 2.0})])
    assert "recipe" not in caption(summarise(load(folder)))
    kept = json.loads((folder / "sweep.json").read_text())
    kept["recipe"] = {"name": "papers/x", "description": "As published (recipe papers/x)"}
    (folder / "sweep.json").write_text(json.dumps(kept))
    assert "images). As published (recipe papers/x)." in caption(summarise(load(folder)))
