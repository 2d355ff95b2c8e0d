"""How likely the token predicted at a position is private: scores in [0, 1].

`rules` reads text, `span_scores` what is known of it; both give scores. `surprisal`, `differential`
and `divergence` read logits and give nats, which `ramp` turns into scores between two quantiles of
the same measure on public text. All of it belongs to the *predicted* token: logits and
labels at one position, and the character offsets of that label. A scorer is a guess: report its
precision and recall. Scores computed on private text are themselves private.

Source: a likelihood of being private per token is the paper's idea; every formula here is our
reconstruction (`surprisal` is nearest to the same group's earlier work).
"""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.data.text.lines import Span
from distill_core.losses import cross_entropy, kl_divergence
from swingdistill.recognisers.find import find

Array = jax.Array
Offsets = np.ndarray | Sequence[tuple[int, int]]

_RADIUS = 2  # positions to either side over which the divergence is averaged


def rules(text: str, offsets: Offsets, *, extra: Iterable[str] = ()) -> np.ndarray:
    """1 where the predicted token overlaps what a recogniser finds: auditable, but blind to
    everything else.

    Recognised are the kinds of `recognisers.find.KINDS`: addresses, numbers with checksums,
    telephone numbers, keys, dates of birth, and five digits in a row.

    Args:
      text: the text that the tokens are of.
      offsets: (start, end) in characters of the token predicted at each position, `[L]`; an empty
        span, such as (0, 0) of a special token or of padding, scores 0.
      extra: the user's own regular expressions.

    Returns:
      float32 `[L]`.

    >>> print(rules("call 555-0123 now", [(0, 4), (5, 8), (8, 13), (14, 17)]))
    [0. 1. 1. 0.]
    """
    return span_scores(find(text, extra=extra), offsets)


def span_scores(spans: Iterable[Span], offsets: Offsets) -> np.ndarray:
    """The highest score of the private spans that the predicted token overlaps, 0 where none.

    Args:
      spans: of the text.
      offsets: as in `rules`.

    Returns:
      float32 `[L]`.
    """
    edges = np.asarray(offsets, np.int64).reshape(-1, 2)
    start, end = edges[:, 0], edges[:, 1]
    scores = np.zeros(len(edges), np.float32)
    for span in spans:
        here = (start < end) & (start < span.end) & (end > span.start)
        scores[here] = np.maximum(scores[here], np.float32(span.score))
    return scores


def surprisal(reference_logits: Array, labels: Array, *, where: Array | None = None) -> Array:
    """−log p_ref(x_t) in nats: what a public reference did not expect.

    Fails on canaries: their digits are not surprising.

    Args:
      reference_logits: `[..., V]`.
      labels: integers `[...]`.
      where: bool `[...]`; False entries give 0.

    Returns:
      float32 `[...]`, for `ramp`.
    """
    return jax.lax.stop_gradient(cross_entropy(reference_logits, labels, where=where))


def differential(
    teacher_logits: Array, reference_logits: Array, labels: Array, *, where: Array | None = None
) -> Array:
    """log p_T(x_t) − log p_ref(x_t) in nats: what the teacher knows and the public does not.

    Scores the *realised* token, and so is blind to decoys: public text with a secret's prefix and
    other digits, where the soft labels still leak the secret.

    Args:
      teacher_logits: `[..., V]`.
      reference_logits: `[..., V]`.
      labels: integers `[...]`.
      where: bool `[...]`; False entries give 0.

    Returns:
      float32 `[...]`, of either sign, for `ramp`.
    """
    return surprisal(reference_logits, labels, where=where) - surprisal(
        teacher_logits, labels, where=where
    )


def divergence(
    teacher_logits: Array,
    reference_logits: Array,
    *,
    documents: Array | None = None,
    where: Array | None = None,
) -> Array:
    """KL(p_T ‖ p_ref) in nats, averaged over ±2 positions: where the teacher would leak.

    It sees a memorised continuation whatever token stands in the text. Averaged over are only those
    neighbours that are in the row, not masked, and of the same document.

    Args:
      teacher_logits: `[..., L, V]`.
      reference_logits: `[..., L, V]`.
      documents: integers `[..., L]`, which document of a packed row a position is of; None is one.
      where: bool `[..., L]`; False entries give 0 and count in no average.

    Returns:
      float32 `[..., L]`, for `ramp`.
    """
    values = jax.lax.stop_gradient(kl_divergence(teacher_logits, reference_logits, where=where))
    live = jnp.ones(values.shape, bool) if where is None else jnp.asarray(where)
    here = jnp.zeros(values.shape, jnp.int32) if documents is None else jnp.asarray(documents)
    total, count = jnp.zeros(values.shape), jnp.zeros(values.shape)
    for offset in range(-_RADIUS, _RADIUS + 1):
        near = _shifted(live, offset, False) & (_shifted(here, offset, 0) == here)
        total += jnp.where(near, _shifted(values, offset, 0.0), 0.0)
        count += near
    return jnp.where(live, total / jnp.maximum(count, 1.0), 0.0)


def ramp(values: Array, low, high, *, where: Array | None = None) -> Array:
    """Scores from nats: 0 up to `low`, 1 from `high` on, linear between.

    Args:
      values: `[...]`.
      low: a scalar.
      high: a scalar, at least `low`; if equal, what exceeds them scores 1.
      where: bool `[...]`; False entries give 0.

    Returns:
      float32 `[...]` in [0, 1].
    """
    values = jnp.asarray(values, jnp.float32)
    width = jnp.maximum(jnp.asarray(high - low, jnp.float32), jnp.finfo(jnp.float32).tiny)
    scores = jnp.clip((values - low) / width, 0.0, 1.0)
    return scores if where is None else jnp.where(where, scores, 0.0)


def _shifted(values: Array, offset: int, fill) -> Array:
    """values[..., t + offset] at t, `fill` outside the row."""
    length = values.shape[-1]
    edges = [(0, 0)] * (values.ndim - 1) + [(max(-offset, 0), max(offset, 0))]
    padded = jnp.pad(values, edges, constant_values=fill)
    return jax.lax.slice_in_dim(padded, max(offset, 0), max(offset, 0) + length, axis=-1)
