"""Rotations, crops and flips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from distill_core.data.images.augment import augment, rotate

KEY = jax.random.key(0)
EVERYTHING = {"crop_padding": 2, "flip": True, "rotation": 30.0}


def _images(num=32, dtype=np.uint8, shape=(6, 5, 2)):
    # No zeros, so that the padding can be told from the picture.
    images = np.random.default_rng(0).integers(1, 256, (num, *shape)).astype(np.uint8)
    return images if dtype == np.uint8 else (images / 255).astype(dtype)


def _placement(image, out, padding):
    """(top, left) of the window that `out` is of the padded image; fails if it is none."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    places = [
        (top, left)
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
        if np.array_equal(padded[top : top + height, left : left + width], out)
    ]
    assert len(places) == 1
    return places[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_crop_is_a_window_of_the_padded_image(dtype):
    images = _images(dtype=dtype)
    out = augment(KEY, images, jnp.arange(32), crop_padding=2)
    assert out.dtype == dtype
    places = {_placement(*pair, 2) for pair in zip(images, np.asarray(out), strict=True)}
    assert len(places) > 10


def test_crops_are_uniform_and_independent_of_flips_which_mirror_half_of_the_images():
    images, index = _images(num=4500, shape=(3, 3, 1)), jnp.arange(4500)
    flipped = np.asarray(augment(KEY, images, index, flip=True))
    kept = np.array([np.array_equal(*pair) for pair in zip(images, flipped, strict=True)])
    np.testing.assert_array_equal(flipped[~kept], images[~kept][:, :, ::-1])
    cropped = np.asarray(augment(KEY, images, index, crop_padding=1))
    counts = np.zeros((2, 3, 3))
    for flip, *pair in zip(kept, images, cropped, strict=True):
        counts[(int(flip), *_placement(*pair, 1))] += 1
    # 250 expected of each of 18 outcomes; 40.8 is the 99.9% quantile of χ² with 17 degrees.
    assert np.sum((counts - 250) ** 2 / 250) < 40.8


@pytest.mark.parametrize("shape", [(6, 5, 2), (7, 7, 1)])
def test_a_rotation_is_scipys(shape):
    images = _images(37, np.float32, shape)
    degrees = np.linspace(-180, 180, 37).astype(np.float32)
    out = rotate(images, degrees)
    assert out.dtype == np.float32
    # grid-constant: beyond the edge lie black pixels, which are interpolated with too.
    how = {"axes": (0, 1), "order": 1, "reshape": False, "mode": "grid-constant"}
    expected = [ndimage.rotate(*pair, **how) for pair in zip(images, degrees, strict=True)]
    np.testing.assert_allclose(out, np.stack(expected), atol=3e-6)
    np.testing.assert_array_equal(out[18], images[18])  # by 0 degrees
    rounded = rotate(np.round(255 * images).astype(np.uint8), degrees)
    assert rounded.dtype == np.uint8
    np.testing.assert_allclose(rounded, 255 * np.stack(expected), atol=0.5001)


def test_angles_are_uniform_whether_flipped_or_not():
    # A wedge as bright as its angle: what lies just right of the centre tells the rotation.
    side = np.arange(65) - 32.0
    angles = np.rad2deg(np.arctan2(-side[:, None], side[None, :]))
    image = np.float32(angles / 360 + 0.5)[None, :, :, None]
    images, index = np.broadcast_to(image, (400, 65, 65, 1)), jnp.arange(400)
    out = np.asarray(augment(KEY, images, index, rotation=40.0))
    turned = -360 * (out[:, 32, 60, 0] - 0.5)
    assert -40 <= turned.min() < -38 and 38 < turned.max() <= 40
    counts = np.histogram(turned, bins=8, range=(-40, 40))[0]
    assert np.sum((counts - 50) ** 2 / 50) < 24.3  # the 99.9% quantile of χ² with 7 degrees
    flips = np.asarray(augment(KEY, images, index, flip=True))[:, 32, 60, 0] != images[:, 32, 60, 0]
    assert abs(turned[flips].mean() - turned[~flips].mean()) < 9.2  # 4 standard deviations


def test_place_and_size_of_the_batch_change_nothing():
    images, index = _images(), np.arange(100, 132, dtype=np.int32)
    np.testing.assert_array_equal(augment(KEY, images, index), images)  # nothing is switched on
    whole = np.asarray(augment(KEY, images, index, **EVERYTHING))
    order = np.random.default_rng(1).permutation(32)
    shuffled = augment(KEY, images[order], index[order], **EVERYTHING)
    np.testing.assert_array_equal(shuffled, whole[order])
    # As on two devices, where the index is traced and its shard is all that a device sees.
    mapped = jax.vmap(lambda x, i: augment(KEY, x, i, **EVERYTHING))
    sharded = mapped(images.reshape(2, 16, 6, 5, 2), index.reshape(2, 16))
    np.testing.assert_array_equal(sharded.reshape(images.shape), whole)


def test_index_and_key_decide():
    image = np.broadcast_to(_images(1), (64, 6, 5, 2))
    same = np.asarray(augment(KEY, image, jnp.zeros(64, jnp.int32), **EVERYTHING))
    assert len(np.unique(same, axis=0)) == 1
    index = jnp.arange(64)
    other = np.asarray(augment(KEY, image, index, **EVERYTHING))
    assert len(np.unique(other, axis=0)) > 20
    later = np.asarray(augment(jax.random.key(1), image, index, **EVERYTHING))
    assert not np.array_equal(other, later)


def test_rotating_comes_first_and_each_leaves_the_others_unchanged():
    images, index = _images(), jnp.arange(32)
    cropped = np.asarray(augment(KEY, images, index, crop_padding=2))
    both = np.asarray(augment(KEY, images, index, crop_padding=2, flip=True))
    for one, other in zip(cropped, both, strict=True):
        assert np.array_equal(one, other) or np.array_equal(one[:, ::-1], other)
    assert not np.array_equal(cropped, both)
    turned = augment(KEY, images, index, rotation=30.0)
    assert not np.array_equal(turned, images)
    for settings in ({"crop_padding": 2, "flip": True}, {"crop_padding": 2}, {"flip": True}):
        moved = augment(KEY, turned, index, **settings)
        together = augment(KEY, images, index, rotation=30.0, **settings)
        np.testing.assert_array_equal(together, moved)
