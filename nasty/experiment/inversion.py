"""DeepInversion: what inputs does a classifier have in mind for a class?

Images are optimised from noise until a frozen network puts them in the wanted classes and its batch
normalisations see the statistics that they saw in training. What comes out of a nasty teacher can
then be compared with a normal one's by number. After Yin et al., "Dreaming to Distill: Data-Free
Knowledge Transfer via DeepInversion", CVPR 2020.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from numpy.typing import ArrayLike

from distill_core import checkpoint, evaluate
from distill_core.config import InputError
from distill_core.data.images.preprocess import preprocess
from distill_core.losses import cross_entropy
from distill_core.models.network import Network
from distill_core.models.norm import BatchNorm

Array = jax.Array
_TINY = float(np.finfo(np.float32).tiny)


class NormInput(NamedTuple):
    """What enters a batch normalisation, and the statistics that it keeps from its training."""

    inputs: Array  # [..., C]
    mean: Array  # [C]
    var: Array  # [C]


class Inversion(NamedTuple):
    """Reconstructed images, and what there is to say of them.

    Attributes:
      images: float32 [B, H, W, C] in [0, 1].
      labels: int32 [B], the wanted classes.
      confidence: float32 [B], the network's own probability of the wanted class.
      terms: the final value of each term, before its weight.
    """

    images: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray
    terms: dict[str, float]


def total_variation(images: Array) -> Array:
    """Σ |down − here| + |right − here|, by the number of pixels and channels.

    images [B, H, W, C], any float dtype, to float32 [B]. Source: Yin et al., equation 3, which
    leaves the norm open; theirs is Euclidean and over the batch, this one does not depend on B.

    >>> print(total_variation(jnp.array([[0., 1.], [1., 1.]]).reshape(1, 2, 2, 1)))
    [0.5]
    """
    x = images.astype(jnp.float32)
    down = jnp.abs(x[:, 1:] - x[:, :-1]).sum((1, 2, 3))
    right = jnp.abs(x[:, :, 1:] - x[:, :, :-1]).sum((1, 2, 3))
    return (down + right) / np.prod(images.shape[1:])


def mean_square(images: Array) -> Array:
    """The L2 term: [B, H, W, C] to float32 [B], by the number of pixels and channels."""
    return jnp.square(images.astype(jnp.float32)).mean((1, 2, 3))


def statistics_distance(seen: NormInput) -> Array:
    """‖μ(x) − μ_running‖₂ + ‖σ²(x) − σ²_running‖₂ over the channels of one normalisation.

    σ² is the biased variance of the batch. Returns float32 []; finite gradients also where batch
    and running statistics agree. Source: Yin et al., equation 4.
    """
    x = seen.inputs.astype(jnp.float32)
    x = x.reshape(-1, x.shape[-1])
    return _norm(x.mean(0) - seen.mean) + _norm(x.var(0) - seen.var)


def inversion_loss(
    logits: Array,
    labels: Array,
    standardised: Array,
    normalisations: Sequence[NormInput],
    *,
    weights: Mapping[str, float | Array],
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum of what an image of a class should be like.

    Pure and jit-safe, in float32; `statistics` belongs to the batch as a whole.

    Args:
      logits: [B, K], of the frozen network at inference.
      labels: integers [B], the wanted classes.
      standardised: the images as the network sees them, [B, H, W, C].
      normalisations: as `watch_normalisations` collects them, of the same forward pass.
      weights: of `cross_entropy`, `total_variation`, `l2` and `statistics`.

    Returns:
      (loss [], the terms before their weights, each []).

    Source: Yin et al., equations 1 to 4.
    """
    terms = {
        "cross_entropy": cross_entropy(logits, labels).mean(),
        "total_variation": total_variation(standardised).mean(),
        "l2": mean_square(standardised).mean(),
        "statistics": sum((statistics_distance(each) for each in normalisations), jnp.float32(0)),
    }
    return jnp.stack([weights[name] * term for name, term in terms.items()]).sum(), terms


@contextmanager
def watch_normalisations() -> Iterator[list[NormInput]]:
    """Collects what enters every batch normalisation, ours or Flax's, that is applied inside.

    For networks of any make at inference; use the list within the trace that made it.
    """
    seen: list[NormInput] = []

    def watch(call, args, kwargs, context):
        layer = context.module
        if isinstance(layer, BatchNorm | nn.BatchNorm) and context.method_name == "__call__":
            mean, var = (layer.get_variable("batch_stats", name) for name in ("mean", "var"))
            if mean is not None and var is not None:
                inputs = args[0] if args else kwargs["x"]
                axis = getattr(layer, "axis", -1)  # of Flax's
                seen.append(NormInput(jnp.moveaxis(inputs, axis, -1), mean, var))
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        yield seen


