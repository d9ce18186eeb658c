"""A sweep's YAML, the command line's say in it, and what is refused."""

from __future__ import annotations

import pytest

from fewstep.errors import UserError
from fewstep.sweeps.definition import parse as definition
from fewstep.sweeps.definition.parse import Member

SWEEP = """
description: two objectives at two rates
base:
  data: gaussians
  training.steps: 30
  training.clip: 1.0
axes:
  objective:
    - flow_matching
    - {objective: scm, objective.sigma_d: 0.8}
  rate:
    - {label: slow, training.lr: 1e-4}
    - {training.lr: 1e-3, training.clip: null}
seeds: 2
"""


def training(member: Member):
    return member.config.training


def test_members_are_the_product_of_axes_and_seeds(write):
    members = write(SWEEP).members()
    clip = "training.lr=0.001,training.clip=None"
    assert [m.label for m in members] == [
        f"objective={objective} rate={rate} seed={seed}"
        for objective in ("flow_matching", "scm")
        for rate in ("slow", clip)
        for seed in (0, 1)
    ]
    assert len({m.config.key for m in members}) == 8
    last = members[-1]
    assert (training(last).lr, training(last).clip, training(last).steps) == (1e-3, None, 30)
    assert (training(members[0]).lr, training(members[0]).clip) == (1e-4, 1.0)
    assert [m.config.values["objective"].get("sigma_d") for m in members] == [0.5] * 4 + [0.8] * 4
    assert {m.config.values["sweep"] for m in members} == {"mine"}
    assert [m.config.seed for m in members] == [m.seed for m in members]


def test_without_axes_there_is_one_run_a_seed(write):
    assert [m.label for m in write("seeds: [7, 3]").members()] == ["seed=7", "seed=3"]


def test_command_line_wins_over_base_and_axes(write):
    sweep = write(SWEEP).with_overrides(["training.steps=9", "training.lr=0.5", "objective=scm"])
    with pytest.raises(UserError, match="are the same run"):  # both rates are 0.5 now
        sweep.with_overrides(["training.clip=1.0"]).members()
    members = sweep.members()
    assert len(members) == 4
    assert {(training(m).steps, training(m).lr) for m in members} == {(9, 0.5)}


def test_axis_is_restricted_in_its_own_order(write):
    sweep = write(SWEEP).with_overrides(["objective=[scm,flow_matching]", "rate=slow", "seeds=1"])
    assert [m.label for m in sweep.members()] == [
        "objective=flow_matching rate=slow seed=0",
        "objective=scm rate=slow seed=0",
    ]


@pytest.mark.parametrize(
    ("override", "seeds"), [("seeds=3", (0, 1, 2)), ("seeds=[4,2]", (4, 2)), ("seeds=[5]", (5,))]
)
def test_seeds_from_the_command_line(write, override, seeds):
    assert write(SWEEP).with_overrides([override]).seeds == seeds


def test_name_comes_from_the_file_the_field_or_the_command_line(write):
    assert write(SWEEP, "ab-1.yaml").name == "ab-1"
    assert write("name: other").name == "other"
    sweep = write(SWEEP).with_overrides(["name=third.v2"])
    assert {m.config.values["sweep"] for m in sweep.members()} == {"third.v2"}


@pytest.mark.parametrize("name", ["../x", "..", ".hidden", "_cache", "a/b", "'a b'", "-x", "''"])
def test_names_that_lead_elsewhere_are_refused(write, name):
    with pytest.raises(UserError, match="a sweep's name may hold"):
        write(SWEEP).with_overrides([f"name={name}"])


def test_a_seed_that_is_there_twice_is_run_once_as_in_version_0_1(write):
    with pytest.warns(UserWarning, match=r"seeds has a seed twice, .* once: \[7, 3, 7\]"):
        members = write("seeds: [7, 3, 7]").members()
    assert [member.seed for member in members] == [7, 3]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("objective=smc", "unknown value 'smc' of axis objective; did you mean 'scm'"),
        ("objective=[scm,shortcut]", "unknown value 'shortcut' of axis objective"),
        ("rate=fast", "(choices: slow, training.lr=0.001,training.clip=None)"),
        ("seeds=0", "seeds must be at least 1, got 0"),
        ("seeds=[]", "seeds must be a number of seeds or a list of them, got []"),
        ("seeds=a", "seeds must be a number of seeds or a list of them, got 'a'"),
        ("seeds=1.5", "seeds must be"),
        ("training.lr=1,2", "axes of values belong in a sweep's YAML"),
        ("training.step=3", "unknown setting 'training.step'; did you mean 'training.steps'?"),
    ],
)
def test_bad_overrides(write, override, told):
    with pytest.raises(UserError) as error:
        write(SWEEP).with_overrides([override]).members()
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("axes: {training.lr: {from: 1, to: 3}}", "unknown field 'from' of axis training.lr (choi"),
        ("seed: 3", "sweep {path}: unknown field 'seed'; did you mean 'seeds'?"),
        ("base: [1, 2]", "base and axes must be mappings"),
        ("axes: {objective: scm}", "axis objective must be a list of values, got 'scm'"),
        ("axes: {objective: []}", "axis objective must be a list of values, got []"),
        ("- 1\n- 2", "must be a mapping with the fields name, description, base, axes, seeds"),
        ("base: {a: 1", "is not valid YAML"),
        ("base: {}\nbase: {}", "is not valid YAML"),
        ("name: ../x", "a sweep's name may hold"),
        ("seeds: many", "seeds must be a number of seeds"),
        ("axes: {objective: [scm, scm]}", "two values of axis objective are both called 'scm'"),
        (
            "axes: {objective: [{objective: scm, training.ema: 0}, {objective: scm}]}",
            "tell them apart with label: NAME",
        ),
        ("axes: {objective: [{label: a, objective: scm}, scm]}", "are the same run"),
        ("{}", "is empty"),
        ("base: {seed: 5}", "write seeds: N"),
        ("axes: {seed: [1, 2]}", "write seeds: N"),
        ("axes: {objective: [{objective: scm, sweep: other}]}", "write name: beside them"),
        ("name: mlartifacts", "MLflow keeps its files there"),
        ("name: mlflow.db", "'mlflow.db': MLflow keeps its files there"),
        ("name: mlflow.db.lock", "MLflow keeps its files there"),
        (f"name: {'x' * 201}", f"a sweep's name may have 200 bytes, got 201: '{'x' * 20}...'"),
        (f"name: {'é' * 101}", "got 202"),
        ("base: {backbone: dit_digit}", "did you mean 'dit_digits'"),
    ],
)
def test_bad_files(write, tmp_path, text, told):
    with pytest.raises(UserError) as error:
        write(text).members()
    assert told.format(path=tmp_path / "mine.yaml") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_text_or_not_there(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x01: [")
    with pytest.raises(UserError, match="is not valid YAML"):
        definition.load(str(tmp_path / "bytes.yaml"))
    with pytest.raises(UserError, match=f"no sweep file at {tmp_path}/gone.yaml"):
        definition.load(str(tmp_path / "gone.yaml"))
    with pytest.raises(UserError, match="did you mean 'digits'"):
        definition.load("digit")


def test_the_presets_are_whole():
    for name in definition.own():
        sweep = definition.load(name)
        assert sweep.description
        assert len(sweep.members()) == sweep.size > 1


def test_a_label_on_the_objective_is_the_methods_name(write):
    text = "axes: {objective: [scm, {objective: shortcut, label: half}]}"
    assert [m.title for m in write(text).members()] == ["sCM", "half"]
