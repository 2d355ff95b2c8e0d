"""The decoder of Llama's family: packed lines, windows, precision, memory; and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.models import checks
from distill_core.models.network import Network
from distill_core.models.text.rotary import frequencies, rotate

# Everything that a family may have, at once.
_KWARGS = {
    "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "width": 16,
    "mlp_width": 20, "qkv_bias": True, "qk_norm": True, "tied": False, "window": 3,
    "full_layers": 1,
}  # fmt: skip
_NETWORK = Network("decoder", 17, _KWARGS, max_length=12)


@pytest.fixture(scope="module")
def variables():
    """Larger than fresh ones, so that every part of the network counts in the logits."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(scale=0.4, size=leaf.shape).astype(np.float32) + (leaf.ndim == 1),
        _NETWORK.shapes(),
    )


def _tokens(*shape):
    return np.random.default_rng(1).integers(0, 17, shape)


@jax.jit
def _logits(variables, tokens, segments):
    return _NETWORK.module().apply(variables, tokens, segments)


def test_lines_packed_into_a_row_give_what_they_give_alone(variables):
    row, segments = _tokens(1, 12), np.array([[0] * 6 + [1] * 5 + [-1]])
    packed = _logits(variables, row, segments)
    assert np.isfinite(packed).all()
    for place in (slice(0, 6), slice(6, 11)):
        alone = _logits(variables, row[:, place], np.zeros((1, place.stop - place.start), int))
        np.testing.assert_allclose(packed[:, place], alone, atol=1e-5)
    assert np.abs(_logits(variables, row, 0 * segments) - packed)[0, 6:11].max() > 0.1


def test_a_position_sees_its_window_and_no_later_token(variables):
    one = dataclasses.replace(_NETWORK, model_kwargs={**_KWARGS, "num_layers": 1, "full_layers": 0})
    params = {k: v for k, v in variables["params"].items() if k != "layers_1"}
    tokens = _tokens(1, 12)
    apply = jax.jit(one.module().apply)
    before = apply({"params": params}, tokens)
    changed = tokens.copy()
    changed[0, 4] = (changed[0, 4] + 1) % 17
    differ = np.abs(apply({"params": params}, changed) - before)[0].max(-1) > 1e-4
    np.testing.assert_array_equal(np.flatnonzero(differ), [4, 5, 6])


def test_bfloat16_is_near_float32_and_blocks_computed_again_give_the_same_gradient(variables):
    tokens, segments = _tokens(2, 12), np.zeros((2, 12), int)

    def loss(network):
        def value(params):
            states, head = network.hidden({"params": params}, tokens, segments)
            logits = states.astype(jnp.float32) @ head.T
            return jnp.mean(jnp.square(logits))

        return jax.jit(jax.value_and_grad(value))

    (exact, kept), (_, again), (rough, _) = (
        loss(dataclasses.replace(_NETWORK, **change))(variables["params"])
        for change in ({}, {"remat": True}, {"compute_dtype": "bfloat16"})
    )
    assert 0 < abs(rough - exact) < 0.05 * exact
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_rotated_products_depend_on_the_distance_alone():
    rng, (turns, factor) = np.random.default_rng(0), frequencies(6, 100.0, None)
    q, k = rng.normal(size=(2, 1, 1, 1, 6))
    products = [
        jnp.sum(
            rotate(jnp.asarray(q), jnp.array([[a + 3]]), turns, factor)
            * rotate(jnp.asarray(k), jnp.array([[a]]), turns, factor)
        )
        for a in (0, 5, 40)
    ]
    np.testing.assert_allclose(products, products[0], rtol=1e-4)
    assert abs(products[0] - np.sum(q * k)) > 1e-3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads: got 3; must divide 4"),
        ({"head_dim": 5}, "head_dim: got 5; must be even"),
        ({"head_dim": None, "width": 18}, "width: got 18; must be divisible by num_heads, 4"),
        ({"window": 0}, "window: got 0; must be positive"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type must be one of linear"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor must be a positive number"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "yarn needs original_max_position"),
        ({"layers": 3}, "it takes num_layers, num_heads, num_kv_heads"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(changes, says):
    network = dataclasses.replace(_NETWORK, model_kwargs={**_KWARGS, **changes})
    with pytest.raises(InputError, match=says):
        checks.check(network)
