"""A first generator, fitted to images that code drew, without data or teacher; see `procedural`.

The generator is the decoder of a variational autoencoder (Kingma and Welling, 2014) of the
procedural prior; that it starts a data-free generator is our reconstruction.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from distill_core.data.sampling import batch_indices
from dpdfd.generator import Generator, generate

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
    """The generator's variables, fitted to images as the decoder of a variational autoencoder.

    `variables` are {"params": …, **model_state}, `images` float32 [N, H, W, C] in [0, 1]. Every
    class of a conditional generator starts alike.
    """
    # Few pixels say little each against the latent code's whole divergence, and all would blur.
    prior_weight = min(1.0, math.prod(images.shape[1:]) / 784)
    fit = _Fit(generator, prior_weight, learning_rate)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    trained = {
        "encoder": fit.encoder.init(key, jnp.zeros((1, *images.shape[1:])))["params"],
        "generator": variables["params"],
    }
    state = {name: value for name, value in variables.items() if name != "params"}
    opt_state = fit.tx.init(trained)
    for i in range(num_steps):
        rows = batch_indices(seed, i, batch_size, len(images))
        trained, state, opt_state = _step(
            fit, trained, state, opt_state, images[rows], jax.random.fold_in(key, 2 + i)
        )
    return {"params": trained["generator"], **state}


@dataclasses.dataclass(frozen=True)
class _Fit:
    generator: Generator
    prior_weight: float
    learning_rate: float

    @property
    def encoder(self) -> Encoder:
        return Encoder(self.generator.latent_size)

    @property
    def tx(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def loss(self, trained: PyTree, state: PyTree, images: jax.Array, key: jax.Array):
        """−log p(x|z) + weight · KL(q(z|x) ‖ N(0, I)), a mean over images, and the new state."""
        generator = self.generator
        code_of: Any = self.encoder.apply({"params": trained["encoder"]}, images)
        mean, log_var = code_of
        draw, pick = jax.random.split(key)
        z = mean + jnp.exp(log_var / 2) * jax.random.normal(draw, mean.shape)
        labels = None
        if generator.conditional:
            labels = jax.random.randint(pick, (len(images),), 0, generator.num_classes or 1)
        made, changed = generate(generator, {"params": trained["generator"], **state}, z, labels)
        made = jnp.clip(made, 1e-5, 1 - 1e-5)
        code = -(images * jnp.log(made) + (1 - images) * jnp.log1p(-made))
        prior = jnp.square(mean) + jnp.exp(log_var) - 1 - log_var
        return (code.sum() + self.prior_weight * prior.sum() / 2) / len(images), changed


@functools.partial(jax.jit, static_argnums=0)
def _step(fit: _Fit, trained: PyTree, state: PyTree, opt_state: PyTree, images, key):
    grads, state = jax.grad(fit.loss, has_aux=True)(trained, state, images, key)
    updates, opt_state = fit.tx.update(grads, opt_state, trained)
    return optax.apply_updates(trained, updates), state, opt_state
