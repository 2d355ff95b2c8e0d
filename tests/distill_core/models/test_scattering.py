"""The scattering network: fixed features, whitened by drawn images, under one linear layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.models import CONSTANTS, checks
from distill_core.models.network import Network
from distill_core.models.scattering import Scattering, normalised, scattering, whitening_of

KEY = jax.random.key(0)


def network(size=8, channels=1, **kwargs):
    return Network(
        "scattering",
        10,
        {"J": 1, "components": 40, **kwargs},
        input_shape=(size, size, channels),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        classes=tuple("0123456789"),
    )


def images(num, size, channels=1, seed=0):
    return np.random.default_rng(seed).random((num, size, size, channels), np.float32)


@pytest.mark.parametrize(("size", "J", "L"), [(8, 1, 8), (28, 2, 8), (33, 2, 5), (32, 3, 4)])
def test_equals_kymatio(size, J, L):
    frontend = pytest.importorskip("kymatio.scattering2d.frontend.numpy_frontend")
    x = images(2, size, 2)
    expected = frontend.ScatteringNumPy2D(J=J, shape=(size, size), L=L)(np.moveaxis(x, 3, 1))
    found = scattering(jnp.asarray(x), J, L)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("size", "J", "L"), [(8, 1, 8), (28, 2, 8), (32, 3, 4)])
def test_has_all_paths_of_two_orders(size, J, L):
    found = scattering(jnp.asarray(images(1, size, 3)), J, L)
    paths = 1 + J * L + L**2 * J * (J - 1) // 2
    assert found.shape == (1, 3, paths, size // 2**J, size // 2**J)


def test_a_shift_changes_the_features_less_than_the_pixels():
    x = np.zeros((1, 32, 32, 1), np.float32)
    x[:, 10:20, 12:16] = 1
    shifted = np.roll(x, 1, axis=2)

    def apart(a, b):
        return np.linalg.norm(a - b) / np.linalg.norm(a)

    found = [np.asarray(scattering(jnp.asarray(each), 3, 4)) for each in (x, shifted)]
    assert apart(*found) < apart(x, shifted) / 3


def test_is_differentiable_by_its_input_even_where_it_is_constant():
    one = network()
    params, state = one.init(KEY)
    params["linear"]["kernel"] = np.random.default_rng(0).normal(size=(40, 10)).astype(np.float32)
    variables = {"params": params, **state}

    def total(x):
        return jnp.sum(one.apply(variables, x)[:, 3])

    assert np.isfinite(jax.grad(total)(jnp.zeros((2, 8, 8, 1)))).all()
    x, way = jnp.asarray(images(1, 8)) * 0.8 + 0.1, jnp.asarray(images(1, 8, seed=1)) - 0.5
    slope = jnp.vdot(jax.grad(total)(x), way)
    step = 1e-2
    numeric = (total(x + step * way) - total(x - step * way)) / (2 * step)
    np.testing.assert_allclose(slope, numeric, rtol=2e-2)


def test_an_image_has_the_same_logits_in_every_batch_and_under_vmap():
    one = network()
    params, state = one.init(KEY)
    variables, x = {"params": params, **state}, jnp.asarray(images(4, 8))
    whole = one.public(variables, x)
    alone = jax.vmap(lambda each: one.public(variables, each[None])[0])(x)
    np.testing.assert_allclose(whole, alone, atol=1e-4)


def test_groups_are_normalised_for_each_image():
    found = normalised(jnp.asarray(np.random.default_rng(0).normal(2, 3, (2, 3, 9, 4, 4))))
    groups = np.asarray(found).reshape(2, 9, -1)  # of three paths each
    np.testing.assert_allclose(groups.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(groups.std(-1), 1, atol=1e-3)


def test_whitening_evens_out_drawn_images_and_sees_no_others():
    one = network(components=20, ridge=1e-6)
    _, state = one.init(KEY)
    from distill_core.data.images import procedural

    weights = dict.fromkeys(procedural.KINDS, 1.0)
    drawn = procedural.mixture(99, 4000, size=8, channels=1, weights=weights)
    found = np.asarray(one.public({**state}, jnp.asarray(drawn)))
    np.testing.assert_allclose(found.mean(0), 0, atol=0.15)
    np.testing.assert_allclose(np.cov(found.T), np.eye(20), atol=0.15)
    again = whitening_of.__wrapped__(Scattering(1, J=1, components=20, ridge=1e-6), (8, 8, 1),
                                     (0.5,), (0.25,))  # fmt: skip
    np.testing.assert_array_equal(again["projection"], state[CONSTANTS]["projection"])


def test_networks_that_differ_in_other_things_share_a_whitening_by_value():
    kwargs = {"components": 20, "whitening": ["noise"]}
    one = network(**kwargs)
    again = Network.from_json(one.to_json())
    assert again == one and hash(again) == hash(one) and hash(again.module()) == hash(one.module())
    assert one.to_json()["model_kwargs"] == {"J": 1, **kwargs}
    others = dataclasses.replace(one, num_classes=3), network(ridge=2.0, **kwargs)
    whitening_of.cache_clear()
    found = [each.init(KEY)[1][CONSTANTS] for each in (one, again, *others)]
    assert found[0] is found[1] is found[2] and found[3] is not found[0]
    assert whitening_of.cache_info().misses == 2


def test_constants_are_stored_with_the_network_and_restored(tmp_path):
    from distill_core import checkpoint

    one = network()
    params, state = one.init(KEY)
    parts = {"model": {"params": params, "model_state": state}}
    metadata = {
        "method": "test",
        "parts": {"model": one.to_json()},
        "config": {},
        "ledger": {"mechanisms": [], "ancestors": []},
    }
    checkpoint.save(tmp_path, 1, parts=parts, train={"step": np.int32(1)}, metadata=metadata).wait()
    loaded = checkpoint.load_model(tmp_path)
    for name, stored in loaded.variables[CONSTANTS].items():
        np.testing.assert_array_equal(stored, state[CONSTANTS][name])


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"kwargs": {"J": 2}}, "model_kwargs.J"),  # 8 pixels are too few
        ({"kwargs": {"J": 0}}, "model_kwargs.J"),
        ({"kwargs": {"L": 0}}, "model_kwargs.L"),
        ({"kwargs": {"components": 0}}, "model_kwargs.components"),
        ({"kwargs": {"ridge": 0}}, "model_kwargs.ridge"),
        ({"kwargs": {"whitening": "tfds:mnist"}}, "model_kwargs.whitening"),
        ({"kwargs": {"whitening": ("mnist",)}}, "model_kwargs.whitening"),
        ({"kwargs": {"whitening": ()}}, "model_kwargs.whitening"),
        ({"shape": (8, 9, 1)}, "model"),
    ],
)
def test_what_it_cannot_take_is_refused_by_name(given, field):
    one = Network(
        "scattering",
        10,
        {"J": 1, **given.get("kwargs", {})},
        input_shape=given.get("shape", (8, 8, 1)),
        mean=(0.5,),
        std=(0.5,),
        classes=tuple("0123456789"),
    )
    with pytest.raises(InputError) as caught:
        checks.check(one)
    assert caught.value.field == field
