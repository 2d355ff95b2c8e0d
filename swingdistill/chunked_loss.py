"""The Swing loss of a batch from hidden states, without the logits of the whole batch.

Two networks' logits over a vocabulary of 50,000 are most of the memory of a distillation step. Here
they exist for `chunk` tokens at a time. The loss is a sum of known weights, so that the backward
pass only has to scale: gradients are computed chunk by chunk in the forward pass.
"""

import functools
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distill_core import coarse
from distill_core.losses import coefficient
from distill_core.runtime import sharding
from distill_core.training import chunked
from swingdistill.losses import integers, soft_targets, token_temperatures
from swingdistill.released import instead
from swingdistill.variants import anchored_targets, reference_mix, released_entries

Array = jax.Array
VARIANTS = ("swing", "anchored", "reference_mix")


class _Static(NamedTuple):
    """Static arguments of the compiled loss."""

    chunk: int
    variant: str
    entries: int | None
    keep_ce: bool
    noisy: bool
    unit_temperature: bool
    axes: tuple[int | None, ...]  # of each table's parts over a mesh (`sharding.table_axis`)


def swing_loss_from_hidden(
    student_hidden: Array,
    student_embedding: Array,
    teacher_hidden: Array | None,
    teacher_embedding: Array | None,
    labels: Array,
    privacy_scores: Array,
    *,
    key: Array | None,
    noise_ids: Array | None,
    weights: Array,
    chunk: int | None = None,
    alpha,
    t_min,
    t_max,
    gamma=1.0,
    noise_scale,
    clip,
    keep_ce: bool = False,
    variant: str = "swing",
    reference_hidden: Array | None = None,
    reference_embedding: Array | None = None,
    teacher_weight=0.0,
    entries: int | None = None,
    released: tuple[Array, Array] | None = None,
    cached: tuple[Array, Array, Array, Array] | None = None,
    has_aux: bool = False,
):
    """Σ_t w_t · swing_loss_t of logits hidden · embeddingᵀ, which never exist all at once.

    The same as `swing_loss(student_hidden @ student_embedding.T, soft_targets(key, teacher_hidden @
    teacher_embedding.T, token_temperatures(privacy_scores, …), …), …)`, weighted and summed, in the
    value and in the gradients of `student_hidden` and `student_embedding`. Everything else is
    frozen: zero gradient. Divide by the sum of the weights over *all* devices for a mean. Under
    a mapped axis it works on each device's own tokens.

    With `cached` answers in place of a teacher, the classes outside the k, the tail, have their
    mass on the drawn classes: at temperature 1 and without noise the value and the gradient are the
    teacher's in expectation over the draws. At any other temperature, or with noise, the
    tail has the student's own proportions instead. The divergence is then that of k + 1 outcomes,
    the k classes and "any other", at most that of all V: nothing of the teacher's tail is told but
    its mass, interpolated between temperatures 1, 2 and 4 (`coarse.tail_at`). Noise is drawn
    for every class; there, as for clipping, the classes of the tail share its mass equally. With
    k = V all is as from the teacher.

    Source: the loss is our reconstruction (see `losses`).

    Args:
      student_hidden: `[..., D]`, float32 or bfloat16, of which products with embeddings are then
        made, with float32 sums; the arithmetic on logits is float32.
      student_embedding: `[V, D]`, tied or not.
      teacher_hidden: `[..., E]`; E may differ from D. None with `cached`.
      teacher_embedding: `[V, E]`. None with `cached`.
      labels: integers `[...]` in [0, V).
      privacy_scores: s in [0, 1], `[...]`.
      key, noise_ids, clip: as in `soft_targets`; `noise_ids` `[...]`.
      weights: `[...]`, bool or float. A token of weight 0 contributes nothing, whatever it holds.
      chunk: tokens whose logits exist at a time; None for what suits the device and the vocabulary.
      alpha, keep_ce: as in `swing_loss`; alpha a scalar.
      t_min, t_max, gamma: as in `token_temperatures`; the student stays at `t_min`.
      noise_scale: at least 0; a scalar acts where s > 0, `[...]` (from `budget`) where it is > 0.
      variant: 'swing', 'anchored' or 'reference_mix' (see `variants`).
      reference_hidden: `[..., F]`, the public reference's, for the two variants and for `entries`.
      reference_embedding: `[V, F]`.
      teacher_weight: λ of `reference_mix`.
      entries: at noised positions keep only so many classes of the teacher's, picked by the
        reference (`variants.released_entries`, for a formal budget). None keeps all.
      released: (classes, log-probabilities), `[..., k]` each; see `released.instead`.
      cached: (classes, log-probabilities, tails, drawn), `[..., k]`, `[..., k]`, `[..., 4]` and
        `[..., n]`, of `coarse.answers`, for the variant `swing` without `entries`. Of tails
        `[..., 2]` they are finished targets: they get neither temperature nor noise.
      has_aux: return (sum, {"kl", "cross_entropy"}), the weighted sums of the bare KL divergence
        and cross-entropy, for logging, without gradient.

    Returns:
      A float32 scalar; with `has_aux` a pair.

    Raises:
      ValueError: shapes that do not match, a Python scalar outside its range, an unknown variant,
        or no reference where one is needed; no teacher and nothing `cached`, or both.
    """
    leading = jnp.shape(labels)
    _check_cached(cached, (teacher_hidden, teacher_embedding), leading)
    if cached is not None and (variant != "swing" or entries is not None or released is not None):
        raise ValueError("cached: belongs to the variant 'swing', without entries and releases")
    if variant not in VARIANTS:
        raise ValueError(f"variant: got {variant!r}; must be one of {', '.join(VARIANTS)}")
    chunk = chunked.chunk_for(student_embedding.shape[0]) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"chunk: got {chunk}; must be at least 1")
    reference = (reference_hidden, reference_embedding)
    if any(x is None for x in reference) and (variant != "swing" or entries is not None):
        raise ValueError(f"reference_hidden, reference_embedding: {variant!r} with entries "
                         f"{entries} needs both")  # fmt: skip
    if variant == "swing" and entries is None:
        reference = (None, None)
    pairs = {
        "student": (student_hidden, student_embedding),
        "teacher": (teacher_hidden, teacher_embedding),
        "reference": reference,
    }
    for name, (hidden, embedding) in pairs.items():
        if hidden is None or embedding is None:
            continue
        fits = (*leading, embedding.shape[-1]), (student_embedding.shape[0], embedding.shape[-1])
        if (hidden.shape, embedding.shape) != fits:
            raise ValueError(
                f"{name}_hidden {hidden.shape} and {name}_embedding {embedding.shape}: must be "
                f"{(*leading, 'D')} and {(student_embedding.shape[0], 'D')}"
            )

    weights = jnp.asarray(weights, jnp.float32)
    if weights.shape != leading:
        raise ValueError(f"weights: got shape {weights.shape}; must be {leading}")
    noisy = not (isinstance(noise_scale, numbers.Real) and noise_scale == 0)
    live = weights != 0
    per_token = functools.partial(coefficient, leading=leading, where=live, low=0.0)
    scores = jnp.broadcast_to(per_token("privacy_scores", privacy_scores, high=1.0), leading)
    noise = per_token("noise_scale", noise_scale)
    noise = noise if noise.ndim else jnp.where(scores > 0, noise, 0.0)
    tokens = {
        "teacher": teacher_hidden,
        "reference": reference[0],
        "labels": integers("labels", labels, leading),
        "scores": scores,
        "weights": weights,
        "noise": jnp.where(live, noise, 0.0),
        "ids": integers("noise_ids", noise_ids, leading) if noisy else None,
        "released": released,
        "cached": cached,
    }
    scalar = functools.partial(coefficient, leading=(), where=None, low=0.0)
    settings = {
        "alpha": scalar("alpha", alpha, high=1.0),
        "t_min": scalar("t_min", t_min, above=True),
        "clip": scalar("clip", clip, above=True),
        "teacher_weight": scalar("teacher_weight", teacher_weight, high=1.0),
    }
    tokens["heats"] = token_temperatures(scores, t_min=t_min, t_max=t_max, gamma=gamma)
    if cached is not None and cached[2].shape[-1] == 2:
        noisy, tokens["heats"] = False, jnp.ones(leading, jnp.float32)
        tokens["noise"] = jnp.zeros(leading, jnp.float32)
    static = _Static(
        chunk=chunk,
        variant=variant,
        entries=entries,
        keep_ce=keep_ce,
        noisy=noisy,
        unit_temperature=isinstance(t_min, numbers.Real) and t_min == 1,
        axes=tuple(None if x is None else sharding.table_axis(x.shape) for _, x in pairs.values()),
    )

    def here(hidden, tokens, settings, key, embedding, *tables):
        flat, own = jax.tree.map(
            lambda x: x.reshape((-1, *x.shape[len(leading) :])), (hidden, tokens)
        )
        return _weighted_sums(static, flat, embedding, (own, settings, *tables, key))

    tables = (student_embedding, teacher_embedding, reference[1])
    total, kl, hard = sharding.per_device(
        here, (student_hidden, tokens), (settings, key), tables, result="sum"
    )
    if has_aux:
        return total, jax.lax.stop_gradient({"kl": kl, "cross_entropy": hard})
    return total


