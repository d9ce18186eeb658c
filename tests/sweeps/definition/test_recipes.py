"""Recipes of papers: each setting has a source, and each run of each of them fits together."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.errors import UserError
from fewstep.sweeps.definition import parse as definition
from fewstep.sweeps.definition.recipe import DEFAULT
from fewstep.sweeps.definition.sweep import Sweep
from fewstep.sweeps.smoke import smokes

RECIPE = """
base: {data: gaussians, training.lr: 2.0e-4}
axes:
  objective:
    - {objective: flow_matching, label: FM}
    - {objective: shortcut, objective.target: online, label: SC}
recipe:
  paper: a paper
  sources: {data: table 1, objective: title, SC/objective.target: section 3}
  unknown: {training.lr: not printed}
  differs: [Its network has other layers.]
  published:
    - {method: SC, metric: FID, values: {1: 9.5}, source: table 2}
"""


def recipe(sweep: Sweep) -> definition.Recipe:
    assert isinstance(sweep.recipe, definition.Recipe)
    return sweep.recipe


def test_what_a_recipe_says(write):
    found = recipe(write(RECIPE))
    assert found.source("objective.target", "SC") == "section 3"
    assert found.source("objective.target", "FM") == DEFAULT
    assert found.source("training.lr", "FM") == "unknown: not printed"
    assert found.published[0].values == {"1": 9.5}
    plain = write(RECIPE.partition("recipe:")[0])
    assert [m.config.key for m in plain.members()] == [
        m.config.key for m in write(RECIPE).members()
    ]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("data: table 1, ", "", "recipe.sources has no source of data"),
        ("data: table 1", "data: t, training.lr: t", "training.lr has a source and is listed unkn"),
        ("data: table 1", "data: t, training.eps: t", "the sweep does not set training.eps"),
        ("SC/", "SD/", "unknown method 'SD' in recipe, SD/objective.target; did you mean 'SC'"),
        ("paper: a paper", "papers: a", "unknown field 'papers' of recipe; did you mean 'paper'"),
        ("paper: a paper", "paper: null", "recipe needs paper"),
        ("method: SC", "method: CT", "unknown method 'CT' in recipe.published"),
        (", source: table 2", "", "recipe.published: a row has no source"),
    ],
)
def test_refused(write, old, new, told):
    assert old in RECIPE
    with pytest.raises(UserError, match=told):
        write(RECIPE.replace(old, new))


def test_a_sweep_made_from_one_names_it(write):
    assert write("recipe: papers/ect_cifar10\nbase: {data: digits}").recipe == "papers/ect_cifar10"
    with pytest.raises(UserError, match="unknown recipe 'papers/ect'; did you mean 'papers/ect_c"):
        write("recipe: papers/ect")


@pytest.mark.parametrize("name", definition.recipes())
def test_every_setting_has_a_source_or_is_unknown(name):
    sweep = definition.load(name)
    choices = sweep.axes["objective"].choices
    lacking = [
        f"{choice.label}/{setting}"
        for choice in choices
        for setting, _ in (*sweep.base, *choice.settings)
        if recipe(sweep).source(setting, choice.label) == DEFAULT
    ]
    assert not lacking
    assert recipe(sweep).published
    assert sweep.description
    assert sweep.size == len(choices)


@pytest.mark.parametrize("name", definition.recipes())
def test_every_run_of_a_recipe_fits_together(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # neither its data nor its runs are there
    results = list(smokes(definition.load(name), memory=0))
    assert [(m.label, r.error) for m, r in results if r.error] == []
    assert all(r.parameters > 1e7 and not r.real for _, r in results)
    assert not list(Path().iterdir())
