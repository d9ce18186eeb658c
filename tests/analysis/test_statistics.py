"""Few-seed statistics against SciPy, closed forms and simulated experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fewstep.analysis.significance import holm
from fewstep.analysis.statistics import (
    bootstrap,
    estimate,
    half_width,
    paired_difference,
    paired_log_ratio,
    spread,
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


EXPERIMENTS = 20_000


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_covers_the_mean_in_93_to_97_of_100_experiments(n: int) -> None:
    rng = np.random.default_rng(n)
    x = rng.normal(10, 3, (EXPERIMENTS, n))
    assert 0.94 < (np.abs(x.mean(-1) - 10) <= half_width(x)).mean() < 0.96
    # log-normal, as wide from seed to seed as FD on digits at its widest (sd of the log 0.2)
    x = rng.lognormal(2, 0.2, (EXPERIMENTS, n))
    truth = np.exp(2 + 0.2**2 / 2)
    assert 0.93 < (np.abs(x.mean(-1) - truth) <= half_width(x)).mean() < 0.97


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_of_a_ratio_covers_it_whatever_the_pairs_share(n: int) -> None:
    rng = np.random.default_rng(n)
    shared = rng.normal(0, 0.3, (2000, n))
    spreads = 0.05, 0.2  # of the two methods
    a, b = (np.exp(shared + rng.normal(0, sd, (2000, n))) for sd in spreads)
    found = [paired_log_ratio(1.7 * x, y) for x, y in zip(a, b, strict=True)]
    assert 0.93 < np.mean([r.low <= 1.7 <= r.high for r in found]) < 0.97
    assert np.mean([r.p_value <= 0.05 for r in map(paired_log_ratio, a, b)]) < 0.07


@pytest.mark.parametrize("n", [3, 5, 10])
def test_sample_sets_do_not_pass_for_seeds(n: int) -> None:
    rng = np.random.default_rng(n)
    seed_sd, sampling_sd, sets = 2.0, 1.0, 4
    x = rng.normal(10, seed_sd, (EXPERIMENTS, n, 1))
    x = x + rng.normal(0, sampling_sd, (EXPERIMENTS, n, sets))
    covered = np.abs(x.mean((1, 2)) - 10) <= half_width(x.mean(-1))
    assert 0.93 < covered.mean() < 0.97
    single = x.reshape(EXPERIMENTS, -1)  # every set a unit: far too sure
    assert (np.abs(single.mean(-1) - 10) <= half_width(single)).mean() < 0.9


def test_spreads_are_taken_apart() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3.0, (4000, 1)) + rng.normal(0, 1.5, (4000, 5))
    found = spread(x)
    assert found.seed_sd == pytest.approx(3.0, rel=0.03)
    assert found.sampling_sd == pytest.approx(1.5, rel=0.03)
    flat = spread([[1.0, 2.0], [2.0, 1.0]])  # equal means: nothing is left for the seeds
    assert (flat.seed_sd, flat.sampling_sd) == (0.0, pytest.approx(math.sqrt(0.5)))
    assert math.isnan(spread([[1.0], [2.0]]).sampling_sd)
    one = spread([[1.0, 3.0]])
    assert (math.isnan(one.seed_sd), one.sampling_sd) == (True, pytest.approx(math.sqrt(2)))


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


def test_the_paired_difference_is_scipys() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(-1, 1, 4), rng.normal(0, 1, 4)
    got, expected = paired_difference(a, b), stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert (got.n, got.p_value) == (4, pytest.approx(expected.pvalue))
    assert got.difference == pytest.approx(a.mean() - b.mean())
    assert (got.low, got.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_a_bootstrap_is_for_medians_of_ten_seeds_and_more() -> None:
    rng = np.random.default_rng(5)
    with pytest.raises(UserError, match=r"at least 10 seeds, got 9.*use the t-interval"):
        bootstrap(np.median, rng.normal(size=9))
    with pytest.raises(UserError, match="one length"):
        bootstrap(np.median, rng.normal(size=10), rng.normal(size=11))
    x = rng.lognormal(0, 0.6, (400, 10))
    found = [bootstrap(np.median, row, resamples=999) for row in x]
    assert 0.9 < np.mean([i.low <= 1 <= i.high for i in found]) < 0.98
    assert found[0].value == np.median(x[0])
    assert bootstrap(np.median, x[0]) == bootstrap(np.median, x[0])


def test_a_bootstrap_keeps_the_pairs_together() -> None:
    b = np.arange(1.0, 13)

    def median_ratio(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.median(x / y, axis=axis)

    found = bootstrap(median_ratio, 3 * b, b)
    assert (found.value, found.low, found.high) == (3.0, 3.0, 3.0)


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
