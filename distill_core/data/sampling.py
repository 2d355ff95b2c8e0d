"""Which examples make up a batch."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np


def batch_indices(seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
    """The examples of one training step, int64 [batch_size]: a pure function of its arguments.

    Every epoch is a permutation of all examples, drawn from (seed, epoch). The epochs follow one
    another without a gap, so no example is dropped: a batch may hold the end of one epoch and the
    start of the next, or several epochs where `batch_size` (over all devices and processes) exceeds
    `num_examples`.
    """
    position = int(step) * batch_size
    end = position + batch_size
    parts = []
    while position < end:
        epoch, offset = divmod(position, num_examples)
        part = _permutation(int(seed), epoch, num_examples)[offset : offset + end - position]
        parts.append(part)
        position += len(part)
    return np.concatenate(parts)


def eval_batches(num_examples: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of one size that cover every example once, in order.

    Yields (indices int64 [batch_size], mask bool [batch_size]); the last batch is filled up with
    example 0, masked False.
    """
    for start in range(0, num_examples, batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int64)
        mask = indices < num_examples
        yield np.where(mask, indices, 0), mask


# Two, because a batch may lie across two epochs.
@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    order = rng.permutation(num_examples)
    order.flags.writeable = False
    return order
