"""Normalisation whose statistics are exact across devices and under masks."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from distill_core.config import InputError
from distill_core.models.layers import mask_examples
from distill_core.runtime import collectives


class BatchNorm(nn.Module):
    """Batch normalisation over the unmasked examples of all devices.

    As `torch.nn.BatchNorm2d`: it normalises by the biased variance of the batch and stores a
    running average of the *unbiased* one (`momentum` 0.9 here is 0.1 there). Flax's layer averages
    the means of the devices; this one sums counts, sums and centred squares over all of them, so
    that uneven masks are exact. The variance takes two passes: the one-pass formula cancels where
    the mean is large.

    Variables: `params` scale, bias and `batch_stats` mean, var, each float32 [C].
    Source: Ioffe and Szegedy, 2015, Algorithm 1 and Section 3.1; PyTorch for the conventions.

    Attributes:
      momentum: weight of the old running value.
      epsilon: added to the variance.
      dtype: of the result, by default the input's. Everything inside is float32.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, where: jax.Array | None = None
    ) -> jax.Array:
        """Normalises x [B, ..., C]; `where` bool [B] names the examples that count.

        Masked examples affect neither the statistics nor any other row nor a gradient, even if
        they hold NaN; their own rows are finite and meaningless. A batch with no unmasked example
        leaves the running statistics unchanged.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)

        dtype = self.dtype or x.dtype
        x = mask_examples(x.astype(jnp.float32), where)
        if train:
            mean, var, count = self._statistics(x, where)
            if not self.is_initializing():
                unbiased = var * count / jnp.maximum(count - 1, 1)
                step = jnp.where(count > 0, 1 - self.momentum, 0.0)
                running_mean.value += step * (mean - running_mean.value)
                running_var.value += step * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value

        factor = scale * lax.rsqrt(var + self.epsilon)
        y = (x - _along_channels(mean, x)) * _along_channels(factor, x)
        return (y + _along_channels(bias, x)).astype(dtype)

    def _statistics(
        self, x: jax.Array, where: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Mean [C], biased variance [C] and count [] of the entries of a channel; x is masked."""
        axes = tuple(range(x.ndim - 1))
        examples = jnp.float32(x.shape[0]) if where is None else where.sum(dtype=jnp.float32)
        total, count = collectives.all_sum((x.sum(axes), examples * math.prod(x.shape[1:-1])))
        mean = total / jnp.maximum(count, 1)
        centred = mask_examples(x - _along_channels(mean, x), where)
        squares = collectives.all_sum(jnp.square(centred).sum(axes))
        return mean, squares / jnp.maximum(count, 1), count


def normalise(
    kind: str, x: jax.Array, *, train: bool = False, where: jax.Array | None = None
) -> jax.Array:
    """Normalises x [B, ..., C] in a compact method, by a new layer.

    `kind` is "batch" (`BatchNorm` over all devices), "group" (Flax's GroupNorm, for steps that must
    not mix examples, such as DP-SGD), or "none".
    """
    if kind == "batch":
        return BatchNorm()(x, train=train, where=where)
    if kind == "group":
        size = _group_size(x.shape[-1])
        # The slow variance is the two-pass one.
        return nn.GroupNorm(None, group_size=size, epsilon=1e-5, use_fast_variance=False)(x)
    if kind == "none":
        return x
    raise InputError("norm", kind, 'must be "batch", "group" or "none"')


def _group_size(channels: int) -> int:
    """Channels per group: 16, or the largest divisor below it, as Wu and He (2018) suggest.

    Groups under 4 would carry almost no information after a dense layer, which has no pixels to
    average over (a group of size 1 always gives 0); such widths form a single group.
    """
    return next((size for size in range(16, 3, -1) if channels % size == 0), channels)


def _along_channels(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes [C] to broadcast with x without implicit rank promotion."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)
