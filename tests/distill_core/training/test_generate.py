"""Continued texts: the likeliest token is that of the whole forward pass, draws follow it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.models import Transformer
from distill_core.models.network import Network
from distill_core.training.generate import _generate, generate

V, LENGTH = 7, 12
NETWORK = Network(
    "transformer", V, {"width": 16, "num_layers": 2, "num_heads": 2}, max_length=LENGTH
)
PROMPTS = np.array([[1, 5, 2, 6], [3, 0, 0, 0], [4, 4, 0, 0]], np.int32)
LENGTHS = np.array([4, 1, 2], np.int32)


@pytest.fixture(scope="module")
def variables():
    """Wide, so that the likeliest token depends on all that precedes it."""
    rng = np.random.default_rng(1)
    shapes = NETWORK.shapes()["params"]
    return {"params": jax.tree.map(lambda x: rng.normal(0, 0.6, x.shape).astype(x.dtype), shapes)}


@functools.partial(jax.jit, static_argnums=0)
def forward(network, variables, tokens):
    return network.apply(variables, tokens)


def by_hand(network, variables, prompt, num_tokens):
    """The likeliest token by the whole forward pass, again for every token."""
    line = list(prompt)
    for _ in range(num_tokens):
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(line)] = line
        line.append(int(np.argmax(forward(network, variables, padded)[0, len(line) - 1])))
    return line[len(prompt) :]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_likeliest_token_is_that_of_the_whole_forward_pass(variables, dtype):
    network = dataclasses.replace(NETWORK, compute_dtype=dtype)
    found = generate(network, variables, PROMPTS, LENGTHS, num_tokens=6)
    assert found.dtype == jnp.int32
    pairs = zip(PROMPTS, LENGTHS, strict=True)
    expected = [by_hand(network, variables, prompt[:n], 6) for prompt, n in pairs]
    np.testing.assert_array_equal(found, expected)
    assert len(set(map(tuple, expected))) == 3, "or the prompts would not matter"


def test_what_stands_behind_a_prompt_does_not_count(variables):
    other = PROMPTS.copy()
    other[1, 1:], other[2, 2:] = 6, 1
    found = [generate(NETWORK, variables, p, LENGTHS, num_tokens=6) for p in (PROMPTS, other)]
    np.testing.assert_array_equal(*found)


def test_hidden_states_one_token_at_a_time_are_those_of_the_row(variables):
    tokens = np.random.default_rng(1).integers(0, V, (2, LENGTH))
    whole, _ = NETWORK.hidden(variables, tokens)
    cache = NETWORK.empty_cache(variables, 2, LENGTH)
    step = jax.jit(NETWORK.next_hidden)
    for place in range(LENGTH):
        states, embedding, cache = step(variables, cache, tokens[:, place], place)
        np.testing.assert_allclose(states, whole[:, place], atol=1e-5)
    assert embedding.shape == (V, 16)


def test_draws_follow_the_softmax_and_the_tokens_drawn_before(variables):
    """A chi-square of all pairs of two tokens; the seed is one of many that pass at p > 0.01."""
    from scipy import stats

    num, temperature = 4000, 2.0
    prompts = np.tile(PROMPTS[:1], (num, 1))
    how = {"num_tokens": 2, "key": jax.random.key(0), "temperature": temperature}
    drawn = np.asarray(generate(NETWORK, variables, prompts, np.full(num, 4, np.int32), **how))
    rows = np.zeros((V, LENGTH), np.int32)
    rows[:, :4], rows[:, 4] = PROMPTS[0], np.arange(V)
    logits = np.asarray(forward(NETWORK, variables, rows), np.float64) / temperature
    first = np.exp(logits[0, 3]) / np.exp(logits[0, 3]).sum()
    second = np.exp(logits[:, 4]) / np.exp(logits[:, 4]).sum(axis=1, keepdims=True)
    expected = (num * first[:, None] * second).ravel()
    counts = np.bincount(drawn[:, 0] * V + drawn[:, 1], minlength=V * V)
    assert expected.min() >= 5
    assert stats.chisquare(counts, expected).pvalue > 0.01
    # The temperature counts: at half of it the same draws would be rejected.
    sharp = np.exp(2 * logits[0, 3]) / np.exp(2 * logits[0, 3]).sum()
    by_first = np.bincount(drawn[:, 0], minlength=V)
    assert stats.chisquare(by_first, num * sharp / sharp.sum()).pvalue < 1e-6


def test_it_compiles_once_per_shape(variables):
    before = _generate._cache_size()
    for prompts, temperature in ((PROMPTS, 0.5), (PROMPTS[::-1], 2.0)):
        how = {"num_tokens": 3, "key": jax.random.key(1), "temperature": temperature}
        generate(NETWORK, variables, prompts, LENGTHS, **how)
    assert _generate._cache_size() == before + 1


class _WithoutCache(Transformer):
    next_hidden = None


class _Unbounded(Transformer):
    bounded = False


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("num_tokens", {"num_tokens": 0}),
        ("num_tokens", {"num_tokens": LENGTH - 2}),
        ("lengths", {"lengths": [4, 0, 2]}),
        ("lengths", {"lengths": [5, 1, 2]}),
        ("temperature", {"temperature": 1.0}),
        ("temperature", {"temperature": -1.0}),
    ],
)
def test_wrong_input_is_refused(variables, field, changes):
    given = {"lengths": LENGTHS, "num_tokens": 2, **changes}
    with pytest.raises(InputError) as error:
        generate(NETWORK, variables, PROMPTS, **given)
    assert error.value.field == field


@pytest.mark.parametrize("kind", [_WithoutCache, _Unbounded])
def test_a_network_that_cannot_continue_is_refused_and_rotary_positions_have_no_end(
    variables, monkeypatch, kind
):
    module = kind(V, LENGTH, num_layers=2, num_heads=2, width=16)
    monkeypatch.setattr(Network, "module", lambda self: module)
    if kind is _WithoutCache:
        with pytest.raises(InputError, match="^model: .*next_hidden"):
            generate(NETWORK, variables, PROMPTS, LENGTHS, num_tokens=2)
    else:
        found = generate(NETWORK, variables, PROMPTS, LENGTHS, num_tokens=LENGTH)
        assert found.shape == (3, LENGTH)
