"""Per-token temperatures, noised soft targets, and the loss of a student that learns from them.

The ideas (a temperature per token by how likely the token is private, and noise in the soft
targets) are those of the abstract of "Swing Distillation", Li et al., 2022. The formulas are our
reconstruction. Labels and scores belong to the token that the logits at the same position predict.
"""

import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp

from distill_core.losses import coefficient, cross_entropy, kl_divergence
from distill_core.models.text.segments import places_in_line

Array = jax.Array


def token_temperatures(privacy_scores: Array, *, t_min, t_max, gamma=1.0) -> Array:
    """The teacher's temperature at each token: T_min + (T_max − T_min)·s^γ.

    Source: a temperature per token is the paper's; this formula is our reconstruction.

    Args:
      privacy_scores: s in [0, 1], any shape `[...]`.
      t_min: temperature of tokens that are not private, above 0; also the student's.
      t_max: temperature of tokens that certainly are, at least `t_min`.
      gamma: γ > 0; above 1, tokens of a low score are softened less.

    Returns:
      float32 `[...]`.

    Raises:
      ValueError: a Python scalar outside its range.

    >>> print(token_temperatures(jnp.array([0., 0.5, 1.]), t_min=1., t_max=9., gamma=2.))
    [1. 3. 9.]
    """
    if isinstance(t_min, numbers.Real) and isinstance(t_max, numbers.Real) and t_max < t_min:
        raise ValueError(f"t_max: got {t_max}; must be at least t_min, {t_min}")
    low = coefficient("t_min", t_min, (), None, low=0.0, above=True)
    high = coefficient("t_max", t_max, (), None, low=0.0, above=True)
    gamma = coefficient("gamma", gamma, (), None, low=0.0, above=True)
    shape = jnp.shape(privacy_scores)
    scores = coefficient("privacy_scores", privacy_scores, shape, None, low=0.0, high=1.0)
    return low + (high - low) * scores**gamma


def context_ids(tokens: Array, segments: Array | None = None) -> Array:
    """A hash of the whole prefix up to and including each position: the id that noise belongs to.

    id_t = mix(Σ_{i≤t} mix(x_i + mix(i))) modulo 2³², `mix` being MurmurHash3's finaliser: the order
    of the tokens counts, and prefixes of one length that differ in one token never collide. Other
    pairs do with probability 2⁻³² (about 1 pair in 100,000 contexts, 116 in a million): they share
    their noise. Our reconstruction.

    Args:
      tokens: integers `[..., L]`, the inputs: `row[:t + 1]` is what the logits at t come from.
      segments: integers `[..., L]`, which line each position belongs to, where several share a row
        and see themselves alone: the ids are then those of the lines. None: the row is one.

    Returns:
      uint32 `[..., L]`, the same for equal prefixes in whatever row, batch or epoch.

    Raises:
      ValueError: tokens that are not integers, or a scalar.

    >>> ids = context_ids(jnp.array([[5, 6, 7], [5, 6, 8]]))
    >>> print(ids[0] == ids[1])
    [ True  True False]
    """
    if not jnp.issubdtype(jnp.result_type(tokens), jnp.integer) or not jnp.ndim(tokens):
        given = f"{jnp.result_type(tokens)} {jnp.shape(tokens)}"
        raise ValueError(f"tokens: got {given}; must be integers [..., L]")
    tokens = jnp.asarray(tokens).astype(jnp.uint32)
    index = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
    places = index if segments is None else places_in_line(jnp.asarray(segments))
    mixed = _mix(tokens + _mix((places + 1).astype(jnp.uint32)))
    sums = jnp.cumsum(mixed, axis=-1, dtype=jnp.uint32)
    before = sums - mixed  # of what stands before a position in the row
    return _mix(sums - jnp.take_along_axis(before, index - places, axis=-1))


def soft_targets(
    key: Array | None,
    teacher_logits: Array,
    temperatures: Array,
    *,
    noise_scale,
    clip,
    noise_ids: Array | None,
    normal: Callable[[Array, tuple[int, ...]], Array] = jax.random.normal,
) -> Array:
    """Targets of the student: log_softmax(clip(z − mean z, ±clip)/T_t + η_t).

    η_t is Gaussian with standard deviation `noise_scale`, drawn after the temperature, and a
    function of `key` and the position's id alone: with `context_ids` the same context meets the
    same noise in every epoch and row, so training on it again does not average the noise away. Give
    an id one temperature and one scale: c/T₁ + η and c/T₂ + η share η, and their difference is c.
    Where `noise_scale` is 0 nothing is centred, clipped or noised: log_softmax(z/T_t). Classes that
    the teacher excludes with −∞ stay excluded and count in no mean.

    Source: noise in the soft targets is the paper's; where it enters is our reconstruction.

    Args:
      key: a key of JAX's default generator, constant over the run, and secret: who has it can
        subtract the noise. With the Python number 0 as `noise_scale` it and `noise_ids` are not
        read and may be None.
      teacher_logits: `[..., V]`; gets no gradient.
      temperatures: T_t > 0, a scalar or `[...]`.
      noise_scale: at least 0, a scalar or `[...]`.
      clip: bound above 0 of a centred logit.
      noise_ids: integers `[...]`, read as uint32.
      normal: `normal(key, shape)` draws the noise, standard normal float32.

    Returns:
      Log-probabilities, float32 `[..., V]`.

    Raises:
      ValueError: shapes that do not match, a Python scalar outside its range, or a key of
        a generator that is not threefry (under `vmap` its noise would be no function of the id).
    """
    logits = jax.lax.stop_gradient(jnp.asarray(teacher_logits, jnp.float32))
    softened = soften(key, logits, temperatures, noise_scale, clip, noise_ids, normal)
    return jax.lax.stop_gradient(jax.nn.log_softmax(softened, axis=-1))


