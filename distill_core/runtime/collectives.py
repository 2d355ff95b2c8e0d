"""Sums and gathers over the devices of the mapped axis if one is bound; otherwise the identity.

Inside `pmap` and `shard_map` a function sees its device's part of the batch, inside `jit` (on one
device or over a mesh) all of it. These functions find out while they are traced, so that no other
code has to know.
"""

from typing import Any

import jax
import jax.numpy as jnp

AXIS = "data"
Array = jax.Array
PyTree = Any


def is_bound() -> bool:
    """Whether the code being traced runs once per device, over the axis `AXIS`."""
    try:
        jax.lax.axis_size(AXIS)
    except NameError:
        return False
    return True


def all_sum(tree: PyTree) -> PyTree:
    """Sum over the devices."""
    return jax.lax.psum(tree, AXIS) if is_bound() else tree


def all_gather(x: Array) -> Array:
    """The rows of all devices, `[B, ...]`, in order, given this device's, `[b, ...]`."""
    return jax.lax.all_gather(x, AXIS, tiled=True) if is_bound() else x


def all_stacked(x: Array) -> Array:
    """A few numbers `[...]` of every device, in order, `[P, ...]`, by a single sum.

    Of its kind with the sums around it, unlike a gather, so that XLA can combine them.
    """
    if not is_bound():
        return x[None]
    own = jnp.arange(num_devices()) == jax.lax.axis_index(AXIS)
    return all_sum(jnp.where(own.reshape(-1, *(1,) * x.ndim), x[None], 0))


def whole_along(x: Array, axis: int | None) -> Array:
    """All devices' parts of an array along an axis, put together; None: x is whole."""
    if axis is None or not is_bound():
        return x
    return jax.lax.all_gather(x, AXIS, axis=axis, tiled=True)


def sum_along(x: Array, axis: int | None) -> Array:
    """This device's part, along an axis, of the sum over the devices; None: x as it is, unsummed.

    The transpose of `whole_along`.
    """
    if axis is None or not is_bound():
        return x
    return jax.lax.psum_scatter(x, AXIS, scatter_dimension=axis, tiled=True)


def own_rows(x: Array, count: int) -> Array:
    """This device's `count` rows of an array `[B, ...]` that every device holds whole."""
    if not is_bound():
        return x
    return jax.lax.dynamic_slice_in_dim(x, count * jax.lax.axis_index(AXIS), count)


def num_devices() -> int:
    """How many devices the sums are over; 1 if no axis is bound."""
    return jax.lax.axis_size(AXIS) if is_bound() else 1
