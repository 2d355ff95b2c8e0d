"""Partitions of an ensemble's training data, its batches, and random deformations.

A record's teacher and its place in any batch follow from its index alone, never from its label or
image, so that one changed record changes one teacher. Our reconstruction.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.config import InputError
from distill_core.data import Dataset, Split

Array = jax.Array

# The greatest random deformation: radians, parts of the size, parts of the image's side.
_ROTATION, _STRETCH, _SHIFT = 0.15, 0.1, 0.05
_HIGHEST = jax.lax.Precision.HIGHEST
_PERMUTATIONS = 20170  # seed of the deal: public, and the same for all runs
# Names what `partition` does in a checkpoint: another deal takes another name.
RULE = "blocks of M indices, each dealt by its own permutation"


def partition(index: np.ndarray, num_teachers: int) -> np.ndarray:
    """Which teacher in [0, M) each record belongs to: a fixed public function of its index and M.

    Each block of M successive indices is dealt by its own random permutation. So sizes of
    partitions of N successive indices differ by at most 1, a record more at the end moves no other,
    and no order of the records (by class, classes taking turns) gives a teacher one class. `index`
    holds integers [N] of at least 0, see `Split.record`; raises InputError on M below 1.

    >>> partition(np.arange(9), 3).tolist()
    [2, 1, 0, 2, 1, 0, 1, 0, 2]
    """
    if num_teachers < 1:
        raise InputError("num_teachers", num_teachers, "must be at least 1")
    index = np.asarray(index)
    blocks = int(index.max(initial=-1)) // num_teachers + 1
    # RandomState, because NumPy promises that its stream never changes.
    drawn = np.random.RandomState(_PERMUTATIONS).random_sample((blocks, num_teachers))
    dealt = drawn.argsort(axis=1, kind="stable")  # [blocks, M], a permutation per row
    return dealt[index // num_teachers, index % num_teachers].astype(index.dtype)


def members_of(record: np.ndarray, num_teachers: int) -> list[np.ndarray]:
    """The rows of each teacher's records, M arrays int64; raises InputError where one has none.

    `record` is `Split.record`, integers [N]; rows that share a number have one teacher.
    """
    count = len(np.unique(record))
    if num_teachers > count:
        what = "training examples" if count == len(record) else "different names of training files"
        allowed = f"must be at most the {count:,} {what}"
        raise InputError("num_teachers", num_teachers, allowed)
    teacher = partition(record, num_teachers)
    sizes = np.bincount(teacher, minlength=num_teachers)
    if not sizes.all():
        empty = int(np.flatnonzero(sizes == 0)[0])
        allowed = f"must be smaller: all examples of teacher {empty} are held out"
        raise InputError("num_teachers", num_teachers, allowed)
    return np.split(np.argsort(teacher, kind="stable"), np.cumsum(sizes)[:-1])


def check_public(dataset: Dataset):
    """Refuses data in which one training record may decide the shape of every teacher.

    Raises InputError where only training labels say how many classes an `npz:` has, or only
    training images make the channels of a `folder:` three.
    """
    name, train, test = dataset.name, dataset.train, dataset.test
    if not dataset.named and test.labels.max() + 1 < dataset.num_classes:
        allowed = "only training labels tell the number of classes; store their names as `classes`"
        raise InputError("dataset", name, allowed)
    if name.startswith("folder:") and _is_grey(test.images) and not _is_grey(train.images):
        allowed = "only training images are in colour; store them in grey, or test images in colour"
        raise InputError("dataset", name, allowed)


def _is_grey(images: np.ndarray) -> bool:
    return bool((images == images[..., :1]).all())


def whole(split: Split, members: Sequence[np.ndarray], teacher: int) -> dict[str, Any]:
    """The partition of one teacher, padded to one of a few sizes; NumPy arrays.

    Returns:
      `teacher` int32 [], `image` [n, H, W, C], `label` and `index` int32 [n], `mask` bool [n].
    """
    rows = members[teacher]
    # Of its own size alone: with that of the largest partition, one record more elsewhere would
    # make another program of it, and other last bits.
    unit = 2 ** max(4, math.floor(math.log2(len(rows))) - 3)
    mask = np.arange(-(-len(rows) // unit) * unit) < len(rows)
    rows = np.resize(rows, len(mask))
    return {
        "teacher": np.int32(teacher),
        "image": split.images[rows],
        "label": split.labels[rows],
        "index": split.index[rows],
        "mask": mask,
    }


def batch_rows(seed: int, step: int, batch_size: int, members: Sequence[np.ndarray]) -> np.ndarray:
    """The examples of one step, int64 [B, M]: column m from the partition of teacher m alone.

    Each teacher goes through its partition in a new order every epoch.
    """
    start = step * batch_size
    columns = np.empty((len(members), batch_size), np.int64)
    for teacher, rows in enumerate(members):
        first, last = start // len(rows), (start + batch_size - 1) // len(rows)
        orders = [_order(seed, teacher, e, len(rows)) for e in range(first, last + 1)]
        order = orders[0] if len(orders) == 1 else np.concatenate(orders)
        offset = start - first * len(rows)
        columns[teacher] = rows[order[offset : offset + batch_size]]
    return columns.T


@functools.lru_cache(maxsize=4096)
def _order(seed: int, teacher: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, teacher, epoch]).permutation(size)


def affine_copies(
    key: Array, images: Array, index: Array, *, copies: int, strength: float, flip: bool = False
) -> Array:
    """Each image turned, stretched, sheared and shifted a little, at random.

    Copy c of an image is a function of the key, its index, c and its pixels alone.

    Args:
      key: one key per step.
      images: float32 [B, H, W, C]; borders are continued.
      index: int32 [B], the records' global indices.
      copies: R.
      strength: 1 for up to 0.15 radians, 10% and 5% of the side; 0 for none.
      flip: whether half of the copies are mirrored left and right.

    Returns float32 [B, R, H, W, C].
    """
    height, width = images.shape[1:3]
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])[:, None]
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))
    grid = grid.reshape(2, -1) - centre  # [2, H·W]
    sides = jnp.array([height, width], jnp.float32)
    sample = functools.partial(jax.scipy.ndimage.map_coordinates, order=1, mode="nearest")

    def one(key: Array, image: Array) -> Array:
        turn, down, right, shear, *shift = strength * jax.random.uniform(
            key, (6,), minval=-1.0, maxval=1.0
        )
        matrix = jnp.array(
            [
                [1 + _STRETCH * down, _STRETCH * shear - _ROTATION * turn],
                [_ROTATION * turn, 1 + _STRETCH * right],
            ]
        )
        if flip:
            mirrored = jax.random.bernoulli(jax.random.fold_in(key, 1))
            matrix = matrix * jnp.where(mirrored, jnp.array([[1.0, -1.0]]), 1.0)
        places = jnp.matmul(matrix, grid, precision=_HIGHEST) + centre
        places = places + _SHIFT * (sides * jnp.stack(shift))[:, None]
        channels = jax.vmap(sample, (2, None), 1)(image, list(places))  # [H·W, C]
        return channels.reshape(image.shape)

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    keys = jax.vmap(jax.random.split, (0, None))(keys, copies)  # [B, R]
    return jax.vmap(jax.vmap(one, (0, None)))(keys, images)
