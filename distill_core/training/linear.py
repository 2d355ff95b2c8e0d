"""Networks that are one linear layer on fixed features, and those features of many images."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.models import CONSTANTS
from distill_core.models.network import Network

PyTree = Any

LAYER = "linear"
_ROWS = 256  # images of which features are computed at once
_TRIED, _CLOSE = 4, 0.02  # accelerators round the factors of a product, by default


def is_linear(network: Network) -> bool:
    """Whether a classifier's logits are `features · kernel + bias`, and these all its parameters.

    By the names and shapes of its parameters, {"linear": {"kernel": [D, K], "bias": [K]}}, and by
    a trial: with other parameters the features of a few random images, each by itself, stay the
    same, and logits in training, of all together, are their product.
    """
    shapes = network.shapes()
    if network.is_text or network.compute_dtype != "float32":
        return False
    if shapes.keys() - {"params", CONSTANTS}:
        return False
    wanted = jax.tree.structure({LAYER: {"kernel": 0, "bias": 0}})
    if jax.tree.structure(shapes["params"]) != wanted:
        return False
    return shapes["params"][LAYER]["kernel"].ndim == 2 and bool(_is_product(network))


@functools.partial(jax.jit, static_argnums=0)
def _is_product(network: Network) -> jax.Array:
    rng = np.random.default_rng(0)

    def draw(leaf):  # constants, too: the network's own may take long to compute
        given = rng.uniform(0.1, 1.0, leaf.shape)
        return jnp.asarray(
            given if jnp.issubdtype(leaf.dtype, jnp.floating) else 0 * given, leaf.dtype
        )

    shapes = network.shapes()
    images = jnp.asarray(rng.random((_TRIED, *network.input_shape), np.float32))
    first, variables = (jax.tree.map(draw, shapes) for _ in range(2))
    params, model_state = variables.pop("params"), variables
    found = _each(network, {"params": first["params"], **model_state}, images)
    kernel, bias = (params[LAYER][name] for name in ("kernel", "bias"))
    if found is None or found.shape != (_TRIED, len(kernel)):
        return jnp.zeros((), bool)
    logits, _ = network.train_apply(params, model_state, images, jax.random.key(1))
    product = jnp.matmul(found, kernel, precision=jax.lax.Precision.HIGHEST) + bias[None]
    return jnp.all(jnp.abs(logits - product) <= _CLOSE * jnp.max(jnp.abs(product)))


# Of the last call: an experiment's runs share their network and images, and features take longer
# than all else.
_last: list[tuple[Network, PyTree, np.ndarray, np.ndarray]] = []


def features(network: Network, variables: PyTree, images: np.ndarray) -> np.ndarray:
    """Inputs of the last layer, float32 [N, D], of images [N, H, W, C]."""
    constants = jax.tree.map(np.asarray, variables.get(CONSTANTS, {}))
    for known, same, pictures, found in _last:
        leaves = jax.tree.leaves(constants), jax.tree.leaves(same)
        if (
            known == network
            and all(map(np.array_equal, *leaves))
            and np.array_equal(pictures, images)
        ):
            return found
    found = _in_parts(network, variables, images)
    _last[:] = [(network, constants, images, found)]
    return found


def _in_parts(network: Network, variables: PyTree, images: np.ndarray) -> np.ndarray:
    size = min(_ROWS, len(images))
    found = np.empty((len(images), len(variables["params"][LAYER]["kernel"])), np.float32)
    for start in range(0, len(images), size):
        first = max(0, min(start, len(images) - size))  # parts of one size compile once
        found[first : first + size] = _features(network, variables, images[first : first + size])
    return found


@functools.partial(jax.jit, static_argnums=0)
def _features(network: Network, variables: PyTree, images: jax.Array) -> jax.Array:
    found = _each(network, variables, images)
    assert found is not None
    return found


def _each(network: Network, variables: PyTree, images: jax.Array) -> jax.Array | None:
    """Features [B, D] of images, each seen by itself: a record must not reach another's."""

    def one(image: jax.Array) -> jax.Array | None:
        found = network.features(variables, image[None])
        return None if found is None else found[0]

    return jax.vmap(one)(images)
