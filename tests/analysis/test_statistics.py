"""Few-seed statistics against SciPy, closed forms and simulated experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fewstep.analysis.statistics import (
    estimate,
    half_width,
    holm,
    paired_log_ratio,
    t_test,
    underpowered,
)
from fewstep.errors import UserError


@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_interval_is_scipys(n: int, confidence: float) -> None:
    x = np.random.default_rng(n).normal(3, 2, n)
    low, high = stats.t.interval(confidence, n - 1, x.mean(), stats.sem(x))
    got = estimate(x, confidence)
    assert got.n == n
    np.testing.assert_allclose([got.mean - got.half_width, got.mean + got.half_width], [low, high])


def test_three_values_by_hand() -> None:
    # s = 1, so the half-width is t_{2, .975} / sqrt(3)
    assert estimate([1, 2, 3]).half_width == pytest.approx(4.302652729911275 / math.sqrt(3))


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    one, none = estimate([4.0]), estimate([])
    assert (one.mean, one.n) == (4.0, 1)
    assert math.isnan(one.half_width)
    assert none.n == 0
    assert math.isnan(none.mean)


@pytest.mark.parametrize("n", [3, 5])
def test_the_interval_covers_the_mean_in_95_of_100_experiments(n: int) -> None:
    x = np.random.default_rng(0).normal(10, 3, (20_000, n))
    covered = np.abs(x.mean(-1) - 10) <= half_width(x)
    assert covered.mean() == pytest.approx(0.95, abs=0.01)


def test_the_t_test_is_scipys_and_handles_no_spread() -> None:
    x = np.random.default_rng(1).normal(0.5, 1, (7, 4))
    np.testing.assert_allclose(t_test(x), stats.ttest_1samp(x, 0, axis=-1).pvalue)
    np.testing.assert_array_equal(t_test([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]), [1.0, 0.0])
    assert np.isnan(t_test([1.0]))


def test_the_paired_ratio_is_scipys_paired_test_of_logs() -> None:
    rng = np.random.default_rng(2)
    seed_effect = rng.normal(0, 1, 5)  # common to both; pairs are to cancel it
    a = np.exp(seed_effect + rng.normal(0.7, 0.1, 5))
    b = np.exp(seed_effect)
    got = paired_log_ratio(a, b)
    expected = stats.ttest_rel(np.log(a), np.log(b))
    interval = expected.confidence_interval(0.95)
    assert got.p_value == pytest.approx(expected.pvalue)
    assert got.ratio == pytest.approx(stats.gmean(a / b))
    np.testing.assert_allclose([got.low, got.high], np.exp([interval.low, interval.high]))
    assert got.p_value < 0.01 < stats.ttest_ind(np.log(a), np.log(b)).pvalue
    back = paired_log_ratio(b, a)
    assert back.ratio == pytest.approx(1 / got.ratio)
    assert (back.low, back.high) == pytest.approx((1 / got.high, 1 / got.low))


def test_what_has_no_logarithm_or_no_partner_is_refused() -> None:
    with pytest.raises(UserError, match=r"positive values, got -1"):
        paired_log_ratio([1.0, 2.0], [1.0, -1.0])
    with pytest.raises(UserError, match="one length"):
        paired_log_ratio([1.0, 2.0], [1.0])


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, then the running maximum
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])


def test_holm_leaves_untested_places_out_of_the_family() -> None:
    np.testing.assert_allclose(holm([0.02, np.nan, 0.04]), [0.04, np.nan, 0.04])
    assert holm([]).shape == (0,)


def test_holm_keeps_the_family_wise_error() -> None:
    p = np.random.default_rng(3).random((4000, 6))
    rejected = np.array([(holm(family) <= 0.05).any() for family in p])
    assert rejected.mean() == pytest.approx(1 - (1 - 0.05 / 6) ** 6, abs=0.01)
    assert (p <= 0.05).any(axis=1).mean() > 0.2  # what it guards against


def test_three_to_five_seeds_are_underpowered() -> None:
    assert [underpowered(n) for n in (2, 3, 5, 6, 10)] == [True, True, True, False, False]
