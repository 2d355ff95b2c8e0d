"""Several steps a dispatch, and data that stays on the device: fewer words between host and device.

Accelerators gain from both where a step is short. On CPU convolutions inside XLA's loops are many
times slower than outside: there one step a dispatch is right.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def length(step: int, steps_per_dispatch: int, num_steps: int) -> int:
    """How many steps the dispatch that begins after `step` steps takes.

    It ends at a multiple of `steps_per_dispatch`, wherever an earlier run was stopped, or at
    `num_steps`.

    >>> length(0, 4, 10), length(6, 4, 10), length(8, 4, 10)
    (4, 2, 2)
    """
    return min(steps_per_dispatch - step % steps_per_dispatch, num_steps - step)


def repeated(step: Callable) -> Callable:
    """A step `(state, frozen, batch) -> (state, metrics)` that takes K batches, one after another.

    Leaves of its batch are [B, K, ...], so that their rows are split over devices as those of one
    batch are; its metrics are [K].
    """

    def steps(state: PyTree, frozen: PyTree, batches: PyTree):
        in_turn = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), batches)
        return jax.lax.scan(lambda state, batch: step(state, frozen, batch), state, in_turn)

    return steps


def gathered(step: Callable) -> Callable:
    """A step whose batch is the rows, int32 [B], of data on the device.

    Its frozen side is {"frozen": that of `step`, "data": arrays with one row an example}.
    """

    def from_rows(state: PyTree, frozen: Mapping[str, PyTree], rows: jax.Array):
        batch = jax.tree.map(lambda leaf: leaf[rows], frozen["data"])
        return step(state, frozen["frozen"], {**batch, "index": rows})

    return from_rows


def stacked(batches: list[PyTree]) -> PyTree:
    """Batches of the host, leaves [B, ...], as `repeated` takes them: [B, K, ...]."""
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *batches)