def _check_cached(cached: Any, teacher: tuple[Any, Any], leading: tuple[int, ...]):
    if any((x is None) != (cached is not None) for x in teacher):
        raise ValueError("teacher_hidden, teacher_embedding, cached: either both or the last")
    if cached is None:
        return
    classes, log_probs, tails, drawn = cached
    sizes = (2, len(coarse.TEMPERATURES) + 1)
    if not (
        classes.shape == log_probs.shape == (*leading, *classes.shape[len(leading) :][:1])
        and tails.shape[:-1] == leading
        and tails.shape[-1] in sizes
        and drawn.shape[:-1] == leading
        and jnp.issubdtype(classes.dtype, jnp.integer)
    ):
        raise ValueError(
            f"cached: got {classes.dtype} {classes.shape}, {log_probs.shape}, {tails.shape}, "
            f"{drawn.shape}; must be integers and floats {(*leading, 'k')}, floats "
            f"{(*leading, '2 or 4')}, integers {(*leading, 'n')}"
        )


def _sums(static: _Static, hidden: Array, embedding: Array, frozen: Any) -> Any:
    """The loss, the KL divergence and the cross-entropy, each weighted and summed over tokens."""
    sums, _, _ = _scan(static, hidden, embedding, frozen, gradients=False)
    return sums


