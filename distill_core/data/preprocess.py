"""Pixels to what a network sees."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def preprocess(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Standardises pixels: `(x − mean) / std` per channel, with x in [0, 1].

    Args:
      images: uint8 (divided by 255) or floats in [0, 1] (taken as they are), [..., C].
      mean: C values.
      std: C values.

    Returns:
      float32 [..., C].

    Raises:
      ValueError: if the constants do not have one value a channel, or the images are integers
        other than uint8.
    """
    channels = jnp.shape(images)[-1]
    if not len(mean) == len(std) == channels:
        raise ValueError(
            f"mean and std need {channels} values, one a channel; got {len(mean)} and {len(std)}"
        )
    x = jnp.asarray(images)
    if x.dtype == jnp.uint8:
        x = x.astype(jnp.float32) / 255
    elif jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.float32)
    else:
        raise ValueError(f"images must be uint8 or floats in [0, 1]; got {x.dtype}")
    per_channel = (1,) * (x.ndim - 1) + (channels,)
    shift = jnp.asarray(mean, jnp.float32).reshape(per_channel)
    scale = jnp.asarray(std, jnp.float32).reshape(per_channel)
    return (x - shift) / scale
