"""Cross-entropy from hidden states that never holds the logits of a whole batch."""

import functools

import jax
import jax.numpy as jnp

from distill_core.losses import cross_entropy
from distill_core.runtime import backend, sharding

Array = jax.Array
_ON_CPU = 2**25  # bytes of float32 logits that exist at a time: what caches hold a part of
_SHARE = 256  # of an accelerator's memory that they may take


def chunk_for(vocab_size: int) -> int:
    """Tokens whose logits are held at a time, a power of two between 64 and 2,048.

    By the platform and its memory: an accelerator is idle in small matrix products, and reads the
    whole embedding for each.
    """
    memory = backend.memory()
    room = _ON_CPU if memory is None else memory // _SHARE
    chunk = max(64, min(2048, room // (4 * vocab_size)))
    return 1 << (chunk.bit_length() - 1)


def logits(hidden: Array, embedding: Array) -> Array:
    """hidden `[..., D]` · embedding `[V, D]`ᵀ in the dtype of `hidden`, as float32 `[..., V]`."""
    weights = embedding.astype(hidden.dtype)
    return jnp.einsum("...d,vd->...v", hidden, weights, preferred_element_type=jnp.float32)


def logits_by_rows(hidden: Array, embedding: Array) -> Array:
    """`logits` of hidden `[B, ..., D]` in a step: over a mesh each device has those of its rows."""
    axis = sharding.table_axis(embedding.shape)

    def here(hidden, table):
        return logits(hidden, sharding.whole_table(table, axis, hidden.dtype))

    return sharding.per_device(here, (hidden,), tables=(embedding,), result="rows")


def cross_entropy_from_hidden(
    hidden: Array, embedding: Array, labels: Array, *, chunk: int | None = None
) -> tuple[Array, Array]:
    """Cross-entropy of hidden `[B, ..., D]` · embedding `[V, D]`ᵀ, `chunk` tokens at a time.

    `chunk` is by default `chunk_for` the vocabulary. Returns (cross-entropy float32 `[B, ...]`,
    differentiable; whether the label, an integer of `labels` `[B, ...]`, is the likeliest token,
    float32 `[B, ...]`). The backward pass recomputes the logits of each chunk.
    """
    size = chunk or chunk_for(len(embedding))
    here = functools.partial(_cross_entropy, size, sharding.table_axis(embedding.shape))
    return sharding.per_device(here, (hidden, labels), tables=(embedding,), result="rows")


def _cross_entropy(chunk: int, axis: int | None, hidden: Array, labels: Array, table: Array):
    embedding = sharding.whole_table(table, axis, hidden.dtype)
    shape, num = labels.shape, labels.size
    size = min(chunk, num)
    padding = -num % size
    flat = jnp.pad(hidden.reshape(num, -1), ((0, padding), (0, 0)))
    wanted = jnp.pad(labels.reshape(num), (0, padding))

    @jax.checkpoint
    def one(part):
        states, targets = part
        found = logits(states, embedding)
        correct = (jnp.argmax(found, axis=-1) == targets).astype(jnp.float32)
        return cross_entropy(found, targets), correct

    parts = (flat.reshape(-1, size, flat.shape[-1]), wanted.reshape(-1, size))
    values, correct = jax.lax.map(one, parts)
    return values.reshape(-1)[:num].reshape(shape), correct.reshape(-1)[:num].reshape(shape)
