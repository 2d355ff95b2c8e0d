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
_GEMMA_KWARGS = {
    **_KWARGS, "qkv_bias": False, "full_layers": 0, "full_every": 2, "local_rope_theta": 30.0,
    "query_scalar": 5.0, "gemma": True,
}  # fmt: skip
_GEMMA = Network("decoder", 17, _GEMMA_KWARGS, max_length=12)


def _variables(network):
    """Larger than fresh ones, so that every part of the network counts in the logits."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(scale=0.4, size=leaf.shape).astype(np.float32) + (leaf.ndim == 1),
        network.shapes(),
    )


@pytest.fixture(scope="module")
def variables():
    return _variables(_NETWORK)


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


@pytest.mark.parametrize("network", [_NETWORK, _GEMMA], ids=["llama", "gemma"])
def test_hidden_states_one_token_at_a_time_are_those_of_packed_lines(network):
    variables, tokens = _variables(network), _tokens(2, 12)
    segments = np.repeat([[0, 1]], 6, axis=1).repeat(2, axis=0)
    packed, _ = network.hidden(variables, tokens, segments)
    cache, step = network.empty_cache(variables, 2, 6), jax.jit(network.next_hidden)
    for place in range(12):
        states, _, cache = step(variables, cache, tokens[:, place], place % 6)
        np.testing.assert_allclose(states, packed[:, place], atol=2e-5)


def test_every_so_many_layers_see_all_positions_and_the_others_turn_otherwise():
    kwargs = {**_GEMMA_KWARGS, "num_layers": 5, "rope_scaling": {"type": "linear", "factor": 8}}
    network = dataclasses.replace(_GEMMA, model_kwargs=kwargs)
    layers = network.module().bind(network.shapes()).layers
    assert [layer.window for layer in layers] == [3, None, 3, None, 3]
    near, far = frequencies(6, 30.0, None), frequencies(6, 10_000.0, kwargs["rope_scaling"])
    for layer, (turns, _) in zip(layers, [near, far, near, far, near], strict=True):
        np.testing.assert_array_equal(layer.rope[0], turns)


def test_queries_are_divided_by_the_root_of_their_scalar():
    variables, tokens = _variables(_GEMMA), _tokens(1, 12)
    params = dict(variables["params"])
    for name in ("layers_0", "layers_1"):
        scale = (1 + params[name]["q_norm"]["scale"]) * (6 / 5) ** 0.5 - 1
        params[name] = {**params[name], "q_norm": {"scale": scale.astype(np.float32)}}
    kwargs = {**_GEMMA_KWARGS, "query_scalar": None}
    usual = dataclasses.replace(_GEMMA, model_kwargs=kwargs).apply({"params": params}, tokens)
    np.testing.assert_allclose(_GEMMA.apply(variables, tokens), usual, rtol=1e-4, atol=1e-4)


def test_a_fresh_gemma_multiplies_by_one_and_scales_its_embedding():
    fresh, _ = _GEMMA.init(jax.random.key(0))
    assert not np.any(fresh["norm"]["scale"])
    params = {**fresh, "embed_tokens": np.full((17, 16), 0.5, np.float32)}
    module = _GEMMA.module()
    embedded = module.apply({"params": params}, params, _tokens(1, 3), method="_embedded")
    np.testing.assert_array_equal(embedded, np.full((1, 3, 16), 2.0))  # 0.5 √16
    hidden, _ = _GEMMA.hidden({"params": fresh}, _tokens(1, 12))
    np.testing.assert_allclose(np.mean(np.square(hidden), -1), np.ones((1, 12)), rtol=1e-3)


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
        ({"full_every": 0}, "full_every: got 0; must be positive"),
        ({"query_scalar": -1.0}, "query_scalar: got -1.0; must be positive"),
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
