"""What a table's marks say is wrong in at most 5% of tables, whichever methods are equal."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from helpers.marks import ALIKE, SPREADS, STEPS, equal, half, tables, worse_than_the_best
from scipy import stats

from fewstep.analysis.significance import holm, shown_worse


def crossing(methods: int) -> np.ndarray:
    """Two are best at few steps, and the others at many."""
    few = np.arange(STEPS) < STEPS // 2
    return np.where(few == (np.arange(methods) < 2)[:, None], 0.0, 0.5)


@pytest.mark.parametrize("effects", [equal, half, crossing])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_no_best_method_is_told_apart_in_19_of_20_tables(effects, seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    for methods in (4, 8):
        truth = effects(methods)
        best = truth == truth.min(axis=0)
        made = tables(rng, 400, truth, seeds, SPREADS)
        wrong = np.mean([(shown_worse(table)[best] <= 0.05).any() for table in made])
        assert wrong < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


def test_it_is_the_choice_of_the_best_that_must_be_paid_for() -> None:
    """Each against the observed best, Holm over the steps of each method: what this is not."""
    rng = np.random.default_rng(0)
    made = tables(rng, 300, equal(4), 5, ALIKE)
    assert np.mean([(worse_than_the_best(table) <= 0.05).any() for table in made]) > 0.1
    assert np.mean([(shown_worse(table) <= 0.05).any() for table in made]) < 0.05


def test_with_five_seeds_what_is_twice_as_bad_is_told() -> None:
    made = tables(np.random.default_rng(1), 100, half(4), 5, SPREADS)
    worse = half(4) > 0
    assert np.mean([shown_worse(table)[worse] <= 0.05 for table in made]) > 0.9


def test_it_is_scipys_paired_test_with_holm_over_all_pairs() -> None:
    rng = np.random.default_rng(2)
    table = rng.lognormal(0, 0.3, (5, 2, 4))
    table[1, 0, 3] = np.nan  # a pair is tested on the seeds that both have
    table[2, 1, :3] = np.nan  # and not at all on one
    table[3, 1, :2] = np.nan
    table[:, 1] -= 1  # some negative: this column by differences
    places, p = [], []
    for step in (0, 1):
        column = np.log(table[:, step]) if step == 0 else table[:, step]
        for i, j in itertools.combinations(range(5), 2):
            both = ~np.isnan(column[i] + column[j])
            if both.sum() > 1:
                difference = column[i, both] - column[j, both]
                p.append(stats.ttest_1samp(difference, 0).pvalue)
                places.append((i if difference.mean() > 0 else j, step))
    adjusted = holm(p)
    expected = np.full((5, 2), np.nan)
    for place, value in zip(places, adjusted, strict=True):
        expected[place] = np.fmin(expected[place], value)
    assert len(p) == 16
    np.testing.assert_allclose(shown_worse(table), expected)


def test_equal_values_are_no_evidence_and_equal_differences_are_certain() -> None:
    same = np.ones((2, 1, 3))
    assert np.isnan(shown_worse(same)).all()
    apart = np.array([[[1.0, 2.0, 4.0]], [[2.0, 4.0, 8.0]]])
    np.testing.assert_allclose(shown_worse(apart), [[np.nan], [0.0]], atol=1e-12)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(3).lognormal(0, 0.3, (23, 3, 4))
    whole = shown_worse(table)
    monkeypatch.setattr("fewstep.analysis.significance.BLOCK", 300)
    np.testing.assert_array_equal(shown_worse(table), whole)


@pytest.mark.parametrize("shape", [(0, 0, 0), (1, 2, 3), (3, 2, 1), (2, 0, 3)])
def test_nothing_to_compare(shape: tuple[int, int, int]) -> None:
    assert np.isnan(shown_worse(np.ones(shape))).all()
