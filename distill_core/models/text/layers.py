"""Calls a layer of a network of text, whose parameters may be split over a mesh."""

import jax
from flax import linen as nn

from distill_core.runtime import sharding


def call(layer: nn.Module, x: jax.Array, *args, dtype: str) -> jax.Array:
    """`layer(x, *args)`, x `[B, L, D]`; over a mesh its parameters are whole only meanwhile.

    Args:
      layer: a submodule without other variables than parameters, called from its parent.
      x: what it is called with; `args`, further arrays `[B, ...]` or None.
      dtype: what the layer rounds its matrices to.
    """
    if not sharding.is_over_mesh() or layer.is_initializing():
        return layer(x, *args)
    alone = layer.clone(parent=None)

    def apply(params, *inputs):
        return alone.apply({"params": params}, *inputs)

    return sharding.with_whole(apply, layer.variables["params"], x, *args, dtype=dtype)
