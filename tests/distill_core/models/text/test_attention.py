"""Attention against its formula, and which kernel it goes through."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental.pallas import tpu as pltpu

from distill_core.models.text import attention
from distill_core.models.text.transformer import Transformer
from distill_core.runtime import backend

B, L, H, D = 2, 12, 3, 4
# Packed lines, one of them at the end of its row alone, and padding.
SEGMENTS = np.array([[0] * 5 + [1] * 6 + [-1], [2] * 11 + [3]])


def by_its_formula(q, k, v, segments, window=L):
    seen = (np.tril(np.ones((L, L), bool)) & ~np.tril(np.ones((L, L), bool), -window))[None]
    if segments is not None:
        seen = seen & (segments[:, :, None] == segments[:, None, :])
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(D)
    scores = np.where(seen[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.fixture(scope="module")
def qkv():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(B, L, H, D)).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one line", "packed"])
def test_it_is_the_formula(qkv, segments):
    found = jax.jit(attention.attend)(*qkv, segments)
    expected = by_its_formula(*(x.astype(np.float64) for x in qkv), segments)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_heads_may_share_keys_and_values_and_see_a_window(qkv):
    q, k, v = qkv
    k, v = k[:, :, :1], v[:, :, :1]
    found = jax.jit(lambda *qkv: attention.attend(*qkv, SEGMENTS, window=3))(q, k, v)
    shared = (np.repeat(x, H, axis=2).astype(np.float64) for x in (k, v))
    expected = by_its_formula(q.astype(np.float64), *shared, SEGMENTS, window=3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_it_is_near_the_formula_and_stays_bfloat16(qkv):
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in qkv]
    found = jax.jit(attention.attend)(*rounded, SEGMENTS)
    assert found.dtype == jnp.bfloat16
    expected = by_its_formula(*(np.asarray(x, np.float64) for x in rounded), SEGMENTS)
    assert np.abs(np.asarray(found, np.float64) - expected).max() < 2e-2 * np.abs(expected).max()


def test_on_a_tpu_rows_of_whole_blocks_go_through_a_kernel_without_scores():
    module = Transformer(11, 256, num_layers=1, num_heads=2, width=16, dtype="bfloat16")
    tokens = jnp.zeros((2, 256), jnp.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), tokens)

    def loss(params, segments):
        return module.apply(params, tokens, segments).sum()

    def program():
        found = jax.make_jaxpr(jax.grad(lambda p: loss(p, jnp.zeros_like(tokens))))(params)
        return str(found)

    plain = program()
    with backend.assume("tpu", 2**34):
        fused = program()
    assert "pallas_call" not in plain and "pallas_call" in fused
    # [B, H, L, L] is there, or is not.
    assert "2,2,256,256]" in plain and "2,2,256,256]" not in fused


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_the_kernel_of_tpus_gives_what_is_given_elsewhere(dtype, tolerance):
    """Interpreted, as there is no TPU: values, and gradients of all three inputs."""
    rng, shape = np.random.default_rng(0), (1, 256, 2, 16)
    qkv = [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(3)]
    wanted = rng.normal(size=shape)
    segments = np.repeat([[0, 1, 2, -1]], [100, 60, 90, 6], axis=1)

    def both(q, k, v):
        found = attention.attend(q, k, v, segments)
        return jnp.sum(found.astype(jnp.float32) * wanted), found

    def run():
        return jax.grad(both, argnums=(0, 1, 2), has_aux=True)(*qkv)

    plain = jax.tree.leaves(run())
    with backend.assume("tpu", 2**34), pltpu.force_tpu_interpret_mode():
        fused = jax.tree.leaves(run())
    for one, other in zip(plain, fused, strict=True):
        one, other = (np.asarray(x, np.float64)[:, :-6] for x in (one, other))
        assert np.abs(one - other).max() <= tolerance * np.abs(one).max()


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"dtype": jnp.float32}, False),
        ({"length": 7}, False),
        ({"head": 160}, False),
        ({"head": 12}, False),
        ({"capability": "7.5"}, False),
        ({"platform": "cpu"}, False),
    ],
)
def test_on_a_gpu_cudnn_gets_what_it_can_take(monkeypatch, changes, fits):
    how = {"dtype": jnp.bfloat16, "length": 8, "head": 64, "capability": "9.0", "platform": "gpu"}
    how |= changes
    device = type("Device", (), {"compute_capability": how["capability"]})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    asked = []
    real = jax.nn.dot_product_attention

    def attention_of(*args, implementation, **kwargs):
        asked.append(implementation)
        return real(*args, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention_of)
    x = jnp.zeros((1, how["length"], 2, how["head"]), how["dtype"])
    with backend.assume(how["platform"], 2**34):
        attention.attend(x, x, x, jnp.zeros((1, how["length"]), jnp.int32))
    assert asked == ["cudnn" if fits else "xla"]


@pytest.mark.parametrize("window", [None, 3])
def test_one_position_at_a_time_gives_what_the_row_gives(window):
    """With fewer key heads than query heads, and lines that are at different places."""
    rng, places = np.random.default_rng(0), np.array([L, L - 4])
    q = rng.normal(size=(B, L, 4, D)).astype(np.float32)
    k, v = (rng.normal(size=(B, L, 2, D)).astype(np.float32) for _ in range(2))

    class Next(nn.Module):
        @nn.compact
        def __call__(self, q, k, v, place):
            return attention.attend_next(self, q, k, v, place, window)

    step = jax.jit(functools.partial(Next().apply, mutable=["cache"]))
    cache = {"keys": np.full((B, L, 2, D), 9.0, np.float32), "values": np.zeros((B, L, 2, D))}
    variables = {"cache": jax.tree.map(jnp.float32, cache)}
    rows = np.arange(B)
    scores = np.einsum("bqhd,bkhd->bhqk", q, np.repeat(k, 2, axis=2)) / np.sqrt(D)
    behind = np.arange(L)[:, None] - np.arange(L)
    seen = (behind >= 0) & (behind < (window or L))
    weights = np.exp(np.where(seen, scores, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, np.repeat(v, 2, axis=2))
    for step_number in range(L):
        at = np.minimum(step_number, places - 1)
        found, variables = step(variables, *(x[rows, at][:, None] for x in (q, k, v)), at)
        np.testing.assert_allclose(found[:, 0], expected[rows, at], atol=1e-5)
