"""The stingy teacher: a defence at release time, which publishes few logits of each answer."""

import jax
import jax.numpy as jnp

from distill_core.config import InputError

Array = jax.Array


def check_top_k(top_k: int | None, num_classes: int):
    """Refuses a number of released logits that the classes do not have; None releases all.

    Raises:
      InputError: field `top_k`.
    """
    if top_k is not None and not 1 <= top_k <= num_classes:
        allowed = f"must be an integer in [1, {num_classes}], the number of classes"
        raise InputError("top_k", top_k, allowed)


def release_top_k(logits: Array, top_k: int | None) -> Array:
    """The `top_k` largest logits of each answer; the rest are −∞, which excludes those classes.

    A student learns from it by any loss that lets its reference exclude classes, such as
    `distill_core.distillation_loss`: the softmax of what is left, at any temperature, sums to 1
    over the released classes, and the student is pushed away from all others. With all classes
    released this is the identity. The teacher gets no gradient. Of equal logits the first is
    released; exactly `top_k` always are.

    Source: Ma et al., "Stingy Teacher: Sparse Logits Suffice to Fail Knowledge Distillation", 2021,
    with k a tenth of the classes on CIFAR-100 and a fifth on CIFAR-10. We read "sparse logits" as
    excluded classes, not as logits of 0, which would leave them probability.

    logits `[..., C]` of any float dtype to float32 `[..., C]`. Raises InputError where top_k is not
    in [1, C]; None releases all.

    >>> print(release_top_k(jnp.array([1., 5., 3., 0.]), 2))
    [-inf   5.   3. -inf]
    """
    logits = jax.lax.stop_gradient(jnp.asarray(logits, jnp.float32))
    check_top_k(top_k, logits.shape[-1])
    if top_k is None:
        return logits
    _, kept = jax.lax.top_k(logits, top_k)  # [..., k]
    released = jnp.any(jax.nn.one_hot(kept, logits.shape[-1], dtype=bool), axis=-2)
    return jnp.where(released, logits, -jnp.inf)
