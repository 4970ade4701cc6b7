"""Bootstrap intervals against what is known of their statistics."""

import numpy as np
import pytest

from focusft.statistics.columns import (
    bootstrap,
    mean,
    mean_difference,
    median_of_ratios,
    ratio_of_means,
)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    estimate = bootstrap(mean, values)
    error = 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - error, abs=0.03)
    assert estimate.high == pytest.approx(values.mean() + error, abs=0.03)
    assert bootstrap(mean, values) == estimate


def test_intervals_are_paired():
    values = np.random.default_rng(1).normal(100.0, 30.0, size=50)
    difference = bootstrap(mean_difference, values + 1, values)
    assert (difference.low, difference.high) == pytest.approx((1, 1))
    for statistic in (ratio_of_means, median_of_ratios):
        ratio = bootstrap(statistic, 5 * values, values)
        assert (ratio.value, ratio.low, ratio.high) == pytest.approx((5, 5, 5))


def test_ratios_differ_as_defined():
    above, below = [1.0, 4.0, 90.0], [1.0, 2.0, 9.0]
    assert bootstrap(ratio_of_means, above, below).value == pytest.approx(95 / 12)
    assert bootstrap(median_of_ratios, above, below).value == 2


def test_one_example_has_an_interval_of_no_width():
    estimate = bootstrap(mean, [0.25])
    assert estimate.low == estimate.value == estimate.high == 0.25
