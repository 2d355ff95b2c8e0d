"""What is released of a private teacher: bounded gradients and answers, with Gaussian noise.

The L2 sensitivity Δ of what is released, when one teacher changes in any way at all and student,
queries and masks are public; C is `norm`, std the noise's standard deviation in a coordinate:

| released | Δ | std / noise_multiplier |
|---|---|---|
| `noisy_sum` of `bounded_gradient_sum`, B queries | 2BC | C |
| `privatize_logit_gradients`, a query | 2C; clipped: min(2C, √2) | C |
| `private_answers` of M teachers, a query | √2/M | √2/M |
| `ensemble_gradients`, each bounded, a query | 2C/M; clipped: min(2C, √2)/M | C |
| `ensemble_gradients`, the mean clipped, a query | min(2C, √2/M) | C |

One release of ratio std/Δ is a Gaussian mechanism, and all queries of all steps compose: they touch
the same teachers, so that sampling amplifies nothing. A record of the training set may change its
teacher everywhere, so these are the figures for records; an ensemble needs its teachers on fixed
disjoint partitions. If one *query* is replaced instead and the teacher is the same,
`bounded_gradient_sum` has Δ = 2C: that protects no record.

Rounding is within a factor 1 + `SLACK` of Δ, whatever a teacher returns. The noise is float32, from
a counter-based generator that is not cryptographic; the answers that `dpdfd.train` buys from an
ensemble have exact discrete noise instead (`exact_noise`). The formulas are our reconstruction of
Liu et al., "Model Conversion via Differentially Private Data-Free Distillation", IJCAI 2023.
"""

import math

import jax
import jax.numpy as jnp

from distill_core.losses import coefficient, leading_shape
from distill_core.privacy.gaussian import standard_normal
from distill_core.privacy.per_example import (
    SLACK,
    bounded_gradient_sum,
    bounding_weights,
    check_mode,
    noisy_sum,
)
from distill_core.runtime import collectives

Array = jax.Array

__all__ = [
    "SLACK",
    "bounded_gradient_sum",
    "ensemble_gradients",
    "noisy_sum",
    "private_answers",
    "privatize_logit_gradients",
]

ORDERS = ("bound_then_mean", "mean_then_bound")


def privatize_logit_gradients(
    key: Array,
    student_logits: Array,
    teacher_probs: Array,
    *,
    norm: float | Array,
    noise_multiplier: float | Array,
    mode: str,
    where: Array | None = None,
) -> Array:
    """The gradient by the student's logits of CE(teacher, student), bounded and noised per query.

    g_i = p_S − p_T, normalised or clipped to L2 norm C (`norm`), plus N(0, (noise_multiplier·C)²)
    in each of the K coordinates. The step's gradient is then one product with the Jacobian:

        logits, pull_back = jax.vjp(lambda params: student(params, x), params)
        (grads,) = pull_back(privatize_logit_gradients(key, logits, probs, …) / B)

    Formal guarantee: every query is a Gaussian mechanism of ratio std/Δ with Δ = 2C, clipped
    min(2C, √2), if one teacher changes in any way at all; B queries are B of them. It assumes that
    logits, queries and mask are public: made of nothing but earlier releases. Post-processing of
    the result is free.

    Rows of the teacher are brought onto the simplex first (see `private_answers`); a row that
    cannot be, and one equal to the student's, gives gradient 0, with noise.

    Args:
      key: typed key, used for this release and no other. Where a mapped axis splits the queries
        over devices, all give the same key: a row's noise is that of its place in the whole batch.
      student_logits: `[B, K]`, any float dtype; further leading axes are further queries.
      teacher_probs: probabilities or one-hot votes of the same shape (not logits).
      norm: C > 0, a scalar.
      noise_multiplier: std/C ≥ 0, a scalar; 0 gives no privacy.
      mode: "normalize" or "clip".
      where: bool `[B]`; False rows are exactly 0 and hold no noise.

    Returns:
      float32 `[B, K]`, with no gradient.

    Raises:
      ValueError: unknown mode, shapes that do not belong together, a Python scalar outside its
        range.

    >>> logits, probs = jnp.zeros((1, 2)), jnp.array([[0.9, 0.1]])
    >>> key, settings = jax.random.key(0), {"norm": 1.0, "noise_multiplier": 0.0}
    >>> print(privatize_logit_gradients(key, logits, probs, mode="clip", **settings).round(3))
    [[-0.4 0.4]]
    """
    check_mode(mode)
    leading_shape(where, student_logits=student_logits, teacher_probs=teacher_probs)
    norm, multiplier = _scales(norm, noise_multiplier)
    probs, valid = on_simplex(jax.lax.stop_gradient(teacher_probs))
    live = valid if where is None else valid & where
    grads = _bound(_student_probs(student_logits) - probs, live, norm, mode)
    return _released(key, grads, multiplier * norm, where)


