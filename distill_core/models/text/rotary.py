"""Rotary positions, with the scalings to longer contexts that published models use."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.config import InputError

Array = jax.Array
# Settings of each kind of scaling, and whether it needs them.
SCALINGS = {
    "linear": {"factor": True},
    "llama3": {
        "factor": True,
        "low_freq_factor": True,
        "high_freq_factor": True,
        "original_max_position_embeddings": True,
    },
    "yarn": {
        "factor": True,
        "original_max_position_embeddings": True,
        "attention_factor": False,
        "beta_fast": False,
        "beta_slow": False,
        "mscale": False,
        "mscale_all_dim": False,
        "truncate": False,
    },
}


def rotate(x: Array, places: Array, frequencies: np.ndarray, factor: float = 1.0) -> Array:
    """Turns each pair (x_i, x_{i + d/2}) by the angle place · frequency_i, and scales by `factor`.

    x `[B, L, H, d]`, places integers `[B or 1, L]`, frequencies float32 `[d/2]`. Returns
    `[B, L, H, d]` of x's dtype, computed in float32. Source: Su et al., "RoFormer", 2021, in the
    arrangement of Llama's published weights.
    """
    turns = jnp.asarray(frequencies, jnp.float32)[None, None]
    angles = (places[..., None].astype(jnp.float32) * turns)[:, :, None]  # [B, L, 1, d/2]
    cos, sin = jnp.cos(angles) * factor, jnp.sin(angles) * factor
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any] | None
) -> tuple[np.ndarray, float]:
    """(radians per position float32 `[head_dim/2]`, factor of the rotated vectors).

    Args:
      head_dim: d, even.
      theta: the base; frequency i is theta^(−2i/d).
      scaling: None, or `type` of `SCALINGS` and its settings, named as in Hugging Face's
        config.json: "linear" divides all frequencies by `factor`, "llama3" the slow ones (Llama
        3.1), "yarn" likewise with a ramp between and a factor on the vectors (Peng et al., 2023).

    Raises:
      InputError: on `model_kwargs.rope_scaling`.
    """
    # In float32, as the published weights were trained: at large places rounding matters.
    base = 1 / np.float32(theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    base = base.astype(np.float32)
    if scaling is None:
        return base, 1.0
    given = dict(scaling)
    kind = given.pop("type", None)
    _check(kind, given, scaling)
    if kind == "linear":
        return (base / given["factor"]).astype(np.float32), 1.0
    if kind == "llama3":
        return _llama3(base, **given).astype(np.float32), 1.0
    found, factor = _yarn(base, theta, **given)
    return found.astype(np.float32), factor


def _check(kind: Any, given: Mapping[str, Any], scaling: Any):
    def refused(allowed: str) -> InputError:
        return InputError("model_kwargs.rope_scaling", dict(scaling), allowed)

    if kind not in SCALINGS:
        raise refused(f"type must be one of {', '.join(SCALINGS)}")
    known = SCALINGS[kind]
    for name in [*known, *given]:
        if name not in known:
            raise refused(f"{name} is no setting of {kind}; known are {', '.join(known)}")
        if name not in given and known[name]:
            raise refused(f"{kind} needs {name}")
        if name in given and name != "truncate" and not _is_positive(given[name]):
            raise refused(f"{name} must be a positive number")
    if kind == "llama3" and not given["low_freq_factor"] < given["high_freq_factor"]:
        raise refused("low_freq_factor must be below high_freq_factor")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _llama3(
    base, *, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings
) -> np.ndarray:
    # Turns within the original context: few are slowed down, many stay, between is a ramp.
    turns = original_max_position_embeddings * base / (2 * math.pi)
    kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return (1 - kept) * base / factor + kept * base


def _yarn(base, theta, *, factor, original_max_position_embeddings, **given):
    size = 2 * len(base)

    def place(turns):  # the dimension that turns so often within the original context
        context = original_max_position_embeddings / (turns * 2 * math.pi)
        return size * math.log(context) / (2 * math.log(theta))

    low, high = place(given.get("beta_fast", 32)), place(given.get("beta_slow", 1))
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    slowed = np.clip((np.arange(len(base)) - low) / (high - low if high != low else 0.001), 0, 1)

    def magnitude(weight):
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    whole = given.get("attention_factor")
    if whole is None:
        weights = [given.get(name) for name in ("mscale", "mscale_all_dim")]
        whole = magnitude(weights[0]) / magnitude(weights[1]) if all(weights) else magnitude(1)
    return slowed * base / factor + (1 - slowed) * base, float(whole)
