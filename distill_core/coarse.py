"""A network's answers in k classes and a tail, small enough to be stored for every token.

Renormalised, the k likeliest classes would be a biased target: a student would learn that the other
classes are impossible. So the mass of these, the tail, is kept, too, and a few classes drawn from
it: the tail's mass on them is the teacher's target in expectation. Our reconstruction.
"""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array
TEMPERATURES = (1.0, 2.0, 4.0)  # at which the tail is known; see `tail_at`
DRAWS = 16  # classes drawn from the tail


def answers(
    logits: Array, k: int, places: Array, heats: tuple[float, ...] = TEMPERATURES
) -> dict[str, Array]:
    """The k likeliest classes of logits `[T, V]`, and what there is to know of the others.

    log Σ exp(log p/T) over the others is a sum over these classes, not what the k leave of 1, which
    would lose the digits of a small tail. Of them 16 are drawn with probabilities ∝ p, at equal
    distances of the cumulated p from `places` [T], uniform in [0, 1): a class of probability p in a
    tail of mass m is drawn 16 p/m times in expectation.

    Returns:
      {"classes": int32 `[T, k]`, "log_probs": float32 `[T, k]`, "tails": float32 `[T, H + 1]`: a
      sum for each of the temperatures `heats`, and the mean of log p over the tail, which the value
      of a divergence takes; "drawn": int32 `[T, 16]`}.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    best, classes = jax.lax.top_k(log_probs, k)
    rest = jnp.put_along_axis(log_probs, classes, -jnp.inf, axis=-1, inplace=False)
    tails = [jax.nn.logsumexp(rest / heat, axis=-1) for heat in heats]
    # Relative to the tail, whose mass may be below what float32 adds up beside 1.
    total = jax.nn.logsumexp(rest, axis=-1, keepdims=True)
    share = jnp.exp(rest - jnp.where(jnp.isneginf(total), 0.0, total))
    mean = jnp.sum(share * jnp.where(share > 0, rest, 0.0), axis=-1)
    sums = jnp.cumsum(share, axis=-1)
    at = (places[:, None] + jnp.arange(DRAWS)[None]) / DRAWS * sums[:, -1:]
    at = jnp.minimum(at, jnp.nextafter(sums[:, -1:], 0.0))
    drawn = jax.vmap(functools.partial(jnp.searchsorted, side="right"))(sums, at)
    drawn = jnp.minimum(drawn, logits.shape[-1] - 1)  # without a tail
    tail = jnp.stack([*tails, mean], axis=-1)
    return {"classes": classes, "log_probs": best, "tails": tail, "drawn": drawn}


def tail_at(tails: Array, temperatures: Array, classes: int) -> Array:
    """log Σ exp(log p/T) over the classes outside the cache, from its values at `TEMPERATURES`.

    Cubic in 1/T through these values and log `classes`, its limit as T grows: exact at T of 1, 2
    and 4. Below 1 it would extrapolate.

    Args:
      tails: `[..., 3]`.
      temperatures: T ≥ 1, `[...]`.
      classes: how many there are, V − k; of none the tail is −∞.
    """
    if not classes:
        return jnp.full(tails.shape[:-1], -jnp.inf)
    places = [0.0, *(1.0 / t for t in TEMPERATURES)]
    limit = jnp.full(tails.shape[:-1], jnp.log(float(classes)))
    values = [limit, *jnp.moveaxis(tails, -1, 0)]
    at = 1.0 / temperatures
    found = jnp.zeros(tails.shape[:-1])
    for i, place in enumerate(places):  # Lagrange's form
        others = [other for j, other in enumerate(places) if j != i]
        weight = functools.reduce(lambda w, o: w * (at - o) / (place - o), others, 1.0)
        found += weight * values[i]
    return jnp.where(jnp.isneginf(tails[..., 0]), -jnp.inf, found)
