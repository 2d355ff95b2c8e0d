"""Standardises pixels and checks ranges of inputs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from distill_core.config import InputError


def preprocess(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Standardises pixels: `(x − mean) / std` per channel, with x in [0, 1], float32 [..., C].

    `images` [..., C] are uint8 (divided by 255) or floats in [0, 1] (taken as they are).
    """
    channels = jnp.shape(images)[-1]
    if not len(mean) == len(std) == channels:
        raise ValueError(
            f"mean and std need {channels} values, one per channel; got {len(mean)} and {len(std)}"
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


def check_range(inputs: Any, kind: Any, low: int, high: int, what: str):
    """Refuses concrete values of type `kind` outside [low, high], but for rounding.

    Traced values pass; `what` names them in the message.
    """
    seen = not isinstance(inputs, jax.core.Tracer) and inputs.size
    if not seen or (isinstance(inputs, jax.Array) and not inputs.is_fully_addressable):
        return
    if jnp.issubdtype(inputs.dtype, kind):
        least, most = float(inputs.min()), float(inputs.max())
        if not (least >= low - 1e-3 and most <= high + 1e-3):  # written so that NaN fails
            allowed = f"{what} must lie in [{low}, {high}]"
            raise InputError("inputs", f"values from {least:g} to {most:g}", allowed)