def swing_loss(
    student_logits: Array,
    target_log_probs: Array,
    labels: Array,
    privacy_scores: Array,
    *,
    alpha,
    temperature,
    where: Array | None = None,
    keep_ce: bool = False,
) -> Array:
    """α T_min² KL(target ‖ softmax(student/T_min)) + (1 − α)(1 − s) CE(student, labels).

    Only the targets are softened by T_t; the student stays at T_min. Otherwise equal logits would
    be the optimum and nothing would be hidden. With s = 0 everywhere and targets
    log_softmax(teacher/T_min) this is plain distillation.

    Source: our reconstruction.

    Args:
      student_logits: `[..., V]`.
      target_log_probs: from `soft_targets`, `[..., V]`; gets no gradient and may hold −∞.
      labels: integers `[...]` in [0, V).
      privacy_scores: s in [0, 1], a scalar or `[...]`; gets no gradient.
      alpha: weight of the distillation term in [0, 1], a scalar or `[...]`.
      temperature: T_min > 0, a scalar or `[...]`.
      where: bool `[...]`; False entries give exactly 0.
      keep_ce: learn private tokens' labels like any other's. It brings the leak back in full and is
        here to show that.

    Returns:
      float32 `[...]`, one value per token.

    Raises:
      ValueError: shapes that do not match, or a Python scalar outside its range.

    >>> logits, labels = jnp.array([[2., 0.], [2., 0.]]), jnp.array([0, 0])
    >>> target = soft_targets(None, 0 * logits, 1.0, noise_scale=0, clip=1.0, noise_ids=None)
    >>> print(swing_loss(logits, target, labels, jnp.array([0., 1.]), alpha=0.5, temperature=1.0))
    [0.280 0.217]
    """
    if student_logits.shape != target_log_probs.shape or not student_logits.ndim:
        raise ValueError(
            f"student_logits {student_logits.shape} and target_log_probs {target_log_probs.shape}: "
            "must have one shape, [..., V]"
        )
    leading = student_logits.shape[:-1]
    alpha = coefficient("alpha", alpha, leading, where, low=0.0, high=1.0)
    temperature = coefficient("temperature", temperature, leading, where, low=0.0, above=True)
    scores = coefficient("privacy_scores", privacy_scores, leading, where, low=0.0, high=1.0)
    public = 1.0 if keep_ce else 1.0 - jax.lax.stop_gradient(scores)
    hard = cross_entropy(student_logits, labels, where=where)
    # kl_divergence divides both sides by the temperature; the targets are softened already.
    heats = temperature[..., None] if temperature.ndim else temperature
    target = jax.lax.stop_gradient(jnp.asarray(target_log_probs, jnp.float32) * heats)
    soft = kl_divergence(target, student_logits, temperature=temperature, where=where)
    return alpha * temperature**2 * soft + (1.0 - alpha) * public * hard


def soften(
    key: Array | None, logits: Array, temperatures, noise_scale, clip, noise_ids, normal
) -> Array:
    """logits/T, centred, clipped and noised where `noise_scale` is above 0; see `soft_targets`."""
    leading = logits.shape[:-1]
    temperatures = coefficient("temperatures", temperatures, leading, None, low=0.0, above=True)
    scale = coefficient("noise_scale", noise_scale, leading, None, low=0.0)
    clip = coefficient("clip", clip, (), None, low=0.0, above=True)
    heats = temperatures[..., None] if temperatures.ndim else temperatures
    if isinstance(noise_scale, numbers.Real) and not noise_scale:
        return logits / heats
    if key is None or str(jax.random.key_impl(key)) != "threefry2x32":
        raise ValueError(
            f"key: got {key}; must be one of JAX's default generator, threefry2x32: others give "
            "noise that is no function of the context"
        )
    ids = integers("noise_ids", noise_ids, leading)
    scale = jnp.broadcast_to(scale, leading)[..., None]

    def noised():
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids.astype(jnp.uint32).reshape(-1))
        noise = jax.vmap(lambda key: normal(key, logits.shape[-1:]))(keys).reshape(logits.shape)
        allowed = ~jnp.isneginf(logits)
        mean = jnp.mean(logits, axis=-1, keepdims=True, where=allowed)
        bounded = jnp.where(allowed, jnp.clip(logits - mean, -clip, clip), -jnp.inf)
        return jnp.where(scale > 0, bounded / heats + scale * noise, logits / heats)

    # Gaussians for a whole vocabulary cost as much as a matrix product: none unless one is needed.
    return jax.lax.cond(jnp.any(scale > 0), noised, lambda: logits / heats)


def integers(name: str, value, leading: tuple[int, ...]) -> Array:
    """The value as an array; ValueError unless it holds integers and has the shape `leading`."""
    found = None if value is None else (jnp.result_type(value), jnp.shape(value))
    if found is None or found[1] != leading or not jnp.issubdtype(found[0], jnp.integer):
        given = found and f"{found[0]} {found[1]}"
        raise ValueError(f"{name}: got {given}; must be integers {leading}")
    return jnp.asarray(value)


def _mix(x: Array) -> Array:
    """MurmurHash3's 32-bit finaliser: a bijection in which every bit of x moves every bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
