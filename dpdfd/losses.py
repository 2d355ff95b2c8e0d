"""Terms of the generator's loss, and the student's losses.

Pure and jit-safe, computed in float32. Terms take `[..., K]` logits of the frozen guide and give
one value per example unless they say otherwise; they raise ValueError on shapes that do not belong
together. Entries where `where` is False give exactly 0, with gradient 0, even if they hold NaN.
Which terms there are, and their weights, is our reconstruction but for the first three.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.losses import cross_entropy, kl_divergence, leading_shape
from distill_core.runtime import collectives

Array = jax.Array

# The least normal float32. Below it a processor may take a number for 0 in one place, and not in
# another, so that such numbers are 0 wherever a logarithm or a root has to keep its gradient.
_TINY = float(np.finfo(np.float32).tiny)


class Weights(NamedTuple):
    """Weights, each at least 0, of the terms of the generator's loss."""

    one_hot: float
    balance: float
    activation: float
    diversity: float
    smoothness: float


def one_hot_loss(
    logits: Array, labels: Array | None = None, *, where: Array | None = None
) -> Array:
    """Cross-entropy of the guide's logits to its own first choice, or to the class asked for.

    Source: Chen et al., "Data-Free Learning of Student Networks" (ICCV 2019). With `labels`, it is
    our reconstruction. Keep its weight small: a generator trained hard on it makes images that only
    the guide can read.

    Args:
      logits: `[..., K]`, any float dtype.
      labels: integers `[...]` in [0, K), the classes that a conditional generator was given; None
        for the argmax (the first of equals).
      where: bool `[...]`.

    Returns:
      float32 `[...]`, in nats.

    >>> print(one_hot_loss(jnp.array([[0., jnp.log(3.)]])).round(3))
    [0.288]
    """
    if labels is None:
        leading_shape(where, logits=logits)
        labels = jnp.argmax(logits, axis=-1)
    return cross_entropy(logits, labels, where=where)


def balance_loss(logits: Array, where: Array | None = None) -> Array:
    """Σ_k p̄_k log p̄_k: the negative entropy of the mean prediction over the *whole batch*.

    Least, −log K, where the guide sees all classes equally often. The mean is over the unmasked
    examples of all devices, so that the value is equal on all of them. Its gradient is right where
    it is added to each example's value and these are summed over all devices, or where the devices'
    gradients are averaged.

    Source: Chen et al., 2019, in nats; their code takes log₁₀.

    Args:
      logits: `[..., K]`, any float dtype.
      where: bool `[...]`, the examples that count.

    Returns:
      float32 `[]` in [−log K, 0], one value of the batch; 0 if no example counts.

    >>> print(balance_loss(jnp.array([[9., -9.], [-9., 9.]])).round(3))
    -0.693
    """
    leading = leading_shape(where, logits=logits)
    where = jnp.ones(leading, bool) if where is None else where
    probs = jax.nn.softmax(_masked(logits, where), axis=-1)
    axes = tuple(range(len(leading)))
    total = jnp.sum(jnp.where(where[..., None], probs, 0.0), axes)  # [K]
    total, count = collectives.all_sum((total, jnp.sum(where, dtype=jnp.float32)))
    mean = total / jnp.where(count > 0, count, 1.0)
    # p log p and its share of the gradient vanish with p.
    live = mean > _TINY
    return jnp.sum(jnp.where(live, mean * jnp.log(jnp.where(live, mean, 1.0)), 0.0))


def activation_loss(features: Array, *, where: Array | None = None) -> Array:
    """−mean |f|, float32 `[...]` of features `[..., D]`: real images excite them more than others.

    Source: Chen et al., 2019; the mean over the features is that of their code.

    >>> print(activation_loss(jnp.array([[3., -1.]])))
    [-2.]
    """
    leading_shape(where, features=features)
    return _zero_masked(-jnp.mean(jnp.abs(_masked(features, where)), axis=-1), where)


def diversity_loss(images: Array, z: Array, *, where: Array | None = None) -> Array:
    """−‖x − x′‖ / ‖z − z′‖ with the image half a batch away: different z, different images.

    The batch is that of all devices, so that pairs do not depend on their number. Norms are root
    mean squares, so that a weight serves every size of image and of z. The two of a pair have the
    same value (with an odd B each image meets two others). A pair counts only if both are unmasked;
    one that agrees in z or in its images has 0 and gradient 0. No gradient flows into z. For a
    conditional generator give both halves of the batch the same labels, or the classes' differences
    are taken for variety.

    Source: the mode-seeking ratio of Mao et al., "Mode Seeking GANs" (CVPR 2019); the pairing, the
    norm and the sign in place of their reciprocal are our reconstruction.

    Args:
      images: `[B, ...]`, any float dtype.
      z: latent vectors, `[B, ...]`.
      where: bool `[B]`.

    Returns:
      float32 `[B]`, at most 0.

    >>> images, z = jnp.array([[0., 0.], [1., 1.]]), jnp.array([[0.], [2.]])
    >>> print(diversity_loss(images, z))
    [-0.5 -0.5]
    """
    if images.ndim < 2 or z.ndim < 2 or len(images) != len(z):
        raise ValueError(f"images {images.shape} and z {z.shape}: must be [B, ...] with one B")
    _check_mask(where, len(images))
    if not (rows := len(images)):
        return jnp.zeros(0)
    images, z = collectives.all_gather(images), collectives.all_gather(z)
    where = None if where is None else collectives.all_gather(where)
    between_images = _distance_to_partner(images, where)
    between_z = jax.lax.stop_gradient(_distance_to_partner(z, where))
    ratio = jnp.where(between_z > 0, between_images / jnp.where(between_z > 0, between_z, 1.0), 0.0)
    both = None if where is None else where & _partners(where)
    return collectives.own_rows(_zero_masked(-ratio, both), rows)


