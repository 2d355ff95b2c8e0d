"""Cross-entropy, KL divergence and the distillation loss: one value per example or token.

All losses here are pure and jit-safe, take any leading axes (`[..., C]` logits, `[...]` labels),
compute in float32 and leave the reduction to the caller. Entries where `where` is False give
exactly 0, with gradient 0, even if they hold NaN.
"""

import functools
import math
import numbers

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

Array = jax.Array


def coefficient(
    name: str,
    value,
    leading: tuple[int, ...],
    where: Array | None,
    *,
    low: float,
    high: float = math.inf,
    above: bool = False,
) -> Array:
    """A loss's hyper-parameter `name` as float32: a scalar, or of the shape `leading` of the loss.

    Masked elements become 1. Python and NumPy scalars must be finite and in [low, high], or above
    `low` if `above`; arrays and traced values are not checked.

    Raises:
      ValueError: a scalar outside the range, or another shape.
    """
    if isinstance(value, numbers.Real):
        number = float(value)
        inside = (low < number if above else low <= number) and number <= high
        if not (inside and math.isfinite(number)):
            bound = f"above {low:g}" if above else f"at least {low:g}"
            bound = f"in [{low:g}, {high:g}]" if high < math.inf else f"finite and {bound}"
            raise ValueError(f"{name}: got {value}; must be {bound}")
    value = jnp.asarray(value, jnp.float32)
    if value.ndim == 0:
        return value
    if value.shape != leading:
        raise ValueError(
            f"{name}: got shape {value.shape}; must be a scalar or one per element, {leading}"
        )
    # A masked element may be NaN, which must not reach a gradient.
    return value if where is None else jnp.where(where, value, 1.0)


def leading_shape(where: Array | None, **logits: Array) -> tuple[int, ...]:
    """The shape `[...]` of a loss and its mask, given logits `[..., C]`.

    Raises:
      ValueError: the named logits differ in shape or have no class axis, or the mask differs.
    """
    shapes = {array.shape for array in logits.values()}
    if len(shapes) > 1 or () in shapes:
        found = " and ".join(f"{name} {array.shape}" for name, array in logits.items())
        raise ValueError(f"{found}: must have one shape, [..., C]")
    leading = shapes.pop()[:-1]
    if where is not None and jnp.shape(where) != leading:
        raise ValueError(f"where: got shape {jnp.shape(where)}; must be {leading}")
    return leading


def kl_divergence(
    logits_p: Array,
    logits_q: Array,
    *,
    temperature: float | Array = 1.0,
    where: Array | None = None,
) -> Array:
    """KL(p ‖ q) of two softmax distributions given as logits; no temperature-squared factor.

    p = softmax(logits_p / temperature), q = softmax(logits_q / temperature). Gradients flow into
    both. The value and both gradients stay finite where probabilities of p underflow to 0 and
    where logits_p is −∞ (a class that the reference excludes); if q excludes a class that p
    allows, the divergence is +∞. They stay accurate where p and q are nearly equal, as at high
    temperatures, where the divergence falls with temperature⁻².

    Args:
      logits_p: reference logits, `[..., C]`, any float dtype.
      logits_q: logits of the same shape.
      temperature: positive scalar, or one per element, `[...]`.
      where: bool `[...]`; False entries give 0.

    Returns:
      float32 `[...]`, in nats.

    Raises:
      ValueError: shapes that do not belong together, or a Python scalar that is not positive.

    >>> kl = kl_divergence(jnp.array([[0., 0.]]), jnp.array([[0., jnp.log(3.)]]))
    >>> print(kl.round(3), kl.dtype)
    [0.144] float32
    """
    leading = leading_shape(where, logits_p=logits_p, logits_q=logits_q)
    temperature = coefficient("temperature", temperature, leading, where, low=0.0, above=True)
    if temperature.ndim:
        temperature = temperature[..., None]
    values = _kl(_masked(logits_p, where), _masked(logits_q, where), temperature)
    return _zero_masked(values, where)


def cross_entropy(logits: Array, labels: Array, *, where: Array | None = None) -> Array:
    """Cross-entropy of integer labels: −log softmax(logits)[label].

    Args:
      logits: `[..., C]`, any float dtype.
      labels: integers `[...]` in [0, C); a label outside gives NaN.
      where: bool `[...]`; False entries give 0.

    Returns:
      float32 `[...]`, in nats.

    Raises:
      ValueError: shapes that do not belong together, or labels that are not integers.

    >>> print(cross_entropy(jnp.array([[0., 0.]]), jnp.array([1])).round(3))
    [0.693]
    """
    leading = leading_shape(where, logits=logits)
    labels = jnp.asarray(labels)
    if labels.shape != leading or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels: got {labels.dtype} {labels.shape}; must be integers {leading}, the leading "
            f"axes of logits {logits.shape}"
        )
    log_probs = jax.nn.log_softmax(_masked(logits, where), axis=-1)
    labels = labels.astype(jnp.int32)  # int8 cannot hold the index that is put for a wrong label
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
    leading = leading_shape(where, student_logits=student_logits, teacher_logits=teacher_logits)
    alpha = coefficient("alpha", alpha, leading, where, low=0.0, high=1.0)
    temperature = coefficient("temperature", temperature, leading, where, low=0.0, above=True)
    divergence = kl_divergence(
        jax.lax.stop_gradient(teacher_logits), student_logits, temperature=temperature, where=where
    )
    hard = cross_entropy(student_logits, labels, where=where)
    return alpha * temperature**2 * divergence + (1.0 - alpha) * hard


