"""Other ways to form a target: anchored to a public reference, or mixed with it.

All of them are our reconstruction, and all are plain distillation where the score is 0. A reference
that is better than the teacher flatters `anchored_targets` and `reference_mix`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from swingdistill.losses import soften

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
    """Softens towards a public reference: log_softmax(z_ref/T_min + (z_T − z_ref)/T_t + η_t).

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
    """
    teacher, reference = _frozen(teacher_logits), _frozen(reference_logits)
    excluded = jnp.isneginf(teacher) | jnp.isneginf(reference)
    anchor = jnp.where(excluded, 0.0, reference)
    difference = jnp.where(excluded, -jnp.inf, teacher - anchor)
    noise = (noise_scale, clip, noise_ids, normal)
    softened = anchor / t_min + soften(key, difference, temperatures, *noise)
    # The sum is z_T/T_min there too, but for rounding and for what the reference excludes.
    untouched = (jnp.asarray(temperatures) <= t_min) & (jnp.asarray(noise_scale) <= 0)
    untouched = jnp.broadcast_to(untouched, teacher.shape[:-1])[..., None]
    logits = jnp.where(untouched, teacher / t_min, softened)
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
    """
    target, reference = _frozen(target_log_probs), _frozen(reference_logits)
    given_up = jnp.asarray(privacy_scores, jnp.float32) * (1.0 - teacher_weight)
    given_up = jnp.broadcast_to(given_up, target.shape[:-1])[..., None]
    log_reference = jax.nn.log_softmax(reference / temperature, axis=-1)
    mixed = jnp.logaddexp(jnp.log1p(-given_up) + target, jnp.log(given_up) + log_reference)
    return jax.lax.stop_gradient(mixed)


def released_entries(teacher_logits: Array, reference_logits: Array, entries: int) -> Array:
    """The teacher's logits at the `entries` classes that the reference ranks highest, −∞ elsewhere.

    All that a formal budget releases at a position: a public network picks the classes, the teacher
    says how they compare. Exactly `entries` classes are kept, even if some tie.

    Args:
      teacher_logits: `[..., V]`.
      reference_logits: `[..., V]`.
      entries: k, from 1 to V.

    Returns:
      float32 `[..., V]`.

    Raises:
      ValueError: k outside its range.
    """
    teacher, reference = _frozen(teacher_logits), _frozen(reference_logits)
    if not 1 <= entries <= teacher.shape[-1]:
        raise ValueError(f"entries: got {entries}; must be from 1 to {teacher.shape[-1]}")
    _, best = jax.lax.top_k(reference, entries)
    kept = jnp.put_along_axis(
        jnp.zeros(teacher.shape, bool), best, jnp.array(True), axis=-1, inplace=False
    )
    return jnp.where(kept, teacher, -jnp.inf)


def _frozen(x: Array) -> Array:
    """As float32 without gradient."""
    return jax.lax.stop_gradient(jnp.asarray(x, jnp.float32))