def _forward(static: _Static, hidden: Array, embedding: Array, frozen: Any):
    sums, of_hidden, of_embedding = _scan(static, hidden, embedding, frozen, gradients=True)
    of_embedding = sharding.part_of_sum(of_embedding, static.axes[0])
    # Empty, but they carry the dtypes.
    return sums, (of_hidden, of_embedding, hidden[:0], embedding[:0])


def _backward(static: _Static, kept: tuple[Array, ...], cotangents: tuple[Array, ...]):
    del static
    of_hidden, of_embedding, hidden, embedding = kept
    scale = cotangents[0]  # the others are for logging
    return (
        (scale * of_hidden).astype(hidden.dtype),
        (scale * of_embedding).astype(embedding.dtype),
        None,
    )


_weighted_sums = jax.custom_vjp(_sums, nondiff_argnums=(0,))
_weighted_sums.defvjp(_forward, _backward)


def _finite(live: Array, x: Array) -> Array:
    """[n, D] with zeros for tokens of weight 0, which may hold NaN."""
    return jnp.where(live[:, None], x, 0.0)


def _scan(static: _Static, hidden: Array, embedding: Array, frozen: Any, *, gradients: bool) -> Any:
    """The three sums, and with `gradients` those of the hidden states and of the embedding."""
    tokens, settings, *theirs, key = frozen
    states = (hidden, tokens["teacher"], tokens["reference"])
    tables: list[Any] = [
        None if table is None else sharding.whole_table(table, axis, of.dtype)
        for table, axis, of in zip((embedding, *theirs), static.axes, states, strict=True)
    ]
    embedding, teacher_embedding, reference_embedding = tables
    count = hidden.shape[0]
    size = min(static.chunk, max(count, 1))
    order = jnp.arange(count)
    if static.noisy:
        # Noised tokens together: the chunks of the others draw none.
        order = jnp.argsort(tokens["noise"] <= 0)
    padded = jnp.pad(order, (0, -count % size))
    valid = jnp.arange(padded.size) < count

    def split(x):
        return x[padded].reshape((-1, size, *x.shape[1:]))

    def step(of_embedding, chunk):
        student, here, valid = chunk
        live = valid & (here["weights"] != 0)
        student, reference = _finite(live, student), None
        if here["reference"] is not None:
            reference = chunked.logits(_finite(live, here["reference"]), reference_embedding)
        if here["cached"] is None:
            teacher = chunked.logits(_finite(live, here["teacher"]), teacher_embedding)
        else:
            teacher, *others = _stored_logits(here, live, len(embedding))
            here = {**here, "tail": others}
        target = _targets(static, settings, key, teacher, reference, here, live)
        weights = jnp.where(live, here["weights"], 0.0)
        sums, of_logits = _values(
            static, settings, chunked.logits(student, embedding), target, here, live, weights
        )
        if not gradients:
            return of_embedding, (sums, None)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        of_logits, table = (x.astype(student.dtype) for x in (of_logits, embedding))
        of_hidden = product("cv,vd->cd", of_logits, table)
        return of_embedding + product("cv,cd->vd", of_logits, student), (sums, of_hidden)

    start = jnp.zeros(embedding.shape, jnp.float32) if gradients else None
    chunks = jax.tree.map(split, (hidden, tokens)) + (valid.reshape(-1, size),)
    of_embedding, (sums, of_hidden) = jax.lax.scan(step, start, chunks)
    sums = tuple(jnp.sum(x) for x in sums)
    if of_hidden is not None:
        of_hidden = of_hidden.reshape(padded.size, -1)[jnp.argsort(order)]
    return sums, of_hidden, of_embedding


