"""Random crops and flips of images, on the device."""

from functools import partial

import jax
import jax.numpy as jnp

from distill_core.config import InputError


@partial(jax.jit, static_argnames=("crop_padding", "flip"))
def augment(
    key: jax.Array,
    images: jax.Array,
    index: jax.Array,
    *,
    crop_padding: int = 0,
    flip: bool = False,
) -> jax.Array:
    """Augments each image by randomness of its own, `fold_in(key, index[i])`.

    An image's result is a function of the key, its index and its pixels alone: the number of
    devices, the size of the batch and the place in it change nothing. Switching the flip on or off
    does not change the crops.

    Args:
      key: one key a training step.
      images: uint8 or floating [B, H, W, C], before any standardisation: the padding is black.
      index: int32 [B], the examples' global indices.
      crop_padding: see `random_crop`; 0 does not crop.
      flip: see `random_flip`.

    Returns:
      [B, H, W, C] of the type given.

    Raises:
      InputError: on `crop_padding`, if negative.
    """
    if crop_padding < 0:
        raise InputError("crop_padding", crop_padding, "must be at least 0")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    if crop_padding:
        images = _crop(_stream(keys, 0), images, crop_padding)
    if flip:
        images = _flip(_stream(keys, 1), images)
    return images


@partial(jax.jit, static_argnames="padding")
def random_crop(key: jax.Array, images: jax.Array, *, padding: int) -> jax.Array:
    """Pads with zeros on all sides and cuts out a window of the old size, placed at random.

    Args:
      key: split into one key an image.
      images: uint8 or floating [B, H, W, C].
      padding: pixels on each side; the window has (2·padding + 1)² places, equally likely.

    Returns:
      [B, H, W, C] of the type given.

    Raises:
      InputError: on `padding`, if negative.
    """
    if padding < 0:
        raise InputError("padding", padding, "must be at least 0")
    return _crop(jax.random.split(key, images.shape[0]), images, padding)


@jax.jit
def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors left and right, each image with probability 1/2.

    Args:
      key: split into one key an image.
      images: [B, H, W, C].

    Returns:
      [B, H, W, C] of the type given.
    """
    return _flip(jax.random.split(key, images.shape[0]), images)


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
