"""Layers with PyTorch's initialisation and padding, for images [B, H, W, C]."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from distill_core.config import InputError

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for convolutions and dense layers.
torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def conv(
    x: jax.Array,
    features: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    use_bias: bool = False,
    kernel_init: jax.nn.initializers.Initializer = torch_kernel_init,
) -> jax.Array:
    """Square convolution of [B, H, W, C] to [B, ceil(H/stride), ceil(W/stride), features].

    To be called in a compact method. Pads by `padding`, by default `kernel // 2`, on every side, as
    PyTorch does: `SAME` pads a strided convolution on one side only.
    """
    padding = kernel // 2 if padding is None else padding
    return nn.Conv(
        features,
        kernel_size=(kernel, kernel),
        strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=_torch_bias_init(kernel * kernel * x.shape[-1] // groups),
    )(x)


def dense(x: jax.Array, features: int) -> jax.Array:
    """Dense layer with bias, [B, D] to [B, features]; to be called in a compact method."""
    return nn.Dense(
        features, kernel_init=torch_kernel_init, bias_init=_torch_bias_init(x.shape[-1])
    )(x)


def _torch_bias_init(fan_in: int) -> jax.nn.initializers.Initializer:
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape, dtype=jnp.float32, out_sharding=None) -> jax.Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Maximum over 2×2 windows, [B, H, W, C] to [B, H//2, W//2, C]; odd edges are dropped.

    Equal to `nn.max_pool(x, (2, 2), (2, 2))` and its gradient, which goes to the first of several
    maxima in reading order. Avoids the pooling primitive's select-and-scatter, slow on CPU.
    """
    batch, height, width, channels = x.shape
    height, width = height // 2, width // 2
    windows = x[:, : 2 * height, : 2 * width].reshape(batch, height, 2, width, 2, channels)
    rows = _larger(windows[..., 0, :], windows[..., 1, :])  # [B, H//2, 2, W//2, C]
    return _larger(rows[:, :, 0], rows[:, :, 1])


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    # Not `max`: its gradient asks which entries equal the maximum. XLA may recompute these, fused
    # and so rounded differently: then none does, and the gradient is lost.
    return jnp.where((b > a) | jnp.isnan(b), b, a)


def mask_examples(x: jax.Array, where: jax.Array | None) -> jax.Array:
    """x [B, ...] with 0 in the examples where `where` (bool [B], or None for all) is False.

    For a network's input: a NaN in a masked image would otherwise be multiplied with a zero in the
    first kernel's gradient, and 0 · NaN is NaN.
    """
    if where is None:
        return x
    return jnp.where(where.reshape(where.shape + (1,) * (x.ndim - 1)), x, 0)


def check_images(x: jax.Array, *, min_size: int = 1) -> None:
    """Raises InputError (a ValueError) unless x is [B, H, W, C] with H, W ≥ min_size."""
    if x.ndim != 4 or min(x.shape[1:]) < 1 or min(x.shape[1:3]) < min_size:
        raise InputError(
            "input",
            tuple(x.shape),
            f"the network takes images [B, H, W, C] of at least {min_size}×{min_size} pixels",
        )
