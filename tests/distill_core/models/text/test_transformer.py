import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.models import Transformer, checks, count_parameters, init_model
from distill_core.models.network import LoadedModel, Network, stored_as

_LENGTH = 12
_SMALL = Transformer(vocab_size=17, max_length=_LENGTH, num_layers=2, num_heads=2, width=16)


@pytest.fixture(scope="module")
def variables():
    """Larger than fresh ones, so that every part of the network counts in the logits."""
    params, state = init_model(_SMALL, jax.random.key(0), (_LENGTH,), dtype=jnp.int32)
    assert state == {}
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)
    ]
    return {"params": jax.tree.unflatten(structure, noisy)}


@pytest.fixture(scope="module")
def apply():
    return jax.jit(_SMALL.apply)


def _tokens(*shape):
    return np.random.default_rng(0).integers(0, _SMALL.vocab_size, shape)


def _hidden(module, variables, tokens) -> Any:
    return jax.jit(functools.partial(module.apply, method="hidden"))(variables, tokens)


def test_parameter_count_of_gpt2_small():
    module = Transformer(50257, 1024, num_layers=12, num_heads=12, width=768)
    params, _ = jax.eval_shape(
        lambda key: init_model(module, key, (1024,), dtype=jnp.int32), jax.random.key(0)
    )
    assert count_parameters(params) == 124_439_808


def test_a_later_token_changes_no_earlier_logits(apply, variables):
    tokens = _tokens(1, _LENGTH)
    before = apply(variables, tokens)
    for place in (0, 5, _LENGTH - 1):
        changed = tokens.copy()
        changed[0, place] = (changed[0, place] + 1) % _SMALL.vocab_size
        different = np.abs(apply(variables, changed) - before)[0].max(-1)
        np.testing.assert_array_equal(different[:place], 0)
        assert (different[place:] > 1e-3).all()


def test_lines_packed_into_a_row_give_what_they_give_alone(apply, variables):
    lines = [_tokens(5), _tokens(4)[::-1], _tokens(1)]
    row = np.zeros((1, _LENGTH), int)
    segments = np.full((1, _LENGTH), -1)
    start = 0
    for number, line in enumerate(lines):
        row[0, start : start + len(line)] = line
        segments[0, start : start + len(line)] = number
        start += len(line)
    packed = apply(variables, row, segments)
    assert np.isfinite(packed).all()
    start = 0
    for line in lines:
        alone = apply(variables, line[None])[0]
        np.testing.assert_allclose(packed[0, start : start + len(line)], alone, atol=1e-5)
        start += len(line)
    # It is the segments that do it.
    assert np.abs(apply(variables, row) - packed)[0, 5:10].max() > 0.1


def test_bfloat16_gives_float32_logits_near_those_of_float32(apply, variables):
    tokens = _tokens(2, _LENGTH)
    exact = apply(variables, tokens)
    module = _SMALL.copy(dtype="bfloat16")
    rough = jax.jit(module.apply)(variables, tokens)
    assert exact.dtype == rough.dtype == jnp.float32
    assert _hidden(module, variables, tokens).dtype == jnp.bfloat16
    assert 0 < np.abs(rough - exact).max() < 0.1 * exact.std()


def test_blocks_computed_again_give_the_same_gradient(variables):
    tokens, segments = _tokens(2, _LENGTH), np.repeat([[0, 1]], _LENGTH // 2, axis=1)
    segments = np.repeat(segments, 2, axis=0)
    kwargs = {"num_layers": 2, "num_heads": 2, "width": 16}
    plain = Network("transformer", 17, kwargs, max_length=_LENGTH)
    again = dataclasses.replace(plain, remat=True)
    assert again.to_json() == plain.to_json() and again.shapes() == plain.shapes()

    def gradient(network):
        def loss(params):
            return jnp.square(network.hidden({"params": params}, tokens, segments)[0]).sum()

        return jax.make_jaxpr(jax.grad(loss))(variables["params"]), jax.jit(jax.grad(loss))(
            variables["params"]
        )

    (kept, one), (recomputed, two) = gradient(plain), gradient(again)
    assert "remat" in str(recomputed) and "remat" not in str(kept)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dtype", "remat"])
def test_precision_and_memory_are_settings_of_the_run(name):
    network = Network("transformer", 17, {name: "float32"}, max_length=_LENGTH)
    with pytest.raises(InputError, match=f"^model_kwargs.{name}: .* leave it out"):
        network.module()


def test_a_frozen_network_is_stored_and_computed_in_what_it_is_asked_for(variables):
    kwargs = {"num_layers": 2, "num_heads": 2, "width": 16}
    network = Network("transformer", 17, kwargs, max_length=_LENGTH)
    loaded = LoadedModel(variables, network, {"id": "a"})
    assert stored_as(loaded, "float32") is loaded
    small = stored_as(loaded, "bfloat16")
    assert small.metadata == {"id": "a"}
    assert {leaf.dtype for leaf in jax.tree.leaves(small.variables)} == {jnp.dtype("bfloat16")}
    states, _ = small.network.hidden(small.variables, _tokens(2, _LENGTH))
    exact, _ = network.hidden(variables, _tokens(2, _LENGTH))
    assert states.dtype == jnp.bfloat16
    assert 0 < np.abs(np.asarray(states, np.float32) - exact).max() < 0.1 * np.std(exact)


def test_refuses_rows_that_are_too_long_or_none_and_a_width_that_heads_do_not_divide(variables):
    for shape in [(1, _LENGTH + 1), (2, 0), (4,), (1, 2, 3)]:
        with pytest.raises(InputError, match="^input: "):
            _SMALL.apply(variables, np.zeros(shape, int))
    with pytest.raises(InputError, match="width: "):
        init_model(_SMALL.copy(num_heads=3), jax.random.key(0), (_LENGTH,), dtype=jnp.int32)


def test_a_network_gives_its_logits_and_hidden_states(apply, variables):
    kwargs = {"num_layers": 2, "num_heads": 2, "width": 16}
    network = Network("transformer", 17, kwargs, max_length=_LENGTH)
    checks.check(network)
    assert network.load_tokenizer() is None
    tokens = _tokens(2, _LENGTH)
    logits = jax.jit(network.apply)(variables, tokens)
    np.testing.assert_allclose(logits, apply(variables, tokens), atol=1e-6)
    one_segment = np.full_like(tokens, 3)
    states, embedding = jax.jit(network.hidden)(variables, tokens, one_segment)
    assert (states.shape, embedding.shape) == ((2, _LENGTH, 16), (17, 16))
    np.testing.assert_allclose(states @ embedding.T, logits, atol=1e-5)
