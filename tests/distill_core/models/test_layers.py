import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from distill_core.models import CNN, apply_model, cnn, init_model
from distill_core.models.layers import check_images, conv, dense, mask_examples, max_pool_2x2


class _Conv(nn.Module):
    options: dict

    @nn.compact
    def __call__(self, x):
        return conv(x, 64, **self.options)


class _Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return dense(x, 300)


def test_strided_convolution_pads_symmetrically():
    # Each output counts the pixels under its window. SAME would give 9 in the first corner.
    module = _Conv({"stride": 2})
    x = jnp.ones((1, 4, 4, 1))
    params = jax.tree.map(jnp.ones_like, module.init(jax.random.key(0), x))
    np.testing.assert_array_equal(module.apply(params, x)[0, :, :, 0], [[4, 6], [6, 9]])


def _assert_uniform(values, bound):
    values = np.asarray(values).ravel()
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > 0.95 * bound
    np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.1)


def test_default_initialisation_is_pytorchs():
    x = jnp.ones((1, 4, 4, 8))
    first = _Conv({"use_bias": True}).init(jax.random.key(0), x)["params"]["Conv_0"]
    second = _Dense().init(jax.random.key(1), jnp.ones((1, 50)))["params"]["Dense_0"]
    for layer, inputs in ((first, 3 * 3 * 8), (second, 50)):
        for values in layer.values():
            _assert_uniform(values, 1 / np.sqrt(inputs))


@pytest.mark.parametrize("shape", [(3, 8, 8, 4), (2, 7, 9, 3), (1, 2, 3, 1)])
def test_pool_is_flax_max_pool_in_value_and_gradient(shape):
    rng = np.random.default_rng(0)
    x = rng.permutation(np.prod(shape)).reshape(shape).astype(np.float32)  # no ties
    weights = rng.normal(size=(shape[0], shape[1] // 2, shape[2] // 2, shape[3]))

    def loss(x, pool):
        y = pool(x)
        return (y * weights.astype(np.float32)).sum(), y

    d_x, y = jax.grad(loss, has_aux=True)(x, max_pool_2x2)
    d_x_flax, y_flax = jax.grad(loss, has_aux=True)(
        x, lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))
    )
    np.testing.assert_array_equal(y, y_flax)
    np.testing.assert_array_equal(d_x, d_x_flax)


def test_pool_gives_the_gradient_of_a_tie_to_the_first():
    x = jnp.array([[1.0, 2.0], [2.0, 1.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: max_pool_2x2(x).sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 1], [0, 0]])


def test_pool_keeps_its_gradient_in_a_compiled_network(monkeypatch):
    """XLA computes the pool's input anew for the gradient, and may round it otherwise."""
    rng = np.random.default_rng(0)
    x, mask = rng.uniform(size=(24, 6, 6, 1)).astype(np.float32), rng.random(24) < 0.5
    rows = (mask * rng.normal(size=24)).astype(np.float32)
    network = CNN(num_classes=3, widths=(4,), hidden=8)
    params, state = init_model(network, jax.random.key(1), (6, 6, 1))

    def kernel_gradient():
        def loss(params):
            variables = {"params": params, **state}
            logits, _ = apply_model(network, variables, x, train=True, where=mask)
            return (logits[:, 0] * rows).sum()

        return jax.jit(jax.grad(loss))(params)["Conv_0"]["kernel"]

    found = kernel_gradient()
    monkeypatch.setattr(cnn, "max_pool_2x2", lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    np.testing.assert_allclose(found, kernel_gradient(), atol=1e-4)


@pytest.mark.parametrize("place", range(4))
def test_pool_hands_on_nan(place):
    x = jnp.zeros(4).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
    assert jnp.isnan(max_pool_2x2(x)).all()


def test_mask_examples():
    x = jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf]])
    np.testing.assert_array_equal(mask_examples(x, jnp.array([True, False])), [[1, 2], [0, 0]])
    assert mask_examples(x, None) is x


@pytest.mark.parametrize("shape", [(2, 3, 4, 1), (2, 4, 3, 1), (4, 4, 1), (2, 4, 4, 0)])
def test_wrong_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"input: got .*at least 4×4 pixels"):
        check_images(jnp.ones(shape), min_size=4)
