"""Histograms of oriented gradients, and the networks on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.models import apply_model, features, init_model
from dpdfd.features import NUM_BINS, FeatureMLP, FeatureRidge, hog, num_cells

NETWORKS = {
    "mlp": FeatureMLP(num_classes=3, hidden=(6, 5)),
    "ridge": FeatureRidge(num_classes=3, num_random=20),
}
jitted_hog = jax.jit(hog)


@functools.partial(jax.jit, static_argnums=0)
def random_features(network, x):
    return network.apply({}, x, method="public")


def images(num, size=8, channels=1, seed=0):
    return np.random.default_rng(seed).normal(size=(num, size, size, channels)).astype(np.float32)


def bars(angle, size=16):
    """A grating whose brightness changes along `angle`."""
    down, right = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    wave = np.sin(0.8 * (np.cos(angle) * right + np.sin(angle) * down))
    return wave[None, :, :, None].astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "cells"),
    [((28, 28, 1), 49), ((8, 8, 1), 16), ((32, 32, 3), 64), ((64, 12, 2), 32), ((2, 3, 1), 6)],
)
def test_it_has_nine_bins_in_each_cell(shape, cells):
    assert num_cells(shape[0]) * num_cells(shape[1]) == cells
    found = jax.eval_shape(hog, jax.ShapeDtypeStruct((5, *shape), jnp.bfloat16))
    assert (found.shape, found.dtype) == ((5, cells * NUM_BINS), jnp.float32)


@pytest.mark.parametrize("number", range(NUM_BINS))
def test_a_grating_falls_into_the_bin_of_its_orientation(number):
    found = jitted_hog(bars(number * np.pi / NUM_BINS)).reshape(-1, NUM_BINS)
    assert np.argmax(np.asarray(found).sum(0)) == number


def test_brightness_and_sign_change_nothing_and_contrast_little():
    x = images(4)
    expected = jitted_hog(x)
    np.testing.assert_allclose(jitted_hog(x + 2), expected, atol=1e-5)
    np.testing.assert_allclose(jitted_hog(-x), expected, atol=1e-6)
    np.testing.assert_allclose(jitted_hog(3 * x), expected, atol=0.02)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=-1), 1, atol=1e-5)
    one_by_one = jax.vmap(lambda image: hog(image[None])[0])(x)
    np.testing.assert_allclose(one_by_one, expected, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients_are_finite_even_for_an_image_of_one_colour(name):
    network = NETWORKS[name]
    params, _ = init_model(network, jax.random.key(0), (8, 8, 1))
    params = jax.tree.map(lambda p: p + 0.1, params)

    def total(params, x):
        return jnp.sum(jnp.square(apply_model(network, {"params": params}, x, train=False)))

    compiled = jax.jit(jax.value_and_grad(total, (0, 1)))
    for x in (np.zeros((2, 8, 8, 1), np.float32), 1e3 * images(2)):
        found = compiled(params, x)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_masks_examples_and_shows_its_features(name):
    network, x = NETWORKS[name], images(4)
    params, state = init_model(network, jax.random.key(0), (8, 8, 1))
    assert state == {}
    if name == "ridge":  # only the linear layer is trained
        shapes = jax.tree.map(jnp.shape, params)
        assert shapes == {"linear": {"kernel": (20, 3), "bias": (3,)}}
    hidden = jax.eval_shape(lambda: features(network, {"params": params}, x))
    assert hidden is not None and hidden.shape == (4, 5 if name == "mlp" else 20)
    broken = x.copy()
    broken[1] = np.nan
    where = np.arange(4) != 1
    both = ((broken, where), (x, np.ones(4, bool)))
    run = jax.jit(functools.partial(apply_model, network, train=False))
    logits, whole = (np.asarray(run({"params": params}, each, where=w)) for each, w in both)
    np.testing.assert_allclose(logits[where], whole[where], atol=1e-6)
    assert np.isfinite(logits).all()


def test_random_features_are_fixed_by_the_seed_and_approximate_a_gaussian_kernel():
    x = images(6)
    wide = FeatureRidge(num_classes=2, num_random=20_000, scale=0.8, pixels=0.0)
    found = np.asarray(random_features(wide, x))
    inputs = np.asarray(jitted_hog(x))
    squares = np.square(inputs[:, None] - inputs[None]).sum(-1)
    np.testing.assert_allclose(found @ found.T, np.exp(-0.32 * squares), atol=0.04)
    few = FeatureRidge(num_classes=2, num_random=8)
    again = FeatureRidge(num_classes=2, num_random=8)
    other = FeatureRidge(num_classes=2, num_random=8, seed=1)
    first, second, third = (random_features(m, x) for m in (few, again, other))
    np.testing.assert_array_equal(first, second)
    assert np.abs(np.asarray(first) - np.asarray(third)).max() > 0.1


@pytest.mark.parametrize("name", NETWORKS)
def test_an_image_of_one_pixel_is_refused(name):
    with pytest.raises(InputError, match="^input: "):
        jax.eval_shape(lambda: init_model(NETWORKS[name], jax.random.key(0), (1, 1, 1)))