def standardized(logits: Array) -> Array:
    """Z-scores over the classes: mean 0 and standard deviation 1, invariant to shift and scale.

    Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024.

    Args:
      logits: `[..., C]`; −∞ excludes a class, which stays excluded and is ignored.

    Returns:
      float32 `[..., C]`; 0 where all logits are equal.
    """
    logits = jnp.asarray(logits, jnp.float32)
    finite = ~jnp.isneginf(logits)
    count = jnp.maximum(finite.sum(-1, keepdims=True), 1)
    known = jnp.where(finite, logits, 0.0)
    centred = jnp.where(finite, known - known.sum(-1, keepdims=True) / count, 0.0)
    variance = jnp.square(centred).sum(-1, keepdims=True) / count
    # Logits that differ by rounding alone count as equal.
    even = variance <= jnp.square(1e-6 * jnp.abs(known).max(-1, keepdims=True))
    scores = jnp.where(even, 0.0, centred / jnp.sqrt(jnp.where(even, 1.0, variance)))
    return jnp.where(finite, scores, -jnp.inf)


@jax.custom_jvp
def _kl(x: Array, y: Array, temperature: Array) -> Array:
    """KL of softmax(x / temperature) and softmax(y / temperature), temperature `[]` or `[..., 1]`.

    With u = (y − x) / temperature, centred so that Σ p u = 0, it is log Σ p eᵘ, which is
    log(1 + Σ p (eᵘ − 1 − u)): nothing cancels, however small u is.
    """
    return _kl_and_slopes(x, y, temperature)[0]


@functools.partial(_kl.defjvp, symbolic_zeros=True)
def _kl_jvp(primals, tangents):
    value, slopes, scaled = _kl_and_slopes(*primals)
    temperature, change = primals[-1], jnp.zeros_like(primals[0])
    *changes, warming = tangents
    for slope, tangent, logits in zip(slopes, changes, scaled, strict=True):
        if not isinstance(tangent, SymbolicZero):  # e.g. a frozen teacher
            change += slope * tangent
        if not isinstance(warming, SymbolicZero):
            finite = jnp.maximum(logits, jnp.finfo(logits.dtype).min)  # −∞ at every temperature
            change -= slope * finite * warming
    return value, jnp.sum(change / temperature, axis=-1)


def _kl_and_slopes(x: Array, y: Array, temperature: Array):
    """The divergence, its derivatives w.r.t. x / temperature and y / temperature, and those two."""
    top_x, top_y = (jnp.max(each, axis=-1, keepdims=True) for each in (x, y))
    scaled_x, scaled_y = (x - top_x) / temperature, (y - top_y) / temperature
    exp_x, exp_y = jnp.exp(scaled_x), jnp.exp(scaled_y)
    sum_x, sum_y = (jnp.sum(each, axis=-1, keepdims=True) for each in (exp_x, exp_y))
    p = exp_x / sum_x
    live = p > 0  # elsewhere the limit of p·u is 0, but the formula gives 0·∞
    between, rest = _subtract(jnp.where(live, y, 0.0), jnp.where(live, x, 0.0))
    between_tops, rest_of_tops = _subtract(top_y, top_x)
    u = ((between - between_tops) + (rest - rest_of_tops)) / temperature
    mean = jnp.sum(p * jnp.where(live, u, 0.0), axis=-1, keepdims=True)
    u = jnp.where(live, u - mean, 0.0)
    plain = jnp.log(sum_y) - jnp.log(sum_x) - mean  # needs no eᵘ, but cancels
    is_near = plain < 10.0
    scale = jnp.exp(jnp.where(is_near, -mean, 0.0)) / sum_x  # p eᵘ = exp_y · scale
    # eᵘ − 1 − u: by its series, where that is as exact as float32.
    is_small = live & (jnp.abs(u) <= 0.5)
    series = 1.0 + u / 8
    for n in range(7, 2, -1):
        series = 1.0 + series * u / n
    excess = 0.5 * u * u * series
    total = jnp.where(is_small, p * excess, exp_y * scale - p * (1.0 + u))
    value = jnp.where(is_near, jnp.log1p(jnp.sum(total, axis=-1, keepdims=True)), plain)
    # q − p is p (eᵘ⁻ᵛ − 1) with the value v.
    ratio = jnp.expm1(-value) + jnp.exp(-value) * (u + excess)
    slope_y = jnp.where(is_small, p * ratio, exp_y / sum_y - p)
    return value[..., 0], (-p * u, slope_y), (scaled_x, scaled_y)


def _subtract(a: Array, b: Array) -> tuple[Array, Array]:
    """a − b as float32 and its rounding error (Knuth's TwoSum); 0 for infinities."""
    difference = a - b
    minus_b = difference - a
    rest = (a - (difference - minus_b)) - (b + minus_b)
    return difference, jnp.where(jnp.isfinite(difference), rest, 0.0)


def _masked(logits: Array, where: Array | None) -> Array:
    """float32 logits with masked rows replaced by zeros, before anything can turn them into NaN."""
    logits = jnp.asarray(logits, jnp.float32)
    return logits if where is None else jnp.where(where[..., None], logits, 0.0)


def _zero_masked(values: Array, where: Array | None) -> Array:
    return values if where is None else jnp.where(where, values, 0.0)
