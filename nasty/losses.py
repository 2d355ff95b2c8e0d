"""The nasty teacher's loss: adversarial KL maximisation."""

import jax

from distill_core.losses import coefficient, cross_entropy, kl_divergence, leading_shape

Array = jax.Array


def nasty_loss(
    teacher_logits: Array,
    adversary_logits: Array,
    labels: Array,
    *,
    temperature,
    omega,
    where: Array | None = None,
) -> Array:
    """Self-undermining distillation: CE(teacher, labels) − ω τ² KL(teacher ‖ adversary).

    The trained teacher is the *first* argument of the KL, the frozen adversary (a normally trained
    network) the second and gets no gradient; both are softened by τ. With ω = 0 this is
    cross-entropy. The loss is unbounded below: a large ω diverges.

    Source: Ma et al., "Undistillable", ICLR 2021, as in its reference code.

    Args:
      teacher_logits: logits of the network in training, `[..., C]`.
      adversary_logits: `[..., C]`.
      labels: integers `[...]` in [0, C).
      temperature: τ > 0, a scalar or `[...]`.
      omega: ω ≥ 0, a scalar or `[...]`.
      where: bool `[...]`; False entries give exactly 0.

    Returns:
      float32 `[...]`, one value per example.

    Raises:
      ValueError: shapes that do not belong together, or a Python scalar outside its range.

    >>> import jax.numpy as jnp
    >>> logits = jnp.array([[2., 0., 1.]])
    >>> print(nasty_loss(logits, 0 * logits, jnp.array([0]), temperature=4., omega=0.04).round(3))
    [0.394]
    """
    leading = leading_shape(where, teacher_logits=teacher_logits, adversary_logits=adversary_logits)
    omega = coefficient("omega", omega, leading, where, low=0.0)
    temperature = coefficient("temperature", temperature, leading, where, low=0.0, above=True)
    hard = cross_entropy(teacher_logits, labels, where=where)
    divergence = kl_divergence(
        teacher_logits,
        jax.lax.stop_gradient(adversary_logits),
        temperature=temperature,
        where=where,
    )
    return hard - omega * temperature**2 * divergence
