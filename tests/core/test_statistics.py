"""Mean and quantiles of compiled code against numpy's."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmgym.core.statistics import counted, mean, quantile, ratio

values = arrays(np.float32, st.integers(1, 60), elements=st.floats(-1000, 1000, width=32))


@given(values, st.floats(0, 1))
def test_quantiles_are_numpys(values, q):
    expected = np.quantile(values.astype(np.float64), q)
    assert np.isclose(quantile(values.copy(), q), expected, rtol=1e-6, atol=1e-6)


@given(values)
def test_the_mean_is_numpys_and_a_quantile_only_reorders(values):
    assert np.isclose(mean(values), values.astype(np.float64).mean(), rtol=1e-9, atol=1e-9)
    work = values.copy()
    quantile(work, 0.9)
    assert np.array_equal(np.sort(work), np.sort(values))


def test_equal_values_and_no_values():
    assert quantile(np.full(1000, 3.5, np.float32), 0.99) == 3.5
    assert np.isnan(quantile(np.zeros(0, np.float32), 0.5)) and np.isnan(mean(np.zeros(0, np.float32)))


def test_a_ratio_to_nothing_has_no_value():
    assert ratio(3.0, 4.0) == 0.75 and ratio(0.0, 2.0) == 0.0
    assert np.isnan(ratio(0.0, 0.0)) and np.isnan(ratio(5.0, 0.0)) and np.isnan(ratio(5.0, -1.0))
    assert counted(ratio(5.0, 0.0)) == 0.0 and counted(-2.5) == -2.5
