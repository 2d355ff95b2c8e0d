"""HTC: the attacker softens the teacher alone, by a high temperature."""

import jax
import jax.numpy as jnp

from distill_core.losses import coefficient, cross_entropy, kl_divergence, leading_shape

Array = jax.Array


def htc_loss(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array,
    *,
    temperature,
    alpha,
    multiplier=1.0,
    where: Array | None = None,
) -> Array:
    """α m KL(softmax(teacher / τ) ‖ softmax(student)) + (1 − α) CE(student, labels).

    Unlike in plain distillation the student keeps temperature 1 and there is no τ²: a high τ
    (50 to 70) flattens a nasty teacher's wrong peaks, which the student then no longer copies. The
    teacher gets no gradient and may exclude classes with −∞.

    Source: Jandial et al., "Distilling the Undistillable: Learning from a Nasty Teacher", ECCV
    2022, as we read it: accounts of it differ on τ² and on what `multiplier` is, so that it is an
    argument here, by default 1.

    Arguments, result and errors are those of `distillation_loss`, with m ≥ 0 a scalar or `[...]`.

    >>> student, teacher = jnp.array([[0., 0.]]), jnp.array([[0., 50 * jnp.log(3.)]])
    >>> labels = jnp.array([0])
    >>> print(htc_loss(student, teacher, labels, temperature=50., alpha=1.).round(3))
    [0.131]
    """
    leading = leading_shape(where, student_logits=student_logits, teacher_logits=teacher_logits)
    alpha = coefficient("alpha", alpha, leading, where, low=0.0, high=1.0)
    multiplier = coefficient("multiplier", multiplier, leading, where, low=0.0)
    temperature = coefficient("temperature", temperature, leading, where, low=0.0, above=True)
    if temperature.ndim:
        temperature = temperature[..., None]
    softened = jax.lax.stop_gradient(jnp.asarray(teacher_logits, jnp.float32) / temperature)
    divergence = kl_divergence(softened, student_logits, where=where)
    hard = cross_entropy(student_logits, labels, where=where)
    return alpha * multiplier * divergence + (1.0 - alpha) * hard