def _stored_logits(here: dict[str, Any], live: Array, vocab: int) -> tuple[Array, Array, Array]:
    """(logits that a cache stands for, which classes it lists, shares of the others), [c, V] each.

    Of the logits at the token's temperature the other classes share the tail's mass equally. The
    shares are those of the drawn classes, 0 in all where they do not count.
    """
    stored = (jnp.where(live[:, None], x, 0) for x in here["cached"])
    classes, log_probs, tails, drawn = stored
    log_probs, heats = log_probs.astype(jnp.float32), here["heats"]
    others = vocab - classes.shape[-1]
    rows, classes = jnp.arange(len(classes))[:, None], classes.astype(jnp.int32)
    listed = jnp.zeros((len(classes), vocab), bool).at[rows, classes].set(True)
    known = tails[:, :-1]
    tail = known[:, 0] if known.shape[-1] == 1 else coarse.tail_at(known, heats, others)
    each = heats * (tail - jnp.log(jnp.maximum(others, 1)))
    spread = jnp.where(listed, -jnp.inf, each[:, None])
    count = ((heats == 1) & (here["noise"] <= 0)) / jnp.float32(drawn.shape[-1])
    shares = jnp.zeros((len(classes), vocab), jnp.float32)
    shares = shares.at[rows, drawn.astype(jnp.int32)].add(count[:, None])
    return spread.at[rows, classes].max(log_probs), listed, shares


