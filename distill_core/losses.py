"""Cross-entropy, KL divergence and the distillation loss: one value per example or token.

All losses here are pure and jit-safe, take any leading axes (`[..., C]` logits, `[...]` labels),
compute in float32 and leave the reduction to the caller. Entries where `where` is False give
exactly 0, with gradient 0, even if they hold NaN.
"""

import numbers

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def check_range(name: str, value: object, low: float, high: float, *, open_low: bool = False):
    """Raises ValueError if a Python or NumPy scalar lies outside [low, high]; traced values pass."""
    if not isinstance(value, numbers.Real):
        return
    inside = (low < value if open_low else low <= value) and value <= high
    if not (inside and np.isfinite(float(value))):
        bracket = "(" if open_low else "["
        raise ValueError(f"{name}: got {value}; must be in {bracket}{low}, {high}]")


def kl_divergence(
    logits_p: Array, logits_q: Array, *, temperature=1.0, where: Array | None = None
) -> Array:
    """KL(p ‖ q) of two softmax distributions given as logits; no temperature-squared factor.

    p = softmax(logits_p / temperature), q = softmax(logits_q / temperature). Gradients flow into
    both. The value and both gradients stay finite where probabilities of p underflow to 0 and
    where logits_p is −∞ (a class that the reference excludes); where q excludes a class that p
    allows, the divergence is +∞.

    Args:
      logits_p: reference logits, `[..., C]`, any float dtype.
      logits_q: logits of the same shape.
      temperature: positive scalar, or one per element, `[...]`.
      where: bool `[...]`; False entries give 0.

    Returns:
      float32 `[...]`, in nats.

    Raises:
      ValueError: shapes differ, or a Python-scalar temperature is not positive.

    >>> kl = kl_divergence(jnp.array([[0., 0.]]), jnp.array([[0., jnp.log(3.)]]))
    >>> print(kl.round(3), kl.dtype)
    [0.144] float32
    """
    _check_shapes(logits_p, "logits_p", logits_q, "logits_q")
    check_range("temperature", temperature, 0.0, float("inf"), open_low=True)
    log_p = jax.nn.log_softmax(_cool(_masked(logits_p, where), temperature, where), axis=-1)
    log_q = jax.nn.log_softmax(_cool(_masked(logits_q, where), temperature, where), axis=-1)
    p = jnp.exp(log_p)
    live = p > 0  # elsewhere the limit of p·(log p − log q) is 0, but the formula gives 0·∞
    log_ratio = jnp.where(live, jnp.where(live, log_p, 0.0) - jnp.where(live, log_q, 0.0), 0.0)
    return _zero_masked(jnp.sum(p * log_ratio, axis=-1), where)


def cross_entropy(logits: Array, labels: Array, *, where: Array | None = None) -> Array:
    """Cross-entropy of integer labels: −log softmax(logits)[label].

    Args:
      logits: `[..., C]`, any float dtype.
      labels: integers `[...]` in [0, C); a label outside gives NaN.
      where: bool `[...]`; False entries give 0.

    Returns:
      float32 `[...]`, in nats.

    Raises:
      ValueError: the shapes do not belong together.

    >>> print(cross_entropy(jnp.array([[0., 0.]]), jnp.array([1])).round(3))
    [0.693]
    """
    _check_labels(logits, labels)
    log_probs = jax.nn.log_softmax(_masked(logits, where), axis=-1)
    labels = labels if where is None else jnp.where(where, labels, 0)
    # 'fill' makes a label that is too large NaN; negative ones would wrap around, so move them out.
    index = jnp.where(labels < 0, logits.shape[-1], labels)[..., None]
    picked = jnp.take_along_axis(log_probs, index, axis=-1, mode="fill", fill_value=jnp.nan)
    return _zero_masked(-picked[..., 0], where)


def distillation_loss(
    student_logits: Array,
    teacher_logits: Array,
    labels: Array,
    *,
    temperature,
    alpha,
    where: Array | None = None,
) -> Array:
    """Knowledge distillation: α τ² KL(teacher ‖ student) + (1 − α) CE(student, labels).

    Both networks are softened by the same temperature τ (Hinton et al., 2015). The teacher gets no
    gradient and may exclude classes with −∞.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., C]`.
      labels: integers `[...]` in [0, C).
      temperature: τ > 0, a scalar or `[...]`.
      alpha: weight of the distillation term in [0, 1], a scalar or `[...]`.
      where: bool `[...]`; False entries give 0.

    Returns:
      float32 `[...]`.

    Raises:
      ValueError: shapes that do not belong together, or a Python scalar outside its range.
    """
    check_range("alpha", alpha, 0.0, 1.0)
    divergence = kl_divergence(
        jax.lax.stop_gradient(teacher_logits), student_logits, temperature=temperature, where=where
    )
    hard = cross_entropy(student_logits, labels, where=where)
    alpha = _as_float32(alpha)
    soft_weight = alpha * _as_float32(temperature) ** 2
    return _zero_masked(soft_weight * divergence + (1.0 - alpha) * hard, where)


def _as_float32(value) -> Array:
    return jnp.asarray(value, jnp.float32)


def _masked(logits: Array, where: Array | None) -> Array:
    """float32 logits with masked rows replaced by zeros, before anything can turn them into NaN."""
    logits = _as_float32(logits)
    return logits if where is None else jnp.where(where[..., None], logits, 0.0)


def _zero_masked(values: Array, where: Array | None) -> Array:
    return values if where is None else jnp.where(where, values, 0.0)


def _cool(logits: Array, temperature, where: Array | None) -> Array:
    temperature = _as_float32(temperature)
    if temperature.ndim == 0:
        return logits / temperature
    if where is not None:
        temperature = jnp.where(where, temperature, 1.0)
    return logits / temperature[..., None]


def _check_shapes(a: Array, name_a: str, b: Array, name_b: str):
    if a.shape != b.shape or a.ndim < 1:
        raise ValueError(
            f"{name_a} {tuple(a.shape)} and {name_b} {tuple(b.shape)} must have one shape [..., C]"
        )


def _check_labels(logits: Array, labels: Array):
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels {tuple(labels.shape)} must have the leading axes of logits "
            f"{tuple(logits.shape)}"
        )