def invert(
    model: checkpoint.LoadedModel,
    labels: ArrayLike,
    *,
    seed: int,
    num_steps: int = 1000,
    learning_rate: float = 0.1,
    statistics: float = 1.0,
    total_variation: float = 0.05,
    l2: float = 0.01,
) -> Inversion:
    """Images that a classifier takes for the wanted classes, optimised from noise.

    All images at once, since the batch's statistics are matched: ask for the classes in about the
    shares of the training set, for ten images a class or more. Adam (β 0.5 and 0.9) on the pixels
    with a cosine decay, pixels clipped to [0, 1] after each step; at each step the images are
    rolled by up to a sixteenth of their size, as in the paper, but not flipped, which would make
    another class of many a digit.

    Args:
      model: an image classifier with batch normalisations; runs at inference.
      labels: integers [B] in [0, K).
      seed: the same seed gives the same images, bit for bit on the same machine.
      num_steps: updates.
      learning_rate: the first, in units of the pixels in [0, 1].
      statistics, total_variation, l2: weights beside the cross-entropy's 1. The terms are means,
        so that they serve any image and batch size; the values are ours.

    Raises:
      InputError: no classifier of images, no batch normalisation, or labels that are no classes.
    """
    wanted = _checked_labels(model, labels)
    _check_normalised(model, len(wanted))
    network = model.network
    variables = jax.device_put(model.variables)
    weights = {
        "cross_entropy": np.float32(1),
        "total_variation": np.float32(total_variation),
        "l2": np.float32(l2),
        "statistics": np.float32(statistics),
    }
    key = jax.random.key(seed)
    shape = (len(wanted), *network.input_shape)
    channels = (1, 1, 1, -1)
    mean, std = (np.asarray(x, np.float32).reshape(channels) for x in (network.mean, network.std))
    images = jnp.clip(mean + std * jax.random.normal(key, shape), 0, 1)
    moments = _adam().init(images)
    for i in range(num_steps):
        rate = np.float32(learning_rate * 0.5 * (1 + np.cos(np.pi * i / num_steps)))
        given, number = (variables, wanted, weights), np.int32(i)
        images, moments = _step(network, images, moments, given, rate, key, number)
    confidence, terms = _finish(network, images, variables, wanted, weights)
    return Inversion(
        np.asarray(images),
        wanted,
        np.asarray(confidence),
        {name: float(value) for name, value in terms.items()},
    )


def noisiness(images: ArrayLike) -> float:
    """Mean total variation of images [B, H, W, C] in [0, 1]: higher for noise than for shapes."""
    return float(total_variation(jnp.asarray(images)).mean())


def judge_accuracy(images: ArrayLike, labels: ArrayLike, judge: checkpoint.LoadedModel) -> float:
    """The share of images that another network puts in the wanted class, as a fraction.

    Images in the mind of one network alone are noise to another. images float [B, H, W, C] in
    [0, 1], labels int [B]. Our reconstruction of what the paper shows by transfer (its table 3).
    """
    logits = evaluate.compute_logits(judge, np.asarray(images))
    return float(np.mean(logits.argmax(-1) == np.asarray(labels)))


def _checked_labels(model: checkpoint.LoadedModel, labels: ArrayLike) -> np.ndarray:
    network = model.network
    if network.is_text or network.outputs == "images":
        raise InputError("model", network.model, "is no classifier of images")
    wanted, classes = np.asarray(labels), network.num_classes
    integers = wanted.ndim == 1 and wanted.size and np.issubdtype(wanted.dtype, np.integer)
    if not integers or wanted.min() < 0 or wanted.max() >= classes:
        raise InputError(
            "labels", np.unique(wanted).tolist(), f"must be classes 0 to {classes - 1}"
        )
    return wanted.astype(np.int32)


def _check_normalised(model: checkpoint.LoadedModel, batch: int):
    """Refuses, on shapes alone, a network that has no statistics to match."""
    images = jax.ShapeDtypeStruct((batch, *model.network.input_shape), jnp.float32)

    def count(variables, images):
        with watch_normalisations() as seen:
            model.apply(variables, images)
        found.append(len(seen))

    found: list[int] = []
    jax.eval_shape(count, model.variables, images)
    if not found[0]:
        allowed = "has no batch normalisation, whose running statistics DeepInversion matches"
        raise InputError("model", model.network.model, allowed)


def _loss(network: Network, images, variables, labels, weights):
    with watch_normalisations() as seen:
        logits = network.apply(variables, images)
    standardised = preprocess(images, network.mean, network.std)
    value, terms = inversion_loss(logits, labels, standardised, seen, weights=weights)
    return value, (logits, terms)


@functools.partial(jax.jit, static_argnums=0)
def _step(network: Network, images, moments, given, rate, key, number):
    """One update of the images, on a random shift of them: a normal and a nasty teacher compile
    once."""
    height, width, _ = network.input_shape
    reach = np.array([height // 16, width // 16], np.int32)
    key = jax.random.fold_in(key, number)
    shift = jax.random.randint(key, (2,), -reach, reach + 1)

    def rolled(images):
        return _loss(network, jnp.roll(images, shift, (1, 2)), *given)[0]

    update, moments = _adam().update(jax.grad(rolled)(images), moments)
    return jnp.clip(images - rate * update, 0, 1), moments


@functools.partial(jax.jit, static_argnums=0)
def _finish(network: Network, images, variables, labels, weights):
    """(confidence [B], terms of the loss) at the end."""
    _, (logits, terms) = _loss(network, images, variables, labels, weights)
    probabilities = jax.nn.softmax(logits)
    return jnp.take_along_axis(probabilities, labels[:, None], 1)[:, 0], terms


def _adam() -> Any:
    return optax.scale_by_adam(b1=0.5, b2=0.9)


def _norm(x: Array) -> Array:
    """Euclidean, with gradient 0 at 0."""
    squares = jnp.sum(jnp.square(x))
    return jnp.where(squares > _TINY, jnp.sqrt(jnp.where(squares > _TINY, squares, 1.0)), 0.0)
