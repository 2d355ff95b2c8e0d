"""The generator: from latent vectors, and classes where they are given, to images in [0, 1].

`draw_latents` and `generate` are its draws in a training step, `Generator.sample` those of others.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from distill_core.config import InputError
from distill_core.models.layers import conv, dense, mask_examples
from distill_core.models.network import Network
from distill_core.models.norm import normalise
from distill_core.training.step import TrainState, stream_key

STREAM_QUERIES = 2


class Generator(nn.Module):
    """Dense to 2F × H/4 × W/4, norm; twice: up 2, 3×3 convolution, norm, LeakyReLU; to [0, 1].

    Source: the generator of Chen et al., "Data-Free Learning of Student Networks" (ICCV 2019), in
    the form of later data-free distillation: a sigmoid instead of tanh and a norm at the end.
    1,050,947 parameters for 32×32×3. Classes are our reconstruction: a learnt embedding, N(0, 1) at
    the start as z is, is put beside z. Unlike in the student, batch normalisation is allowed: no
    per-example bound goes through the generator.

    Attributes:
      image_shape: (H, W, C) of the images; H and W are multiples of 4.
      num_classes: K; only `conditional` needs it.
      conditional: whether `labels` say which class to draw.
      latent_size: length of z.
      width: F, channels of the last hidden layer.
      label_features: length of a class's embedding.
      norm: "batch", "group" or "none".
    """

    image_shape: tuple[int, int, int]
    num_classes: int | None = None
    conditional: bool = False
    latent_size: int = 100
    width: int = 64
    label_features: int = 32
    norm: str = "batch"

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        labels: jax.Array | None = None,
        *,
        train: bool = False,
        where: jax.Array | None = None,
    ) -> jax.Array:
        """Latent vectors [B, latent_size] to images float32 [B, H, W, C] in [0, 1].

        Args:
          z: draws of N(0, I), any float dtype.
          labels: integers [B] in [0, K) if `conditional`, else None; a label outside gives NaN.
          train: whether to use and update the batch's statistics.
          where: bool [B]; False examples reach no other image and no gradient.

        Raises InputError on `image_shape`, `num_classes`, `z` or `labels`.
        """
        height, width, channels = self._checked_shape()
        if z.ndim != 2 or z.shape[1] != self.latent_size:
            raise InputError("z", tuple(z.shape), f"must be [B, {self.latent_size}]")
        z = mask_examples(z.astype(jnp.float32), where)
        if self.conditional:
            z = jnp.concatenate([z, self._embedded(labels, len(z), where)], axis=1)
        elif labels is not None:
            raise InputError("labels", tuple(labels.shape), "this generator is not conditional")

        norm = partial(normalise, self.norm, train=train, where=where)

        def block(x: jax.Array, features: int) -> jax.Array:
            x = conv(_double(x), features, use_bias=self.norm == "none")
            return nn.leaky_relu(norm(x), negative_slope=0.2)

        x = dense(z, 2 * self.width * (height // 4) * (width // 4))
        x = norm(x.reshape(len(z), height // 4, width // 4, 2 * self.width))
        x = block(x, 2 * self.width)
        x = block(x, self.width)
        return nn.sigmoid(conv(x, channels, use_bias=True))

    def _checked_shape(self) -> tuple[int, int, int]:
        shape = tuple(self.image_shape)
        if len(shape) != 3 or min(shape) < 1 or shape[0] % 4 or shape[1] % 4:
            raise InputError(
                "image_shape", shape, "must be (H, W, C), at least 1, with H and W multiples of 4"
            )
        return shape

    def _embedded(self, labels: jax.Array | None, batch: int, where: jax.Array | None) -> jax.Array:
        """Embeddings [B, label_features] of the classes."""
        num_classes = self.num_classes or 0
        if num_classes < 1:
            raise InputError("num_classes", self.num_classes, "a conditional generator needs K ≥ 1")
        if labels is None and self.is_initializing():
            labels = jnp.zeros(batch, jnp.int32)
        allowed = f"must be integers [{batch}], one class per image"
        if labels is None:
            raise InputError("labels", None, allowed)
        if labels.shape != (batch,) or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise InputError("labels", f"{labels.dtype} {labels.shape}", allowed)
        shape = num_classes, self.label_features
        table = self.param("classes", nn.initializers.normal(1.0), shape)
        labels = mask_examples(labels, where).astype(jnp.int32)
        # 'fill' makes a label that is too large NaN; negative ones would wrap, so move them out.
        index = jnp.where(labels < 0, num_classes, labels)
        return jnp.take(table, index, axis=0, mode="fill", fill_value=jnp.nan)

    @nn.nowrap
    def sample(
        self,
        variables: Mapping[str, Any],
        key: jax.Array,
        num: int,
        labels: jax.Array | None = None,
        *,
        batch_size: int = 500,
    ) -> jax.Array:
        """Draws images at inference; image i depends on the key, i and its label alone.

        Args:
          variables: {"params": …, **model_state}.
          key: random key.
          num: N ≥ 0.
          labels: integers [N]; a conditional generator without them draws them, too, uniformly.
          batch_size: images at a time, which bounds the memory.

        Returns float32 [N, H, W, C] in [0, 1]; raises InputError.
        """
        for field, value, low in (("num", num, 0), ("batch_size", batch_size, 1)):
            if value < low:
                raise InputError(field, value, f"must be at least {low}")
        if labels is not None and jnp.shape(labels) != (num,):
            raise InputError("labels", jnp.shape(labels), f"must be [{num}], one class per image")
        if not num:
            return jnp.zeros((0, *self._checked_shape()))
        return _sample(self, variables, key, num, labels, min(batch_size, num))


def draw_latents(
    key: jax.Array, index: jax.Array, generator: Generator, batch_size: int
) -> tuple[jax.Array, jax.Array | None]:
    """Latent vectors and, for a conditional generator, classes, each by its place in the batch.

    The halves of a batch have the same classes, as `losses.diversity_loss` pairs them. `index`
    holds places int32 `[b]` in the global batch of `batch_size`; z is float32 `[b, latent_size]`.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    z = jax.vmap(lambda key: jax.random.normal(key, (generator.latent_size,)))(keys)
    if not generator.conditional:
        return z, None
    pair = index % max(1, batch_size // 2)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 1), pair)
    classes = generator.num_classes or 1
    return z, jax.vmap(lambda key: jax.random.randint(key, (), 0, classes))(keys)


def generate(
    generator: Generator, variables: Any, z: jax.Array, labels: jax.Array | None
) -> tuple[jax.Array, Any]:
    """Images float32 `[b, H, W, C]` in training mode, and the new model state."""
    collections = [name for name in variables if name != "params"]
    images, changed = generator.apply(variables, z, labels, train=True, mutable=collections)
    return images, dict(changed)


def adam(learning_rate: float) -> optax.GradientTransformation:
    """The optimiser that generators are trained with."""
    return optax.adam(learning_rate, b1=0.5)


def queries(
    network: Network, state: TrainState, index: jax.Array, number: jax.Array, batch_size: int
) -> jax.Array:
    """Images `[b, H, W, C]` of the generator in training; `number` says which draw of the run's."""
    key, module = stream_key(state.rng, STREAM_QUERIES, number), network.module()
    z, labels = draw_latents(key, index, module, batch_size)
    return generate(module, {"params": state.params, **state.model_state}, z, labels)[0]


@partial(jax.jit, static_argnums=(0, 3, 5))
def _sample(
    generator: Generator,
    variables: Mapping[str, Any],
    key: jax.Array,
    num: int,
    labels: jax.Array | None,
    batch_size: int,
) -> jax.Array:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num))
    if labels is None and generator.conditional:
        draw = partial(jax.random.randint, shape=(), minval=0, maxval=generator.num_classes or 1)
        labels = jax.vmap(lambda key: draw(jax.random.fold_in(key, 1)))(keys)

    def one(example: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        key, label = example
        z = jax.random.normal(jax.random.fold_in(key, 0), (1, generator.latent_size))
        images = generator.apply(variables, z, None if label is None else label[None])
        return jnp.asarray(images)[0]

    return jax.lax.map(one, (keys, labels), batch_size=batch_size)


def _double(x: jax.Array) -> jax.Array:
    """Each pixel of [B, H, W, C] as 2×2 equal ones: nearest-neighbour upsampling."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
