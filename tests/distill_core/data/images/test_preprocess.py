"""Standardised pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.data.images.preprocess import preprocess

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)


@pytest.mark.parametrize("shape", [(3,), (4, 5, 3), (2, 4, 5, 3)])
def test_golden(shape):
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    expected = (images / 255 - np.array(MEAN)) / np.array(STD)
    out = jax.jit(lambda x: preprocess(x, MEAN, STD))(images)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(preprocess(images, MEAN, STD), expected, atol=1e-5)


def test_floats_pass_with_their_gradient():
    for dtype in (jnp.float32, jnp.bfloat16):
        out = preprocess(jnp.array([[0.0, 0.5, 1.0]], dtype), MEAN, STD)
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, [[-0.2, 1.2, 3.5]], atol=1e-5)
    gradient = jax.grad(lambda x: preprocess(x, MEAN, STD).sum())(jnp.full((2, 2, 3), 0.5))
    np.testing.assert_allclose(gradient, np.broadcast_to(1 / np.array(STD), (2, 2, 3)), rtol=1e-6)


def test_refuses():
    images = jnp.zeros((2, 2, 1), jnp.uint8)
    for std in (STD, (0.5, 0.5)):
        with pytest.raises(ValueError, match="need 1 values"):
            preprocess(images, (0.5,), std)
    with pytest.raises(ValueError, match="must be uint8 or floats .* got int32"):
        preprocess(images.astype(jnp.int32), (0.5,), (0.5,))
