"""Normalisation whose statistics are exact across devices and under masks."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from distill_core.config import InputError
from distill_core.models.layers import mask_examples
from distill_core.runtime import sharding
from distill_core.runtime.collectives import all_stacked, all_sum


class BatchNorm(nn.Module):
    """Batch normalisation over the unmasked examples of all devices.

    As `torch.nn.BatchNorm2d`: it normalises by the biased variance of the batch and stores a
    running average of the *unbiased* one (`momentum` 0.9 here is 0.1 there). Flax's layer averages
    the means of the devices; this one combines them exactly (`moments`), whatever the masks.

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
        x = mask_examples(x, where)
        if train:
            mean, var, count = moments(x, where)
            if not self.is_initializing():
                unbiased = var * count / jnp.maximum(count - 1, 1)
                step = jnp.where(count > 0, 1 - self.momentum, 0.0)
                running_mean.value += step * (mean - running_mean.value)
                running_var.value += step * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value

        factor = scale * lax.rsqrt(var + self.epsilon)
        y = (x.astype(jnp.float32) - _along_channels(mean, x)) * _along_channels(factor, x)
        return (y + _along_channels(bias, x)).astype(dtype)


@jax.custom_vjp
def moments(x: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean [C], biased variance [C] and count [] of a channel's entries over all devices.

    One pass over the data and one sum over the devices, and the same in the backward pass. Every
    device sums differences from its first example's mean, and their squares; the devices' means and
    squares are then combined pair by pair (Chan et al., "Updating Formulae and a Pairwise Algorithm
    for Computing Sample Variances", 1979). So nothing cancels where the mean is large.

    Args:
      x: floating [B, ..., C], 0 in examples that do not count.
      where: bool [B], the examples that count; None for all.

    Returns:
      float32. Mean and variance of no entries are 0. The count has no gradient.
    """
    return sharding.per_device(_moments, (x, where), result="same")


def _moments(x: jax.Array, where: jax.Array | None):
    axes = tuple(range(x.ndim - 1))
    first = x[0] if where is None else x[jnp.argmax(where)]
    shift = first.astype(jnp.float32).mean(axes[:-1])
    shifted = mask_examples(x.astype(jnp.float32) - _along_channels(shift, x), where)
    total, squares = shifted.sum(axes), jnp.square(shifted).sum(axes)
    examples = jnp.float32(x.shape[0]) if where is None else where.sum(dtype=jnp.float32)
    own = examples * math.prod(x.shape[1:-1])
    offset = total / jnp.maximum(own, 1)
    found = jnp.concatenate([own[None], shift + offset, squares - total * offset])
    counts, means, squares = jnp.split(all_stacked(found), (1, 1 + x.shape[-1]), axis=1)
    count = counts.sum()
    known = jnp.maximum(count, 1)
    mean = (counts * means).sum(0) / known
    between = (counts * jnp.square(means - mean[None])).sum(0)
    return mean, jnp.maximum(squares.sum(0) + between, 0) / known, count


def _moments_forward(x: jax.Array, where: jax.Array | None):
    mean, var, count = moments(x, where)
    return (mean, var, count), (x, where, mean, count)


def _moments_backward(kept, cotangents):
    x, where, mean, count = kept
    of_mean, of_var = all_sum(cotangents[:2])
    known = jnp.maximum(count, 1)
    centred = x.astype(jnp.float32) - _along_channels(mean, x)
    of_x = _along_channels(of_mean / known, x) + centred * _along_channels(2 * of_var / known, x)
    return mask_examples(of_x, where).astype(x.dtype), None


moments.defvjp(_moments_forward, _moments_backward)


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
