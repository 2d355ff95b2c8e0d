"""Cross-entropy from hidden states against that of whole logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.losses import cross_entropy
from distill_core.runtime import backend
from distill_core.training import chunked

B, L, V, D = 2, 7, 11, 5  # 14 tokens


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    hidden, embedding = (rng.normal(size=s).astype(np.float32) for s in ((B, L, D), (V, D)))
    weights = rng.uniform(size=(B, L)).astype(np.float32)
    return hidden, embedding, rng.integers(0, V, (B, L)), weights


def logits_of(hidden, embedding):
    return jnp.einsum("bld,vd->blv", hidden, embedding, preferred_element_type=jnp.float32)


def weighted(form):
    @jax.jit
    def call(hidden, embedding, labels, weights):
        def loss(hidden, embedding):
            return jnp.sum(form(hidden, embedding, labels) * weights)

        return jax.value_and_grad(loss, (0, 1))(hidden, embedding)

    return call


def direct(hidden, embedding, labels):
    return cross_entropy(logits_of(hidden, embedding), labels)


def by_chunks(chunk):
    def form(hidden, embedding, labels):
        return chunked.cross_entropy_from_hidden(hidden, embedding, labels, chunk=chunk)[0]

    return form


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_values_and_gradients_are_those_of_whole_logits_for_a_chunk_of_any_size(drawn, chunk):
    hidden, embedding, labels, _ = drawn
    values, correct = jax.jit(
        lambda *arrays: chunked.cross_entropy_from_hidden(*arrays, chunk=chunk)
    )(hidden, embedding, labels)
    assert (values.shape, values.dtype, correct.dtype) == ((B, L), jnp.float32, jnp.float32)
    np.testing.assert_allclose(values, jax.jit(direct)(hidden, embedding, labels), rtol=1e-5)
    best = np.argmax(logits_of(hidden, embedding), axis=-1)
    np.testing.assert_array_equal(correct, best == labels)
    assert 0 < correct.sum() < B * L
    found, expected = weighted(by_chunks(chunk))(*drawn), weighted(direct)(*drawn)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_states_in_bfloat16_give_values_in_float32(drawn):
    hidden, embedding, labels, _ = drawn
    hidden = jnp.asarray(hidden, jnp.bfloat16)
    values = jax.jit(by_chunks(4))(hidden, embedding, labels)
    expected = jax.jit(direct)(hidden, jnp.asarray(embedding, jnp.bfloat16), labels)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def _row_sizes(jaxpr):
    """Number of vectors over the vocabulary in each array of a program, loops included."""
    for equation in jaxpr.eqns:
        for var in equation.outvars:
            if var.aval.shape[-1:] == (V,):
                yield int(np.prod(var.aval.shape[:-1]))
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _row_sizes(inner)


def test_no_more_logits_than_a_chunks_exist_at_a_time(drawn):
    def most(form):
        return max(_row_sizes(jax.make_jaxpr(weighted(form))(*drawn).jaxpr))

    assert most(direct) == B * L
    assert most(by_chunks(3)) == 3


@pytest.mark.parametrize(
    ("vocab_size", "chunk"), [(40, 2048), (2048, 2048), (5000, 1024), (50_257, 128), (10**6, 64)]
)
def test_a_chunk_is_smaller_the_larger_the_vocabulary(vocab_size, chunk):
    assert chunked.chunk_for(vocab_size) == chunk


@pytest.mark.parametrize(
    ("platform", "gib", "chunk"), [("tpu", 15.7, 256), ("gpu", 60, 1024), ("gpu", 105, 2048)]
)
def test_an_accelerator_takes_larger_chunks_by_its_memory(platform, gib, chunk):
    with backend.assume(platform, int(gib * 2**30)):
        assert chunked.chunk_for(50_257) == chunk
