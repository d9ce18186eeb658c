"""Two steps of each member of a sweep on made-up data, with numbers and without."""

from __future__ import annotations

import re

import pytest

from fewstep.backbones.dit import DiTNetwork
from fewstep.experiments.smoke import Call, distinct_calls
from fewstep.sweeps.smoke import smokes

SWEEP = """
base:
  data: mnist
  backbone: dit_digits
  backbone.patch: 7
  backbone.width: 16
  backbone.depth: 1
  backbone.heads: 2
  training.label_dropout: 0.2
axes:
  objective:
    - {objective: flow_matching, objective.interpolant: trig, label: teacher}
    - {objective: flow_matching, training.augment: 0.1, label: augmented}
    - {objective: scd, teacher: teacher}
    - {objective: progressive_distillation, teacher: teacher}
    - {objective: reflow, teacher: teacher, objective.pairs: 40}
    - {objective: sid, teacher: teacher}
    - {objective: mean_flow, objective.guidance: 2.0}
    - shortcut
seeds: 2
"""


@pytest.mark.parametrize("memory", [None, 0])
def test_every_kind_of_member_is_tried_once(write, tmp_path, monkeypatch, memory):
    monkeypatch.chdir(tmp_path)
    sweep = write(SWEEP)
    results = list(smokes(sweep, memory))
    assert [r.error for _, r in results] == [None] * 8
    assert [m.seed for m, _ in results] == [0] * 8
    assert {r.real for _, r in results} == {memory is None}
    plain, augmented = (r.parameters for _, r in results[:2])
    assert augmented == plain + 9 * 16  # the network is told of nine kinds of change
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("memory", "change", "told"),
    [
        (None, lambda out: out * float("nan"), "NotFinite|not finite"),
        (None, lambda out: out[..., :-1], r"size of tensor .* \(27\)|\(28\) must match"),
        (0, lambda out: out[..., :-1], r"the network gives \(2, 1, 28, 27\), expected \(2, 1, 28"),
        (0, lambda out: out.detach(), "does not require grad"),
    ],
)
def test_what_fails_is_said_and_the_others_are_tried(write, monkeypatch, memory, change, told):
    forward = DiTNetwork.forward
    monkeypatch.setattr(
        DiTNetwork, "forward", lambda *given, **named: change(forward(*given, **named))
    )
    sweep = write(SWEEP + "\nname: broken").with_overrides(
        ["objective=[teacher,shortcut]", "backbone.width=32"]
    )
    results = list(smokes(sweep, memory))
    assert len(results) == 2
    for _, result in results:
        assert result.error is not None
        assert re.search(told, result.error)


def test_a_setting_that_does_not_fit_is_one_members_failure(write):
    sweep = write(SWEEP).with_overrides(["objective=[teacher,shortcut]", "backbone.patch=5"])
    told = "backbone.patch must divide the image's side 28, got 5"
    assert [r.error for _, r in smokes(sweep)] == [told] * 2


def test_what_covers_all_calls():
    plain, unlabelled = Call(True, True, False, False), Call(True, False, False, False)
    tangent, gradient = Call(True, True, True, True), Call(True, True, False, True)
    assert distinct_calls({plain, unlabelled, gradient}) == [unlabelled, gradient]
    assert distinct_calls({tangent}) == [gradient, Call(True, True, True, False)]
    assert distinct_calls({plain}) == [plain]
