"""Other ways to form a target: anchored to a public reference, or mixed with it.

All of them are our reconstruction, and all are plain distillation where the score is 0. A reference
that is better than the teacher flatters `anchored_targets` and `reference_mix`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distill_core.losses import coefficient
from swingdistill.losses import heat

Array = jax.Array


def anchored_targets(
    key: Array | None,
    teacher_logits: Array,
    reference_logits: Array,
    temperatures: Array,
    *,
    t_min,
    noise_scale,
    clip,
    noise_ids: Array | None,
    normal: Callable[[Array, tuple[int, ...]], Array] = jax.random.normal,
) -> Array:
    """Heats towards a public reference: log_softmax(z_ref/T_min + (z_T − z_ref)/T_t + η_t).

    A private place gets what the reference finds plausible there, instead of a flat target. Where
    `noise_scale` is above 0 the difference z_T − z_ref, which is all that depends on the teacher,
    is centred and clipped as in `soft_targets`; where it is 0 and T_t = T_min the target is exactly
    log_softmax(z_T/T_min). Elsewhere a class that either network excludes with −∞ is excluded.

    Source: our reconstruction.

    Args:
      key, teacher_logits, temperatures, noise_scale, clip, noise_ids, normal: as in `soft_targets`.
      reference_logits: `[..., V]`, of a network that never saw the private text; no gradient.
      t_min: T_min > 0, a scalar.

    Returns:
      Log-probabilities, float32 `[..., V]`.

    Raises:
      ValueError: as in `soft_targets`.
    """
    teacher, reference = _pair(teacher_logits, reference_logits)
    leading = teacher.shape[:-1]
    t_min = coefficient("t_min", t_min, (), None, low=0.0, above=True)
    excluded = jnp.isneginf(teacher) | jnp.isneginf(reference)
    anchor = jnp.where(excluded, 0.0, reference)
    difference = jnp.where(excluded, -jnp.inf, teacher - anchor)
    noise = (noise_scale, clip, noise_ids, normal)
    heated = anchor / t_min + heat(key, difference, temperatures, *noise)
    # The sum is z_T/T_min there too, but for rounding and for what the reference excludes.
    untouched = (jnp.asarray(temperatures) <= t_min) & (jnp.asarray(noise_scale) <= 0)
    untouched = jnp.broadcast_to(untouched, leading)[..., None]
    logits = jnp.where(untouched, teacher / t_min, heated)
    return jax.lax.stop_gradient(jax.nn.log_softmax(logits, axis=-1))


def reference_mix(
    target_log_probs: Array,
    reference_logits: Array,
    privacy_scores: Array,
    *,
    teacher_weight,
    temperature,
) -> Array:
    """Mixes targets with a public reference: log(λ_t p + (1 − λ_t) p_ref), λ_t = 1 − s(1 − λ).

    Source: our reconstruction.

    Args:
      target_log_probs: `[..., V]`, from `soft_targets`; exp of it is p.
      reference_logits: `[..., V]`, softened by `temperature` to p_ref.
      privacy_scores: s in [0, 1], a scalar or `[...]`: at 0 the target stays as it is.
      teacher_weight: λ in [0, 1], what is left of the target at s = 1.
      temperature: T_min > 0, a scalar.

    Returns:
      Log-probabilities, float32 `[..., V]`; no gradient.

    Raises:
      ValueError: shapes that do not belong together, or a Python scalar outside its range.
    """
    target, reference = _pair(target_log_probs, reference_logits)
    leading = target.shape[:-1]
    scores = coefficient("privacy_scores", privacy_scores, leading, None, low=0.0, high=1.0)
    kept = coefficient("teacher_weight", teacher_weight, (), None, low=0.0, high=1.0)
    t_min = coefficient("temperature", temperature, (), None, low=0.0, above=True)
    given_up = jnp.broadcast_to(scores * (1.0 - kept), leading)[..., None]
    log_reference = jax.nn.log_softmax(reference / t_min, axis=-1)
    mixed = jnp.logaddexp(jnp.log1p(-given_up) + target, jnp.log(given_up) + log_reference)
    return jax.lax.stop_gradient(mixed)


def released_entries(teacher_logits: Array, reference_logits: Array, entries: int) -> Array:
    """The teacher's logits at the `entries` classes that the reference ranks highest, −∞ elsewhere.

    What the formal budget lets out of a position: which classes, a public network says; how they
    compare, the teacher. Exactly that many classes are kept, whatever ties there are.

    Args:
      teacher_logits: `[..., V]`.
      reference_logits: `[..., V]`.
      entries: k, from 1 to V.

    Returns:
      float32 `[..., V]`.

    Raises:
      ValueError: k outside its range, or shapes that differ.
    """
    teacher, reference = _pair(teacher_logits, reference_logits)
    if not 1 <= entries <= teacher.shape[-1]:
        raise ValueError(f"entries: got {entries}; must be from 1 to {teacher.shape[-1]}")
    _, best = jax.lax.top_k(reference, entries)
    kept = jnp.put_along_axis(
        jnp.zeros(teacher.shape, bool), best, jnp.array(True), axis=-1, inplace=False
    )
    return jnp.where(kept, teacher, -jnp.inf)


def _pair(one: Array, reference_logits: Array) -> tuple[Array, Array]:
    """Both as float32 without gradients."""
    if one.shape != reference_logits.shape or not one.ndim:
        raise ValueError(
            f"got logits {one.shape} and reference_logits {reference_logits.shape}; "
            "must have one shape, [..., V]"
        )
    return (
        jax.lax.stop_gradient(jnp.asarray(one, jnp.float32)),
        jax.lax.stop_gradient(jnp.asarray(reference_logits, jnp.float32)),
    )
