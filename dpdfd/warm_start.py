"""A first generator, from images that code drew, without data or teacher; see `priors`.

The generator is the decoder of a variational autoencoder (Kingma and Welling, 2014) of the
procedural prior; that it starts a data-free generator is our reconstruction.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from distill_core.data.sampling import batch_indices
from dpdfd.generator import Generator

PyTree = Any


class Encoder(nn.Module):
    """Images [B, H, W, C] to mean and log variance of z, each [B, latent_size]."""

    latent_size: int
    hidden: int = 256

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = images.reshape(len(images), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(self.latent_size)(x), nn.Dense(self.latent_size)(x)


def warm_start(
    generator: Generator,
    variables: PyTree,
    images: np.ndarray,
    *,
    seed: int,
    num_steps: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
) -> PyTree:
    """Fits the generator to images, as the decoder of a variational autoencoder.

    Args:
      generator: unconditional, or conditional: then every class starts alike.
      variables: the generator's, {"params": …, **model_state}.
      images: float32 [N, H, W, C] in [0, 1].
      seed: of the encoder, the order and the draws.
      num_steps: updates.
      batch_size: images in a step.
      learning_rate: Adam's.

    Returns:
      The generator's variables.
    """
    encoder = Encoder(generator.latent_size)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    trained = {
        "encoder": encoder.init(key, jnp.zeros((1, *images.shape[1:])))["params"],
        "generator": variables["params"],
    }
    state = {name: value for name, value in variables.items() if name != "params"}
    tx = optax.adam(learning_rate)
    # Few pixels say little each against the latent code's whole divergence, and all would blur.
    prior_weight = min(1.0, math.prod(images.shape[1:]) / 784)

    @jax.jit
    def step(trained, state, opt_state, images, key):
        def loss_fn(trained):
            code_of: Any = encoder.apply({"params": trained["encoder"]}, images)
            mean, log_var = code_of
            draw, pick = jax.random.split(key)
            z = mean + jnp.exp(log_var / 2) * jax.random.normal(draw, mean.shape)
            labels = None
            if generator.conditional:
                labels = jax.random.randint(pick, (len(images),), 0, generator.num_classes or 1)
            given = {"params": trained["generator"], **state}
            found: Any = generator.apply(given, z, labels, train=True, mutable=list(state))
            made, changed = found
            made = jnp.clip(made, 1e-5, 1 - 1e-5)
            code = -(images * jnp.log(made) + (1 - images) * jnp.log1p(-made))
            prior = jnp.square(mean) + jnp.exp(log_var) - 1 - log_var
            return (code.sum() + prior_weight * prior.sum() / 2) / len(images), dict(changed)

        grads, state = jax.grad(loss_fn, has_aux=True)(trained)
        updates, opt_state = tx.update(grads, opt_state, trained)
        return optax.apply_updates(trained, updates), state, opt_state

    opt_state = tx.init(trained)
    for i in range(num_steps):
        rows = batch_indices(seed, i, batch_size, len(images))
        trained, state, opt_state = step(
            trained, state, opt_state, images[rows], jax.random.fold_in(key, 2 + i)
        )
    return {"params": trained["generator"], **state}
