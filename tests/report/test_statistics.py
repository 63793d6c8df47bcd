"""Means, paired differences and their intervals, against hand calculation and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from balora.report.statistics import Estimate, holm, mean_interval, paired_difference


def test_the_interval_of_a_mean_by_hand():
    # mean 2, s = 1; with 2 degrees of freedom t_p = (2p - 1) / sqrt(2 p (1 - p)) = 4.3026527
    quantile = 0.95 / math.sqrt(2 * 0.975 * 0.025)
    estimate = mean_interval([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.half_width == pytest.approx(quantile / math.sqrt(3), rel=1e-12)
    assert (estimate.low, estimate.high) == pytest.approx((2 - 2.4841377, 2 + 2.4841377))
    assert estimate.n == 3


def test_the_interval_of_a_mean_is_the_t_test_of_scipy():
    values = np.random.default_rng(0).normal(3.0, 2.0, 7)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    estimate = mean_interval(values.tolist())
    assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), rel=1e-12)


def test_one_value_has_no_interval_and_none_has_no_mean():
    assert mean_interval([0.5]) == Estimate(0.5, None, None, 1)
    assert mean_interval([0.5]).half_width is None
    assert not mean_interval([0.5]).excludes_zero
    assert mean_interval([]) is None


@pytest.mark.parametrize("values", [[0.25] * 3, [0.0, 0.0], [0.1 + 0.2, 0.3]])
def test_equal_values_have_no_interval(values):
    estimate = mean_interval(values)
    assert estimate.is_constant
    assert (estimate.low, estimate.high, estimate.p_value) == (None, None, None)
    assert not estimate.excludes_zero


def test_differences_that_are_equal_up_to_rounding_have_no_interval():
    # 0.94 - 0.92 and 0.96 - 0.94 differ in their last bit
    difference = paired_difference({0: 0.94, 1: 0.96}, {0: 0.92, 1: 0.94})
    assert difference.is_constant
    assert not difference.excludes_zero
    assert not mean_interval([0.5]).is_constant


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("rows", [150, 200])
def test_two_equal_methods_get_a_star_in_one_of_twenty_at_most(rows, seeds):
    rng = np.random.default_rng(rows + seeds)
    shares = rng.binomial(rows, 0.95, size=(4000, 2, seeds)) / rows
    pairs = [[dict(enumerate(method)) for method in pair] for pair in shares.tolist()]
    stars = np.mean([paired_difference(*pair).excludes_zero for pair in pairs])
    assert stars <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / len(pairs))  # what the draws leave open


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03 times 3, 2, 1; what follows is never less than what went before
    found = holm({"a": 0.03, "b": 0.01, "c": 0.02, "d": None})
    assert found == {"a": pytest.approx(0.04), "b": 0.03, "c": 0.04, "d": None}
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_values_are_float64():
    # in float32 these two would be equal
    assert mean_interval([1.0, 1.0 + 1e-10]).half_width > 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match=f"must be finite, got .*{value}"):
        mean_interval([1.0, value])


def test_the_interval_of_a_paired_difference_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(1)
    baseline = rng.normal(0.5, 0.3, 6)  # seeds differ much more than methods do
    values = baseline + rng.normal(0.02, 0.01, 6)
    test = stats.ttest_rel(values, baseline)
    expected = test.confidence_interval(0.95)
    difference = paired_difference(dict(enumerate(values)), dict(enumerate(baseline)))
    assert difference.mean == pytest.approx((values - baseline).mean(), rel=1e-12)
    assert (difference.low, difference.high) == pytest.approx(tuple(expected), rel=1e-10)
    assert difference.excludes_zero == bool(test.pvalue < 0.05)
    assert difference.p_value == pytest.approx(test.pvalue, rel=1e-10)


def test_a_difference_by_hand():
    # pairs 0 and 2: differences 1 and 3, mean 2, s / sqrt(2) = 1; with 1 degree of freedom t_p is
    # tan(pi (p - 1/2)) = 12.706
    difference = paired_difference({0: 2.0, 2: 5.0, 3: 100.0}, {2: 2.0, 0: 1.0, 1: -100.0})
    assert difference.mean == 2.0
    assert difference.half_width == pytest.approx(math.tan(math.pi * 0.475), rel=1e-10)
    assert difference.n == 2


def test_too_few_pairs():
    assert paired_difference({0: 2.0, 1: 3.0}, {1: 1.0}) == Estimate(2.0, None, None, 1)
    assert paired_difference({0: 2.0}, {1: 1.0}) is None
    assert paired_difference({}, {}) is None


def test_a_model_without_a_seed_pairs_with_every_seed():
    assert paired_difference({0: 2.0, 1: 4.0}, {None: 1.0}).mean == 2.0
    assert paired_difference({None: 1.0}, {0: 2.0, 1: 4.0}).mean == -2.0
    assert paired_difference({None: 1.0}, {0: 2.0, 1: 4.0}).n == 2
    assert paired_difference({None: 3.0}, {None: 1.0}) == Estimate(2.0, None, None, 1)
    assert paired_difference({None: 3.0}, {}) is None


def test_an_interval_that_ends_above_or_below_zero_excludes_it():
    assert Estimate(2.0, 0.1, 3.9, 3).excludes_zero
    assert Estimate(-2.0, -3.9, -0.1, 3).excludes_zero
    assert not Estimate(2.0, -0.1, 4.1, 3).excludes_zero
