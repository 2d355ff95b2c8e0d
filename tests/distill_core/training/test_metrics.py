"""Means that stay right over masks and types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.training import metrics


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_entries_of_weight_zero_count_for_nothing(junk):
    values, weights = jnp.array([1.0, junk, 4.0]), jnp.array([1.0, 0.0, 2.0])
    assert metrics.weighted_sum(values, weights) == (9.0, 3.0)
    assert metrics.mean(metrics.weighted_sum(values, weights)) == 3.0
    assert metrics.mean(metrics.weighted_sum(values, 0 * weights)) == 0
    of_values = jax.grad(lambda v: metrics.weighted_sum(v, weights)[0])(values)
    np.testing.assert_array_equal(of_values, weights)
    assert not np.isfinite(metrics.weighted_sum(values, 0.5)[0]), "what counts is not hidden"


def test_one_weight_may_stand_for_all_values_and_other_shapes_are_refused():
    assert metrics.weighted_sum(jnp.full((2, 3), 2.0), 0.5) == (6.0, 3.0)
    with pytest.raises(ValueError, match="shape"):
        metrics.weighted_sum(jnp.ones(3), jnp.ones((3, 2)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, bool])
def test_sums_are_float32_whatever_comes_in(dtype):
    ones = jnp.ones(5000, dtype)  # bfloat16 cannot count beyond 256
    total, count = metrics.weighted_sum(ones, ones)
    assert total.dtype == count.dtype == jnp.float32
    assert (total, count) == (5000, 5000)


def test_correct_compares_the_largest_logit_with_the_label():
    logits = jnp.array([[[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]], [[0.0, 1.0, 2.0], [-3.0, -2.0, -9.0]]])
    found = metrics.correct(logits, jnp.array([[1, 1], [2, 1]]))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, [[1, 0], [1, 1]])