def smoothness_loss(images: Array, *, where: Array | None = None) -> Array:
    """Total variation Σ (|down − here| + |right − here|)/HWC of `[B, H, W, C]`, float32 `[B]`.

    Source: the (anisotropic) total variation of Rudin et al., 1992; as a term of the generator's
    loss it is our reconstruction.

    >>> print(smoothness_loss(jnp.array([[0., 1.], [1., 1.]]).reshape(1, 2, 2, 1)))
    [0.5]
    """
    if images.ndim != 4:
        raise ValueError(f"images: got shape {images.shape}; must be [B, H, W, C]")
    _check_mask(where, len(images))
    images = _masked(images, where)
    down = jnp.abs(images[:, 1:] - images[:, :-1]).sum((1, 2, 3))
    right = jnp.abs(images[:, :, 1:] - images[:, :, :-1]).sum((1, 2, 3))
    return _zero_masked((down + right) / np.prod(images.shape[1:]), where)


def generator_loss(terms: Mapping[str, Array], weights: Mapping[str, float]) -> Array:
    """Weighted sum of named terms.

    Args:
      terms: values per example, all of one shape `[...]`, and scalars, which belong to the batch
        and are added to every example's value, so that the mean over examples is the loss.
      weights: one per term, at least 0. A term of weight 0 is left out, even if it is NaN, and need
        not be in `terms`.

    Returns:
      float32 `[...]`.

    >>> terms = {"one_hot": jnp.array([1., 2.]), "balance": jnp.array(-0.5)}
    >>> print(generator_loss(terms, {"one_hot": 1.0, "balance": 4.0}))
    [-1. 0.]
    """
    shape = jnp.broadcast_shapes(*(jnp.shape(term) for term in terms.values()))
    parts = [
        weights[name] * jnp.broadcast_to(jnp.asarray(term, jnp.float32), shape)
        for name, term in terms.items()
        if weights[name]
    ]
    return sum(parts, jnp.zeros(shape))


def divergence(probs: Array, logits: Array) -> Array:
    """KL(p ‖ softmax(z)) of probabilities `[..., K]` to logits; a certain answer stays certain."""
    return kl_divergence(jnp.log(jnp.maximum(probs, 1e-30)), logits)


def answer_loss(
    logits: Array, answers: Array, kind: str, temperature: float | Array = 1.0
) -> Array:
    """Distance of the student to a teacher's answers that are trained on many times.

    "brier", Σ_k (p_k − a_k)², takes raw answers a: noise leaves its gradient unbiased.
    "cross_entropy" is τ² KL(a^{1/τ} ‖ p^{1/τ}), both scaled to add up to 1, with a brought onto the
    simplex, for answers with little noise. A temperature τ above 1 shows more of what exact answers
    say of unlikely classes (Hinton et al., 2015).

    Args:
      logits: `[B, K]`; p is their softmax.
      answers: `[B, K]`; may be negative and need not sum to 1.
      kind: "brier" or "cross_entropy".
      temperature: τ of "cross_entropy".

    Returns:
      float32 `[B]`.

    >>> print(answer_loss(jnp.zeros((1, 2)), jnp.array([[1., -0.5]]), "brier"))
    [1.25]
    """
    if kind == "brier":
        return jnp.sum(jnp.square(jax.nn.softmax(logits) - answers), -1)
    kept = jnp.maximum(answers, 0.0)
    kept = kept / jnp.maximum(kept.sum(-1, keepdims=True), 1e-6)
    soft = jax.nn.softmax(jnp.log(jnp.maximum(kept, _TINY)) / temperature)
    return temperature**2 * divergence(soft, logits / temperature)


def _partners(x: Array) -> Array:
    """For each of the B entries the one half a batch further on."""
    return jnp.roll(x, -(len(x) // 2), axis=0)


def _distance_to_partner(x: Array, where: Array | None) -> Array:
    """Root mean square difference of [B, ...] to the partners, [B]; gradient 0 where it is 0."""
    x = _masked(x, where).reshape(len(x), -1)
    squared = jnp.mean(jnp.square(x - _partners(x)), axis=-1)
    apart = squared > _TINY
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


def _masked(values: Array, where: Array | None) -> Array:
    """float32 with masked entries replaced by zeros, before anything can turn them into NaN."""
    values = jnp.asarray(values, jnp.float32)
    if where is None:
        return values
    trailing = tuple(range(where.ndim, values.ndim))
    return jnp.where(jnp.expand_dims(where, trailing), values, 0.0)


def _zero_masked(values: Array, where: Array | None) -> Array:
    return values if where is None else jnp.where(where, values, 0.0)


def _check_mask(where: Array | None, batch: int) -> None:
    if where is not None and jnp.shape(where) != (batch,):
        raise ValueError(f"where: got shape {jnp.shape(where)}; must be ({batch},)")