def _targets(
    static: _Static,
    settings: dict[str, Array],
    key: Array | None,
    teacher: Array,  # [c, V]
    reference: Array | None,  # [c, V]
    here: dict[str, Array],
    live: Array,
) -> Array:
    """Target log-probabilities [c, V] of a chunk."""
    noise = jnp.where(live, here["noise"], 0.0) if static.noisy else 0.0
    noised = {"noise_scale": noise, "clip": settings["clip"], "noise_ids": here["ids"]}
    if static.entries is not None:
        assert reference is not None
        released = released_entries(teacher, reference, static.entries)
        teacher = jnp.where((here["noise"] > 0)[:, None], released, teacher)
    if static.variant == "anchored":
        assert reference is not None
        return anchored_targets(
            key, teacher, reference, here["heats"], t_min=settings["t_min"], **noised
        )
    target = soft_targets(key, teacher, here["heats"], **noised)
    if here["released"] is not None:
        target = instead(target, *here["released"])
    if static.variant == "reference_mix":
        assert reference is not None
        return reference_mix(
            target,
            reference,
            here["scores"],
            teacher_weight=settings["teacher_weight"],
            temperature=settings["t_min"],
        )
    return target


def _with_tail(
    log_soft: Array, target: Array, listed: Array, shares: Array, means: Array
) -> tuple[Array, Array]:
    """(a target whose classes outside `listed` have their mass by `shares`, if there are any, else
    in the student's own proportions; what Σ p log p of the tail is above that of the shares).

    `means` are those of log p over the teacher's tail.
    """
    theirs, ours = (
        jax.nn.logsumexp(jnp.where(listed, -jnp.inf, x), axis=-1, keepdims=True)
        for x in (target, log_soft)
    )
    drawn = jnp.any(shares > 0, axis=-1, keepdims=True)
    tail = jnp.where(drawn, jnp.log(shares), log_soft - ours) + theirs
    p = jnp.where(listed, 0.0, jnp.exp(tail))
    on_drawn = jnp.sum(p * jnp.where(p > 0, tail, 0.0), axis=-1)
    known = jnp.where(drawn[:, 0], jnp.exp(theirs[:, 0]) * means - on_drawn, 0.0)
    return jnp.where(listed, target, tail), known


def _values(
    static: _Static,
    settings: dict[str, Array],
    logits: Array,  # [c, V]
    target: Array,  # [c, V], log-probabilities
    here: dict[str, Array],
    live: Array,
    weights: Array,
) -> tuple[tuple[Array, Array, Array], Array]:
    """A chunk's three sums, and the gradient of the first by the student's logits, [c, V]."""
    alpha, t_min = settings["alpha"], settings["t_min"]
    log_hard = jax.nn.log_softmax(logits, axis=-1)
    log_soft = log_hard if static.unit_temperature else jax.nn.log_softmax(logits / t_min, axis=-1)
    known = 0.0
    if here["cached"] is not None:
        means = jnp.where(live, here["cached"][2][:, -1], 0.0)
        listed, shares = here["tail"]
        target, known = _with_tail(log_soft, target, listed, shares, means)
    p = jnp.exp(target)
    # Where p underflows to 0, or is 0, the term's limit is 0.
    kl = jnp.sum(jnp.where(p > 0, p * (jnp.where(p > 0, target, 0.0) - log_soft), 0.0), axis=-1)
    kl += known
    labels = jnp.where(live, here["labels"], 0).astype(jnp.int32)
    picked = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == labels[:, None]
    hard = -jnp.sum(jnp.where(picked, log_hard, 0.0), axis=-1)
    known = (labels >= 0) & (labels < logits.shape[-1])
    hard = jnp.where(known, hard, jnp.nan)  # as in cross_entropy

    soft_weight = weights * alpha
    hard_weight = weights * (1.0 - alpha)
    if not static.keep_ce:
        hard_weight *= 1.0 - here["scores"]
    loss = soft_weight * t_min**2 * kl + hard_weight * hard
    sums = jnp.sum(loss), jnp.sum(weights * kl), jnp.sum(weights * hard)
    of_logits = (soft_weight * t_min)[:, None] * (jnp.exp(log_soft) - p) + hard_weight[:, None] * (
        jnp.exp(log_hard) - picked
    )
    return sums, of_logits
