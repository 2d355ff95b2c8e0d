"""Packed sequences: `segments[b, t]` is the number of the line that position t belongs to."""

import jax
import jax.numpy as jnp


def places_in_line(segments: jax.Array) -> jax.Array:
    """int32 `[..., L]`: each position's place within its line.

    >>> print(places_in_line(jnp.array([[7, 7, 7, 8, 8, -1]])))
    [[0 1 2 0 1 0]]
    """
    index = jnp.broadcast_to(jnp.arange(segments.shape[-1]), segments.shape)
    edges = [(0, 0)] * (segments.ndim - 1) + [(1, 0)]
    changes = jnp.pad(segments[..., 1:] != segments[..., :-1], edges, constant_values=True)
    return index - jax.lax.cummax(jnp.where(changes, index, 0), axis=segments.ndim - 1)
