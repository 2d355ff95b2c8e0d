"""Which examples make up a batch."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from distill_core.config import InputError


def batch_indices(seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
    """The examples of one training step: a pure function of its arguments, so resuming is free.

    Every epoch is a permutation of all examples, drawn from (seed, epoch). The epochs follow one
    another without a gap, so no example is dropped: a batch may hold the end of one epoch and the
    start of the next, or several epochs where `batch_size` exceeds `num_examples`.

    Args:
      seed: of the run, at least 0.
      step: from 0.
      batch_size: global, over all devices and processes.
      num_examples: of the train split.

    Returns:
      int64 [batch_size], each in [0, num_examples).

    Raises:
      InputError: if a size is less than 1 or the step is negative.
    """
    _check_sizes(batch_size, num_examples)
    if step < 0:
        raise InputError("step", step, "must be at least 0")
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
    """Batches that cover every example once, in order, all of one size.

    Yields:
      (indices int64 [batch_size], mask bool [batch_size]). The last batch is filled up with
      example 0, masked False.

    Raises:
      InputError: if a size is less than 1.
    """
    _check_sizes(batch_size, num_examples)
    return (
        _eval_batch(start, batch_size, num_examples) for start in range(0, num_examples, batch_size)
    )


def _eval_batch(start: int, batch_size: int, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    indices = np.arange(start, start + batch_size, dtype=np.int64)
    mask = indices < num_examples
    return np.where(mask, indices, 0), mask


# Two, because a batch may lie across two epochs.
@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    order = rng.permutation(num_examples)
    order.flags.writeable = False
    return order


def _check_sizes(batch_size: int, num_examples: int) -> None:
    if batch_size < 1:
        raise InputError("batch_size", batch_size, "must be at least 1")
    if num_examples < 1:
        raise InputError("num_examples", num_examples, "must be at least 1")
