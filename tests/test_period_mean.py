"""The mean over a period of any number of values."""

import jax
import numpy as np

from atkd_jax.methods.period_mean import PeriodMean


def test_a_period_is_averaged_however_many_values_it_has():
    values = {0: [1.0, 3.0], 2: [5.0], 3: [2.0, 4.0, 9.0]}  # no values in period 1
    mean, add = PeriodMean.zeros((1,)), jax.jit(PeriodMean.add)
    complete = []
    for period, those in values.items():
        if mean.is_complete(period):
            complete.append(float(mean.mean[0]))
        for i, value in enumerate(those):
            mean = add(mean, period, np.array([value], np.float32))
            assert not mean.is_complete(period)
            np.testing.assert_allclose(mean.mean, np.mean(those[: i + 1]), rtol=1e-6)
    assert complete == [2.0, 5.0]


def test_before_the_first_value_the_mean_is_zero_and_no_period_complete():
    mean = PeriodMean.zeros((2, 3))
    assert not mean.is_complete(0) and not mean.is_complete(7)
    np.testing.assert_array_equal(mean.mean, np.zeros((2, 3)))
    np.testing.assert_array_equal(mean.add(7, np.ones((2, 3))).mean, np.ones((2, 3)))
