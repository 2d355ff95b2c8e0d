"""(sum, count) arithmetic: means that stay right over batches, masks and devices."""

import jax
import jax.numpy as jnp

Array = jax.Array
Pair = tuple[Array, Array]


def weighted_sum(values: Array, weights: Array) -> Pair:
    """(Σ w·v, Σ w) in float32; entries of weight 0 count for nothing, even if they hold NaN."""
    weights = jnp.broadcast_to(jnp.asarray(weights, jnp.float32), values.shape)
    kept = jnp.where(weights != 0, jnp.asarray(values, jnp.float32), 0.0)
    return jnp.sum(kept * weights), jnp.sum(weights)


def mean(pair: Pair) -> Array:
    """Sum over count; 0 where the count is 0."""
    total, count = pair
    return total / jnp.where(count == 0, 1.0, count)


def correct(logits: Array, labels: Array) -> Array:
    """float32 `[...]`: 1 where the largest logit is the label's."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
