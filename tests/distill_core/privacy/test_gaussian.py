"""Noise that is drawn on devices: its distribution, and how far its tails reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from distill_core.privacy import gaussian


def test_it_is_standard_normal():
    found = np.asarray(gaussian.standard_normal(jax.random.key(5), (40_000,)))
    assert found.dtype == np.float32
    assert scipy.stats.kstest(found, scipy.stats.norm.cdf).pvalue > 0.01
    for wrong in (0.97, 1.03):
        assert scipy.stats.kstest(found, scipy.stats.norm(0, wrong).cdf).pvalue < 0.01
    other = np.asarray(gaussian.standard_normal(jax.random.key(6), (40_000,)))
    assert abs(np.corrcoef(found, other)[0, 1]) < 0.02
    assert len(np.unique(found)) > 39_000


@pytest.mark.parametrize("end", [-5.42, 5.22])
def test_its_tails_reach_twice_as_far_as_one_draw_does(end, monkeypatch):
    """Where each draw is at its own end, as far as float32 lets it."""
    keys = []

    def at_its_end(key, shape):
        keys.append(np.asarray(jax.random.key_data(key)).tolist())
        return jnp.full(shape, end, jnp.float32)

    monkeypatch.setattr(jax.random, "normal", at_its_end)
    np.testing.assert_allclose(
        gaussian.standard_normal(jax.random.key(0), (3,)), 2 * end, rtol=1e-6
    )
    assert len({tuple(key) for key in keys}) == len(keys) == 4, "independent draws"
