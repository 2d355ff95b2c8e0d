"""Which examples make up a batch."""

import numpy as np
import pytest

from distill_core.data.sampling import batch_indices, eval_batches


def _stream(seed, num_steps, batch_size, num_examples):
    steps = range(num_steps)
    return np.concatenate([batch_indices(seed, s, batch_size, num_examples) for s in steps])


@pytest.mark.parametrize("batch_size", [1, 4, 7, 10, 25, 100])
def test_every_epoch_is_a_permutation(batch_size):
    epochs = 20
    stream = _stream(3, 10 * epochs // batch_size, batch_size, 10)
    whole = stream[: len(stream) // 10 * 10].reshape(-1, 10)
    np.testing.assert_array_equal(np.sort(whole, axis=1), np.tile(np.arange(10), (len(whole), 1)))
    assert len(np.unique(whole, axis=0)) > len(whole) // 2  # not one permutation over and over


def test_the_order_does_not_depend_on_the_batch_size():
    np.testing.assert_array_equal(_stream(3, 21, 10, 30), _stream(3, 30, 7, 30))


def test_pure_function_of_seed_and_step():
    first = batch_indices(0, 5, 8, 20)
    for step in (900, 0, 3):  # the cache holds other epochs now
        batch_indices(0, step, 8, 20)
    again = batch_indices(0, 5, 8, 20)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, batch_indices(np.int64(0), np.int32(5), 8, 20))
    assert (first.dtype, first.shape) == (np.int64, (8,))
    assert not np.array_equal(first, batch_indices(1, 5, 8, 20))
    assert not np.array_equal(first, batch_indices(0, 6, 8, 20))
    first[:] = 0  # is the caller's own
    np.testing.assert_array_equal(again, batch_indices(0, 5, 8, 20))


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 4), (8, 4), (3, 7), (1, 1)])
def test_evaluation_covers_every_example_once(num_examples, batch_size):
    batches = list(eval_batches(num_examples, batch_size))
    assert len(batches) == -(-num_examples // batch_size)
    for indices, mask in batches:
        assert indices.shape == mask.shape == (batch_size,)
        assert (indices.dtype, mask.dtype) == (np.int64, np.bool_)
        assert np.all(indices[~mask] == 0)
    seen = np.concatenate([indices[mask] for indices, mask in batches])
    np.testing.assert_array_equal(seen, np.arange(num_examples))
