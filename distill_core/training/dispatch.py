"""Several steps per dispatch, as the host sees them."""

from typing import Any

import jax
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


def stacked(batches: list[PyTree]) -> PyTree:
    """Batches of the host, leaves [B, ...], as one of several steps: [B, K, ...]."""
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *batches)
