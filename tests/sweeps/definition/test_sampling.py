"""Random parts of a sweep: the same every time, and growing without changing what there was."""

from __future__ import annotations

from collections import Counter

import pytest
from scipy import stats

from fewstep.errors import UserError

GRID = """
base: {data: gaussians}
axes:
  objective: [flow_matching, scm, consistency]
  training.lr: {logspace: [1.0e-4, 1.0e-2, 5]}
  training.ema: [0.9, 0.99]
exclude: [{objective: scm, training.ema: 0.9}]
sample: {count: 6, seed: 1}
"""
DRAWS = """
base: {data: gaussians}
axes:
  objective: [flow_matching, scm]
  training.lr: {loguniform: [1.0e-4, 1.0e-2]}
  training.ema: {uniform: [0.9, 0.999]}
  training.batch_size: {uniform: [8, 12]}
  objective.sigma_d: {uniform: [0.4, 0.6], when: {objective: scm}}
sample: {count: 6}
"""
CHANCE = 1e-3  # the draws are the same every time; so likely is a failure when they are changed


def labels(sweep) -> list[str]:
    return [member.label for member in sweep.members()]


@pytest.mark.parametrize("text", [GRID, DRAWS])
def test_a_larger_count_begins_with_the_smaller_one(write, text):
    six = labels(write(text))
    assert len(set(six)) == 6
    assert labels(write(text)) == six
    ten = labels(write(text).with_overrides(["sample.count=10"]))
    assert ten[:6] == six
    assert len(set(ten)) == 10
    assert labels(write(text).with_overrides(["sample.seed=2"])) != six


def test_a_sample_is_part_of_the_grid_and_at_most_all_of_it(write):
    whole = labels(write(GRID.replace("sample: {count: 6, seed: 1}", "")))
    assert len(whole) == 25
    assert set(labels(write(GRID))) < set(whole)
    everything = labels(write(GRID).with_overrides(["sample.count=99"]))
    assert sorted(everything) == sorted(whole)
    # a value more on an axis: those that were chosen and still are keep their order
    more = labels(write(GRID.replace("[0.9, 0.99]", "[0.9, 0.99, 0.7]")))
    kept = [label for label in more if label in whole]
    assert kept == labels(write(GRID))[: len(kept)]


def test_random_numbers_have_the_distribution_they_are_asked_for(write):
    members = write(DRAWS).with_overrides(["sample.count=400"]).members()
    training = [member.config.training for member in members]
    rates = [t.lr for t in training]
    assert stats.kstest(rates, stats.loguniform(1e-4, 1e-2).cdf).pvalue > CHANCE
    assert stats.kstest([t.ema for t in training], stats.uniform(0.9, 0.099).cdf).pvalue > CHANCE
    sizes = Counter(t.batch_size for t in training)
    assert sorted(sizes) == [8, 9, 10, 11, 12]
    assert stats.chisquare(list(sizes.values())).pvalue > CHANCE
    named = Counter(m.choices["objective"] for m in members)
    assert stats.chisquare(list(named.values())).pvalue > CHANCE
    assert all(("objective.sigma_d" in m.choices) == (m.choices["objective"] == "scm")
               for m in members)  # fmt: skip
    assert stats.pearsonr(rates, [t.ema for t in training]).pvalue > CHANCE
    assert all(len(str(rate)) <= len("0.0001234") for rate in rates)  # told and typed again


def test_another_axis_leaves_the_random_numbers_as_they_are(write):
    before = [m.config.training.lr for m in write(DRAWS).members()]
    more = DRAWS.replace("sample:", "  training.warmup: {uniform: [0, 50]}\nsample:")
    assert [m.config.training.lr for m in write(more).members()] == before


def test_draws_that_find_too_few_are_told(write):
    text = "axes: {training.batch_size: {uniform: [1, 3]}}\nsample: 4"
    with pytest.raises(UserError, match=r"sample.count 4 is more than there are: 400 draws fou"):
        write(text).members()


def test_a_sampled_student_brings_its_teacher(write):
    text = """
base: {data: gaussians}
axes:
  objective:
    - {objective: flow_matching, label: flow}
    - {objective: scd, teacher: flow}
  training.lr: {loguniform: [1.0e-4, 1.0e-2]}
sample: {count: 5}
"""
    members = write(text).members()
    keys = [member.config.key for member in members]
    students = [m for m in members if m.choices["objective"] == "scd"]
    assert students
    assert len(members) == 5 + len(students)  # no two draws share a rate, so none has its own
    for student in students:
        teacher = keys.index(student.config.values["teacher"].split("/")[-1])
        assert members[teacher].config.training.lr == student.config.training.lr
        assert teacher < members.index(student)


def test_what_is_drawn_at_random_cannot_be_chosen_but_an_axis_beside_it_can(write):
    sweep = write(DRAWS)
    with pytest.raises(UserError, match=r"axis training\.lr is drawn at random: no value of it"):
        sweep.with_overrides(["training.lr=1e-3"])
    flow = labels(sweep.with_overrides(["objective=flow_matching"]))
    assert flow == [label for label in labels(sweep) if "flow_matching" in label]
    with pytest.raises(UserError, match=r"sample needs a count, got .*seed.: 3"):
        write("axes: {objective: [scm]}").with_overrides(["sample.seed=3"])
