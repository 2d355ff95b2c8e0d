"""CMIM: a teacher whose answers to the images of one class are all alike, so that they tell little.

What a student can learn from a teacher beyond the labels is how its answers differ from image to
image of one class. This loss takes that away, at several temperatures at once.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from distill_core.losses import coefficient, cross_entropy, kl_divergence, leading_shape
from distill_core.runtime import collectives

Array = jax.Array
# How the centroids are averaged over steps; ours. On digits slower ones (0.99, one seed) kept the
# logits small and the answers at temperature 20 more alike, and yet students lost nothing.
DECAY = 0.9
# A class that an answer has never held has probability 0 in a centroid after many updates; the
# divergence from there would be infinite.
_LEAST = jnp.finfo(jnp.float32).tiny.item()


def uniform_centroids(num_temperatures: int, num_classes: int) -> Array:
    """Centroids before the first update, float32 [T, C, C]: 1/C everywhere."""
    return jnp.full((num_temperatures, num_classes, num_classes), 1 / num_classes, jnp.float32)


def cmim_loss(
    logits: Array,
    labels: Array,
    centroids: Array,
    *,
    weight,
    temperatures: Sequence[float] | Array,
    where: Array | None = None,
) -> Array:
    """CE(z, y) + weight · mean over the temperatures t of KL(softmax(z/t) ‖ centroid_t[y]).

    The mean over all images of the divergence from the mean answer of their class is the
    conditional mutual information I(image; answer | label). The centroids get no gradient. With
    weight 0 this is cross-entropy. There is no t² factor.

    Source: Ye et al., "Towards Undistillable Models by Minimizing Conditional Mutual Information",
    2025, which minimises cross-entropy and the conditional mutual information at all temperatures
    jointly. Ours are: the mean over a few fixed temperatures, with one weight for all, and
    centroids that are moving averages (see `update_centroids`).

    Args:
      logits, labels, where: as `cross_entropy` has them, and the result.
      centroids: probabilities [T, C, C]; `[i, y]` is the mean of softmax(z / temperatures[i]) over
        images of class y.
      weight: of the divergences, at least 0, a scalar or `[...]`.
      temperatures: T scalars above 0.

    >>> logits, labels = jnp.array([[0., 0.], [4., 0.]]), jnp.array([0, 0])
    >>> uniform = uniform_centroids(1, 2)
    >>> print(cmim_loss(logits, labels, uniform, weight=1., temperatures=(4.,)).round(3))
    [0.693 0.129]
    """
    leading = leading_shape(where, logits=logits)
    weight = coefficient("weight", weight, leading, where, low=0.0)
    softened = _softening(centroids, temperatures, logits.shape[-1])
    hard = cross_entropy(logits, labels, where=where)  # checks the labels, too
    log_centroids = jnp.log(jnp.maximum(jax.lax.stop_gradient(centroids), _LEAST))
    divergences = [
        # Times t, which kl_divergence divides by: the second distribution is the centroid itself.
        kl_divergence(
            logits, t * jnp.take(of_class, labels, axis=0, mode="clip"), temperature=t, where=where
        )
        for t, of_class in zip(softened, log_centroids, strict=True)
    ]
    return hard + weight * (sum(divergences[1:], divergences[0]) / len(divergences))


def update_centroids(
    centroids: Array,
    logits: Array,
    labels: Array,
    *,
    temperatures: Sequence[float] | Array,
    decay,
) -> Array:
    """decay · centroid + (1 − decay) · the class's mean answer in the batch of all devices.

    A class that is not in the batch keeps its centroids as they were. They are moving averages
    because a batch holds few images of a class: with 100 classes about one, and an image is its
    own mean, so that its divergence from it, and with it the loss, would be 0 whatever the answer.

    Source: our reconstruction; the paper's estimate of the class means may be another.

    Arguments as in `cmim_loss`; `decay` is a scalar in [0, 1], labels outside [0, C) do not count
    and logits get no gradient. Returns float32 [T, C, C], equal on all devices.
    """
    num_classes = logits.shape[-1]
    decay = jnp.float32(decay)  # so that 1 − decay is computed in float32
    softened = _softening(centroids, temperatures, num_classes)
    logits = jax.lax.stop_gradient(jnp.asarray(logits, jnp.float32))
    members = jax.nn.one_hot(labels, num_classes)  # [..., C]
    answers = jnp.stack([jax.nn.softmax(logits / t, axis=-1) for t in softened])  # [T, ..., C]
    # A sum by a product, and not by scattering, is the same in every run.
    sums = jnp.einsum("...y,t...c->tyc", members, answers, precision="highest")
    counts = jnp.sum(members, axis=tuple(range(members.ndim - 1)))  # [C]
    sums, counts = collectives.all_sum((sums, counts))
    counts = counts[None, :, None]
    means = sums / jnp.maximum(counts, 1.0)
    return jnp.where(counts > 0, decay * centroids + (1.0 - decay) * means, centroids)


def _softening(centroids: Array, temperatures, num_classes: int) -> list[Array]:
    """The temperatures one by one, if there is a centroid of every class for each."""
    found = [coefficient("temperatures", t, (), None, low=0.0, above=True) for t in temperatures]
    needed = (len(found), num_classes, num_classes)
    if not found or jnp.shape(centroids) != needed:
        raise ValueError(
            f"centroids: got shape {jnp.shape(centroids)}; must be {needed}, (T, C, C) for T ≥ 1 "
            "temperatures"
        )
    return found