def ensemble_gradients(
    key: Array,
    student_logits: Array,
    teacher_probs: Array,
    *,
    norm: float | Array,
    noise_multiplier: float | Array,
    mode: str,
    order: str = "bound_then_mean",
    where: Array | None = None,
) -> Array:
    """`privatize_logit_gradients` of M teachers: the mean of their gradients, with noise.

    The noise has standard deviation noise_multiplier·C in each coordinate, as with one teacher:
    what M teachers gain is in Δ. When one of them changes in any way at all, Δ of a query is

    | order | "normalize" | "clip" |
    |---|---|---|
    | "bound_then_mean" | 2C/M | min(2C, √2)/M |
    | "mean_then_bound" | refused | min(2C, √2/M) |

    Normalising the mean is refused: where it is near 0 one teacher can turn it round, so that
    Δ = 2C whatever M is.

    Formal guarantee: as in `privatize_logit_gradients`, for a record, if it reaches one teacher
    only: fixed disjoint partitions, cut by nothing but an index.


    Args:
      key: typed key, as in `privatize_logit_gradients`.
      student_logits: `[B, K]`, any float dtype.
      teacher_probs: `[M, B, K]`. A row that cannot be brought onto the simplex counts as gradient
        0 where each is bounded, and as the uniform vector in a mean of probabilities.
      norm: C > 0, a scalar.
      noise_multiplier: std/C ≥ 0, a scalar; 0 gives no privacy.
      mode: "normalize" or "clip".
      order: whether every teacher's gradient is bounded and the mean taken, or the other way round.
      where: bool `[B]`; False rows are exactly 0 and hold no noise.

    Returns:
      float32 `[B, K]`, with no gradient.

    Raises:
      ValueError: an unknown mode or order, "normalize" after the mean, shapes that do not belong
        together, a Python scalar outside its range.
    """
    check_mode(mode)
    if order not in ORDERS:
        raise ValueError(f"order: got {order!r}; must be one of {', '.join(ORDERS)}")
    if (mode, order) == ("normalize", "mean_then_bound"):
        raise ValueError(
            "mode: got 'normalize' with order 'mean_then_bound', of sensitivity 2·norm for however "
            "many teachers: take mode='clip' or order='bound_then_mean'"
        )
    count_teachers(teacher_probs)
    leading_shape(where, student_logits=student_logits, each_teacher=teacher_probs[0])
    norm, multiplier = _scales(norm, noise_multiplier)
    probs, valid = on_simplex(jax.lax.stop_gradient(teacher_probs))  # [M, B, K], [M, B]
    student = _student_probs(student_logits)
    if order == "bound_then_mean":
        live = valid if where is None else valid & where[None]
        grads = jnp.mean(_bound(student[None] - probs, live, norm, mode), axis=0)
    else:
        live = jnp.ones(student.shape[:-1], bool) if where is None else where
        grads = _bound(student - jnp.mean(probs, axis=0), live, norm, mode)
    return _released(key, grads, multiplier * norm, where)


