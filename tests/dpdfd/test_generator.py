"""The generator's shapes, classes, norms and samples."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.models import count_parameters, init_model
from distill_core.runtime.collectives import AXIS
from dpdfd.generator import Generator

SMALL = {"latent_size": 5, "width": 4, "label_features": 3}
PLAIN = Generator((8, 8, 1), **SMALL)
CLASSES = Generator((8, 8, 2), num_classes=3, conditional=True, **SMALL)


def initialised(generator, seed=0):
    params, state = init_model(generator, jax.random.key(seed), (generator.latent_size,))
    return {"params": params, **state}


@functools.partial(jax.jit, static_argnums=0)
def drawn(generator, variables, z, labels=None):
    return generator.apply(variables, z, labels)


@functools.partial(jax.jit, static_argnums=0)
def trained(generator, variables, z, labels=None, where=None):
    """Images and the new statistics."""
    return generator.apply(variables, z, labels, train=True, where=where, mutable=["batch_stats"])


def latent(num, seed=0):
    return np.random.default_rng(seed).normal(size=(num, 5)).astype(np.float32)


def test_it_has_the_parameters_of_its_layers():
    params, state = jax.eval_shape(
        lambda key: init_model(Generator((32, 32, 3)), key, (100,)), jax.random.key(0)
    )
    dense, convolutions = 101 * 128 * 8 * 8, 9 * (128 * 128 + 128 * 64 + 64 * 3) + 3
    norms = 2 * (128 + 128 + 64)
    assert count_parameters(params) == dense + convolutions + norms == 1_050_947
    assert list(state) == ["batch_stats"]


@pytest.mark.parametrize("shape", [(4, 4, 1), (8, 8, 1), (28, 28, 1), (32, 32, 3), (12, 20, 2)])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("conditional", [False, True])
def test_images_of_every_size_come_from_every_norm(shape, norm, conditional):
    generator = Generator(shape, num_classes=3, conditional=conditional, norm=norm, **SMALL)
    variables = jax.eval_shape(lambda: initialised(generator))
    assert sorted(variables) == (["batch_stats"] if norm == "batch" else []) + ["params"]
    labels = jax.ShapeDtypeStruct((6,), jnp.int32) if conditional else None
    z = jax.ShapeDtypeStruct((6, 5), jnp.bfloat16)
    images, state = jax.eval_shape(
        lambda v, z, labels: generator.apply(v, z, labels, train=True, mutable=["batch_stats"]),
        variables,
        z,
        labels,
    )
    assert images.shape == (6, *shape)
    assert images.dtype == jnp.float32
    assert state == {name: value for name, value in variables.items() if name != "params"}


def test_the_layers_are_those_described():
    """Against the same network by hand, without a norm."""
    generator = PLAIN.copy(norm="none")
    variables = initialised(generator)
    p = jax.tree.map(np.asarray, variables["params"])

    def conv(x, layer):
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        height, width = x.shape[1] - 2, x.shape[2] - 2
        return layer["bias"] + sum(
            x[:, i : i + height, j : j + width] @ layer["kernel"][i, j]
            for i in range(3)
            for j in range(3)
        )

    x = latent(3) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    x = x.reshape(3, 2, 2, 8)
    for name in ("Conv_0", "Conv_1"):
        x = conv(x.repeat(2, axis=1).repeat(2, axis=2), p[name])
        x = np.where(x > 0, x, 0.2 * x)
    expected = 1 / (1 + np.exp(-conv(x, p["Conv_2"])))
    np.testing.assert_allclose(drawn(generator, variables, latent(3)), expected, rtol=1e-4)


def test_the_class_is_drawn():
    variables = initialised(CLASSES)
    z = np.repeat(latent(1), 3, axis=0)
    images = drawn(CLASSES, variables, z, np.array([0, 1, 1], np.uint8))
    np.testing.assert_allclose(images[1], images[2], rtol=1e-5)
    assert np.abs(images[0] - images[1]).max() > 1e-3
    wrong = drawn(CLASSES, variables, z, jnp.array([-1, 3, 2]))
    assert np.isnan(wrong[:2]).all(), "a label outside is not wrapped or clipped"
    assert np.isfinite(wrong[2]).all()


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_masked_is_sliced_in_training_even_with_nan(norm):
    generator = CLASSES.copy(norm=norm)
    variables = initialised(generator)
    z, labels, where = latent(5), np.array([0, 99, 2, 1, -7]), np.array([1, 0, 1, 1, 0], bool)
    z[~where] = np.nan

    @jax.jit
    def gradient(params, z, labels, mask):
        def loss(params):
            images, state = trained(generator, {**variables, "params": params}, z, labels, mask)
            kept = images if mask is None else jnp.where(mask[:, None, None, None], images, 0)
            return jnp.sum(jnp.sin(kept)), (images, state)

        return jax.grad(loss, has_aux=True)(params)

    found, (images, state) = gradient(variables["params"], z, labels, where)
    expected, (images_s, state_s) = gradient(variables["params"], z[where], labels[where], None)
    assert np.isfinite(images).all()
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(found)), "all are reached"
    np.testing.assert_allclose(images[where], images_s, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close((found, state), (expected, state_s), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["group", "none", "batch"])
def test_images_lie_in_the_unit_interval_and_only_batch_norm_mixes_them(norm):
    generator = PLAIN.copy(norm=norm)
    variables = initialised(generator)
    together, _ = trained(generator, variables, latent(6))
    alone, _ = trained(generator, variables, latent(6)[:3])
    assert (np.abs(together[:3] - alone).max() < 1e-5) == (norm != "batch")
    images = np.asarray(drawn(generator, variables, 1e3 * latent(6)))
    assert images.min() >= 0 and images.max() <= 1
    assert len(np.unique(images.reshape(6, -1), axis=0)) == 6


def test_eight_devices_make_the_images_of_one():
    variables = initialised(PLAIN)
    z = latent(16)
    one = trained(PLAIN, variables, z)
    eight = jax.pmap(
        functools.partial(trained, PLAIN),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=(0, None),
    )(variables, z.reshape(8, 2, 5))
    np.testing.assert_allclose(eight[0].reshape(one[0].shape), one[0], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(eight[1], one[1], rtol=1e-4, atol=1e-5)


def test_samples_depend_on_key_index_and_label_alone():
    variables, key = initialised(CLASSES), jax.random.key(3)
    labels = jnp.arange(11) % 3
    images = CLASSES.sample(variables, key, 11, labels)
    assert images.shape == (11, 8, 8, 2)
    assert images.dtype == jnp.float32
    fewer = CLASSES.sample(variables, key, 4, labels[:4], batch_size=3)
    np.testing.assert_allclose(fewer, images[:4], rtol=1e-4, atol=1e-6)
    swapped = CLASSES.sample(variables, key, 4, labels[:4].at[2].set(0))
    changed = np.abs(swapped - images[:4]).max((1, 2, 3)) > 1e-4
    np.testing.assert_array_equal(changed, [False, False, True, False])
    other = CLASSES.sample(variables, jax.random.key(4), 11, labels)
    assert np.abs(other - images).max((1, 2, 3)).min() > 1e-4
    assert CLASSES.sample(variables, key, 0).shape == (0, 8, 8, 2)


def test_samples_are_inference_on_normal_latent_vectors():
    def one(key):
        z = jax.random.normal(jax.random.fold_in(key, 0), (1, 5))
        return drawn(PLAIN, variables, z)[0]

    variables, key = initialised(PLAIN), jax.random.key(0)
    expected = [one(jax.random.fold_in(key, i)) for i in range(3)]
    np.testing.assert_allclose(PLAIN.sample(variables, key, 3), expected, rtol=1e-4, atol=1e-6)


def test_labels_not_given_are_drawn_uniformly():
    variables, key, num = initialised(CLASSES), jax.random.key(0), 300
    images = CLASSES.sample(variables, key, num)
    of_class = [CLASSES.sample(variables, key, num, jnp.full(num, c)) for c in range(3)]
    found = np.stack([np.abs(images - each).max((1, 2, 3)) < 1e-5 for each in of_class])
    np.testing.assert_array_equal(found.sum(0), 1)
    np.testing.assert_allclose(found.mean(1), 1 / 3, atol=0.1)


@pytest.mark.parametrize(
    ("field", "options", "z", "labels"),
    [
        *[
            ("image_shape", {"image_shape": shape}, (2, 5), None)
            for shape in ((30, 28, 1), (28, 2, 1), (0, 28, 1), (28, 28))
        ],
        ("norm", {"norm": "layer"}, (2, 5), None),
        ("num_classes", {"conditional": True}, (2, 5), jnp.zeros(2, int)),
        ("num_classes", {"conditional": True, "num_classes": 0}, (2, 5), jnp.zeros(2, int)),
        ("z", {}, (2, 4), None),
        ("z", {}, (5,), None),
        ("labels", {}, (2, 5), jnp.zeros(2, int)),
        *[
            ("labels", {"conditional": True, "num_classes": 3}, (2, 5), labels)
            for labels in (jnp.zeros(3, int), jnp.zeros(2))
        ],
    ],
)
def test_wrong_settings_and_inputs_are_refused(field, options, z, labels):
    generator = Generator(**{"image_shape": (8, 8, 1), **SMALL, **options})
    with pytest.raises(InputError, match=f"^{field}: "):
        generator.init(jax.random.key(0), jnp.zeros(z), labels)


@pytest.mark.parametrize(
    ("field", "num", "options"),
    [("num", -1, {}), ("batch_size", 2, {"batch_size": 0}), ("labels", 2, {"labels": np.zeros(3)})],
)
def test_wrong_samples_are_refused(field, num, options):
    with pytest.raises(InputError, match=f"^{field}: "):
        CLASSES.sample({}, jax.random.key(0), num, **options)
