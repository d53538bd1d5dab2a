"""Statistics over seeds agree with SciPy's, and with every resample written out."""

import itertools

import numpy as np
import pytest
from scipy import stats

from esrl.core.statistics import interquartile_mean, interval


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 8, 11])
def test_the_interquartile_mean_is_scipys_trimmed_mean(number):
    values = np.random.default_rng(number).normal(size=(3, number))
    np.testing.assert_allclose(interquartile_mean(values), stats.trim_mean(values, 0.25, axis=1))
    np.testing.assert_allclose(interquartile_mean(values, axis=0), stats.trim_mean(values, 0.25, axis=0))


@pytest.mark.parametrize("number", [2, 3, 5])
def test_the_interval_of_few_seeds_is_exact(number):
    values = np.random.default_rng(number).normal(size=number)
    every = [stats.trim_mean(drawn, 0.25) for drawn in itertools.product(values, repeat=number)]
    np.testing.assert_allclose(interval(values), np.quantile(every, [0.025, 0.975]))


def test_an_interval_holds_its_mean_and_no_order_matters():
    values = np.random.default_rng(0).normal(size=(4, 12))
    low, high = interval(values)
    assert ((low < interquartile_mean(values)) & (interquartile_mean(values) < high)).all()
    np.testing.assert_array_equal(interval(values[:, ::-1]), (low, high))
    assert np.isnan(interval([3.0])).all()
