"""Random rotations, crops and flips of images, on the device."""

from functools import partial

import jax
import jax.numpy as jnp

from distill_core.config import InputError


def check_padding(crop_padding: int, height: int, width: int):
    """Raises InputError on `crop_padding` if windows could miss an image of that size."""
    if crop_padding >= min(height, width):
        allowed = f"must be below the {min(height, width)} pixels of an image's side"
        raise InputError("crop_padding", crop_padding, allowed)


@partial(jax.jit, static_argnames=("crop_padding", "flip", "rotation"))
def augment(
    key: jax.Array,
    images: jax.Array,
    index: jax.Array,
    *,
    crop_padding: int = 0,
    flip: bool = False,
    rotation: float = 0.0,
) -> jax.Array:
    """Rotates, crops, then flips each image, with `fold_in(key, index[i])` as its random key.

    The result depends on the key, the image's index and its pixels alone, not on the number of
    devices, the batch size or the place in the batch. Switching one of the three on or off does not
    change the others.

    Args:
      key: one key per training step.
      images: uint8 or floating [B, H, W, C], before any standardisation: the padding is black.
      index: int32 [B], the examples' global indices.
      crop_padding: black pixels added on each side, before a window of the old size is cut out at
        one of (2·padding + 1)² equally likely places; 0 does not crop.
      flip: mirrors left and right with probability 1/2.
      rotation: turns by an angle in degrees that is uniform in [-rotation, rotation].

    Returns:
      [B, H, W, C] of the type given.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    if rotation:
        draw = partial(jax.random.uniform, shape=(), minval=-rotation, maxval=rotation)
        images = rotate(images, jax.vmap(draw)(_stream(keys, 2)))
    if crop_padding:
        images = _crop(_stream(keys, 0), images, crop_padding)
    if flip:
        images = _flip(_stream(keys, 1), images)
    return images


@jax.jit
def rotate(images: jax.Array, degrees: jax.Array) -> jax.Array:
    """Turns images [B, H, W, C] about their centres by float32 [B] degrees.

    Interpolates bilinearly, with black outside; uint8 is rounded.
    """
    height, width = images.shape[1:3]
    # The axes through the centre, as a column and a row.
    y = (jnp.arange(height) - (height - 1) / 2)[:, None]
    x = (jnp.arange(width) - (width - 1) / 2)[None, :]

    def one(image: jax.Array, angle: jax.Array) -> jax.Array:
        # Each pixel of the result comes from the place turned back by the angle.
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        rows = cos * y + sin * x + (height - 1) / 2  # [H, W]
        columns = cos * x - sin * y + (width - 1) / 2
        top, left = jnp.floor(rows), jnp.floor(columns)
        down, right = (rows - top)[..., None], (columns - left)[..., None]  # [H, W, 1]
        black = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
        above = (1 - right) * _pixels(black, top, left) + right * _pixels(black, top, left + 1)
        top += 1
        below = (1 - right) * _pixels(black, top, left) + right * _pixels(black, top, left + 1)
        turned = (1 - down) * above + down * below
        return (jnp.round(turned) if image.dtype == jnp.uint8 else turned).astype(image.dtype)

    return jax.vmap(one)(images, jnp.deg2rad(degrees))


def _pixels(black: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """float32 [H, W, C] at these places of an image with a border of black."""
    row = jnp.clip(row.astype(jnp.int32) + 1, 0, black.shape[0] - 1)
    column = jnp.clip(column.astype(jnp.int32) + 1, 0, black.shape[1] - 1)
    return black[row, column].astype(jnp.float32)


def _stream(keys: jax.Array, stream: int) -> jax.Array:
    """Keys [B] for one of several uses of the keys [B]."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, stream)


def _crop(keys: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    shape = images.shape[1:]
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(image, (top, left, 0), shape)

    return jax.vmap(one)(keys, padded)


def _flip(keys: jax.Array, images: jax.Array) -> jax.Array:
    flips = jax.vmap(jax.random.bernoulli)(keys)  # [B]
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)
