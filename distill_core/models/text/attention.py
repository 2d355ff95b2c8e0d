"""Causal self-attention of packed lines, by the platform's fused kernel where there is one."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from distill_core.runtime import backend, sharding

Array = jax.Array
_TPU_BLOCK = 128  # the kernel's blocks of positions divide the length


def attend(
    q: Array, k: Array, v: Array, segments: Array | None = None, *, window: int | None = None
) -> Array:
    """softmax(q·kᵀ/√d)·v, where a position sees itself and what precedes it in its line.

    On GPUs since Ampere bfloat16 goes through cuDNN's fused attention, and on TPUs rows of whole
    blocks through a Pallas kernel, so that scores `[B, H, L, L]` never exist. Elsewhere it is
    `jax.nn.dot_product_attention` as XLA compiles it, with the softmax in float32.

    Args:
      q: `[B, L, H, d]`, floating.
      k, v: `[B, L, K, d]`; K divides H, and so many neighbouring heads of q share one of theirs.
      segments: integers `[B, L]`, the line of each position; None: the row is one line.
      window: so many positions are seen at most, itself included; None: all.

    Returns:
      `[B, L, H, d]`, of their dtype.
    """
    q, k, v = sharding.by_heads(q), sharding.by_heads(k), sharding.by_heads(v)
    if backend.platform() == "tpu" and window is None and _fits_tpu(q):
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))  # one each
        return sharding.per_device(_fused_by_heads, (q, k, v, segments), result="rows")
    mask = None
    if segments is not None:
        mask = segments[:, None, :, None] == segments[:, None, None, :]
    kind = "cudnn" if _fits_cudnn(q) else "xla"
    local = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=True, local_window_size=local, implementation=kind
    )


def attend_next(
    module: nn.Module, q: Array, k: Array, v: Array, place: Array, window: int | None = None
) -> Array:
    """`attend` of one further position per line, to itself and to what earlier calls left behind.

    Keys and values are kept in the module's collection `cache`, as `keys` and `values` `[B, L, K,
    d]`; L is that of the cache given to `apply` (`Network.empty_cache` makes one), 1 if none is.

    Args:
      module: where the cache is, e.g. the block; called once per module, from a compact method.
      q: `[B, 1, H, d]`.
      k, v: `[B, 1, K, d]`, K a divisor of H: query head h reads key head h // (H / K).
      place: integers `[B]`, this position's place in its line, from 0 to L − 1.
      window: how many positions are seen, this one included; None for all.

    Returns:
      `[B, 1, H, d]`, of their dtype.
    """
    keys = module.variable("cache", "keys", jnp.zeros, k.shape, k.dtype)
    values = module.variable("cache", "values", jnp.zeros, v.shape, v.dtype)
    rows = jnp.arange(len(q))
    keys.value = keys.value.at[rows, place].set(k[:, 0])
    values.value = values.value.at[rows, place].set(v[:, 0])
    behind = place[:, None] - jnp.arange(keys.value.shape[1])[None]  # [B, L]
    seen = (behind >= 0) if window is None else (behind >= 0) & (behind < window)
    return jax.nn.dot_product_attention(q, keys.value, values.value, mask=seen[:, None, None])


def _fits_tpu(q: Array) -> bool:
    _, length, _, head = q.shape
    return length % _TPU_BLOCK == 0 and (head < _TPU_BLOCK or head % _TPU_BLOCK == 0)


def _fits_cudnn(q: Array) -> bool:
    """Whether cuDNN's kernel takes these shapes, in the backward pass, too."""
    if backend.platform() != "gpu" or q.dtype != jnp.bfloat16:
        return False
    capability = getattr(jax.local_devices()[0], "compute_capability", "0")
    is_recent = float(capability) >= 8.0
    return is_recent and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0 and q.shape[1] % 2 == 0


def _fused_by_heads(q: Array, k: Array, v: Array, segments: Array | None) -> Array:
    return sharding.per_head(_fused_on_tpu, (q, k, v), segments)


def _fused_on_tpu(q: Array, k: Array, v: Array, segments: Array | None) -> Array:
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    ids = None if segments is None else kernel.SegmentIds(segments, segments)
    heads_first = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    found = kernel.flash_attention(
        *heads_first, segment_ids=ids, causal=True, sm_scale=q.shape[-1] ** -0.5
    )
    return jnp.moveaxis(found, 1, 2)