def private_answers(
    key: Array, teacher_outputs: Array, *, noise_multiplier: float | Array
) -> Array:
    """The mean of M teachers' probabilities or votes for each query, with noise.

    The noise has standard deviation noise_multiplier·√2/M in each coordinate; Δ = √2/M, the
    diameter of the simplex over M, so that std/Δ = noise_multiplier.

    Formal guarantee: every query is a Gaussian mechanism of ratio `noise_multiplier` for a record,
    if a record reaches one teacher only: fixed disjoint partitions, cut by nothing but an index. It
    holds whatever that teacher returns: each row is brought onto the simplex by cutting it at 0 and
    dividing by its sum, which leaves a distribution as it is; a row with an entry that is not
    finite, or nothing above 0, becomes the uniform vector. The queries are public.

    It holds up to what float32 noise lacks, and for a key that nobody learns: the last bits of two
    published answers can exclude a neighbour. `dpdfd.train` buys by `exact_noise.noisy_answers`,
    where it holds exactly.

    The answers are raw: they may be negative and need not sum to 1. Post-processing, such as
    training on them again and again, is free.

    Source: our reconstruction, after Papernot et al., "Scalable Private Learning with PATE", 2018,
    which releases the noisy argmax of votes.

    Args:
      key: typed key, used for this release and no other: a new one for every batch of queries.
      teacher_outputs: `[M, B, K]`, probabilities or one-hot votes, any real dtype (not logits).
      noise_multiplier: std/Δ ≥ 0, a scalar; 0 gives no privacy.

    Returns:
      float32 `[B, K]`, with no gradient.

    Raises:
      ValueError: another number of axes, or a Python scalar outside its range.

    >>> votes = jnp.array([[[1., 0.]], [[1., 0.]], [[0., 1.]], [[jnp.nan, 0.]]])
    >>> print(private_answers(jax.random.key(0), votes, noise_multiplier=0.0))
    [[0.625 0.375]]
    """
    teachers = count_teachers(teacher_outputs)
    multiplier = coefficient("noise_multiplier", noise_multiplier, (), None, low=0.0)
    probs, _ = on_simplex(jax.lax.stop_gradient(teacher_outputs))
    return _released(key, jnp.mean(probs, axis=0), multiplier * (math.sqrt(2.0) / teachers), None)


def _scales(norm, noise_multiplier) -> tuple[Array, Array]:
    norm = coefficient("norm", norm, (), None, low=0.0, above=True)
    return norm, coefficient("noise_multiplier", noise_multiplier, (), None, low=0.0)


def count_teachers(outputs: Array) -> int:
    """M of `[M, B, K]`; raises ValueError on another number of axes."""
    if jnp.ndim(outputs) != 3 or 0 in jnp.shape(outputs):
        raise ValueError(
            f"teacher_outputs: got shape {jnp.shape(outputs)}; must be [M, B, K], none 0"
        )
    return jnp.shape(outputs)[0]


def _student_probs(logits: Array) -> Array:
    return jax.nn.softmax(jax.lax.stop_gradient(logits).astype(jnp.float32), axis=-1)


def on_simplex(rows: Array) -> tuple[Array, Array]:
    """(distributions float32 `[..., K]`, which rows could be made one, bool `[...]`)."""
    rows = jnp.asarray(rows, jnp.float32)
    # 1e±30: inside, the sum and its reciprocal stay within float32.
    positive = jnp.clip(rows, 0.0, 1e30)
    total = jnp.sum(positive, axis=-1, keepdims=True)
    valid = jnp.all(jnp.isfinite(rows), axis=-1, keepdims=True) & (total > 1e-30)
    distribution = positive / jnp.where(valid, total, 1.0)
    return jnp.where(valid, distribution, 1.0 / rows.shape[-1]), valid[..., 0]


def _bound(grads: Array, live: Array, norm: Array, mode: str) -> Array:
    """Rows of `[..., K]` normalised or clipped, 0 where not live or not finite."""
    # So that no compiler computes them twice, once for the norm and once for the product: where
    # teacher and student nearly agree, the two would differ by any factor.
    grads = jax.lax.optimization_barrier(grads)
    squares = jnp.sum(jnp.square(grads), axis=-1)
    weights = bounding_weights(squares, live, norm=norm, mode=mode)[..., None]
    return jnp.where(weights > 0, weights * grads, 0.0)


def _released(key: Array, values: Array, std: Array, where: Array | None) -> Array:
    """Values `[B, ...]` plus noise, which is that of the rows' places in the global batch."""
    rows = values.shape[0]
    whole = standard_normal(key, (rows * collectives.num_devices(), *values.shape[1:]))
    noise = collectives.own_rows(whole, rows)
    noisy = values + std * noise
    return noisy if where is None else jnp.where(where[..., None], noisy, 0.0)
