"""Cross-entropy from hidden states that never holds the logits of a whole batch."""

import jax
import jax.numpy as jnp

from distill_core.losses import cross_entropy

Array = jax.Array
_ENTRIES = 2**22  # logits that exist at a time: 16 MiB


def chunk_for(vocab_size: int) -> int:
    """Tokens whose logits are held at a time, a power of two between 64 and 2,048."""
    chunk = max(64, min(2048, _ENTRIES // vocab_size))
    return 1 << (chunk.bit_length() - 1)


def logits(hidden: Array, embedding: Array) -> Array:
    """hidden `[..., D]` · embedding `[V, D]`ᵀ in the dtype of `hidden`, as float32 `[..., V]`."""
    weights = embedding.astype(hidden.dtype)
    return jnp.einsum("...d,vd->...v", hidden, weights, preferred_element_type=jnp.float32)


def cross_entropy_from_hidden(
    hidden: Array, embedding: Array, labels: Array, *, chunk: int
) -> tuple[Array, Array]:
    """Cross-entropy of hidden `[..., D]` · embedding `[V, D]`ᵀ, for `chunk` tokens at a time.

    Returns (cross-entropy float32 `[...]`, differentiable; whether the label, an integer of
    `labels` `[...]`, is the likeliest token, float32 `[...]`). The backward pass recomputes the
    logits of each chunk.
    """
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
