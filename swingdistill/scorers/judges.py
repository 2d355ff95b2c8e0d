"""How likely the token predicted at a position is private: scores in [0, 1].

Two kinds. `rules` and `oracle` read text and give scores. `surprisal`, `differential` and
`divergence` read logits and give nats, which `ramp` turns into scores, between two quantiles of the
same measure on public text (`ramp_quantiles`). All of it belongs to the *predicted* token: logits
and labels at one position, and the character offsets of that label. A scorer is a guess: report its
precision and recall. Scores computed on private text are themselves private.

Source: a likelihood of being private per token is the paper's idea; every formula here is our
reconstruction (`surprisal` is nearest to the same group's earlier work).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.config import InputError
from distill_core.losses import cross_entropy, kl_divergence

Array = jax.Array
Span = tuple[int, int]

# Name to pattern; wide rather than narrow, since what they miss is taught. None backtracks far.
RECOGNISERS: dict[str, str] = {
    "email": r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    # +44 20 7946 0958, (212) 555-0123, 212 555 0123, 555-0123; a date such as 2011-05-12 is none.
    "phone": r"\+\d(?:[ .-]?\(?\d\)?){6,14}(?!\d)"
    r"|(?<!\d)(?:(?:\(\d{2,4}\) ?|\d{3,4}[ .-])\d{3,4}[ .-]|\d{3}[.-])\d{4}(?![\d-])",
    "card": r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)",
    # Five in a row, or spelt out as tokens: 1 2 3 4 5.
    "digits": r"(?<!\d)(?:\d{5,}|\d(?: \d){4,})(?!\d)",
}


def recognise(
    text: str, recognisers: Mapping[str, str] | None = None
) -> list[tuple[str, int, int]]:
    """Where recognisers match: (name, start, end) in characters, in the order of the table.

    Args:
      text: any text.
      recognisers: name to regular expression; `RECOGNISERS` if None.

    Raises:
      InputError: a pattern that is no regular expression; it says which.
    """
    found = []
    for name, pattern in (RECOGNISERS if recognisers is None else recognisers).items():
        try:
            matches = re.finditer(pattern, text)
        except (re.error, TypeError) as error:
            allowed = f"must be a regular expression ({error})"
            raise InputError(f"recognisers.{name}", pattern, allowed) from None
        found += [(name, *match.span()) for match in matches if match.group()]
    return found


def rules(
    text: str, offsets: Sequence[Span], *, extra: Mapping[str, str] | Iterable[str] = ()
) -> np.ndarray:
    """1 where the predicted token overlaps what a recogniser matches: auditable, blind to the rest.

    Args:
      text: the text that the tokens are of.
      offsets: (start, end) in characters of the token predicted at each position, `[L]`; an empty
        span, such as (0, 0) of a special token or of padding, scores 0.
      extra: the user's own regular expressions beside `RECOGNISERS`; a mapping names them.

    Returns:
      float32 `[L]`.

    Raises:
      InputError: a pattern that is no regular expression.

    >>> offsets = [(0, 4), (5, 8), (8, 11)]
    >>> print(rules("call 555-0123 now", [(0, 4), (5, 8), (8, 13), (14, 17)]))
    [0. 1. 1. 0.]
    """
    if isinstance(extra, str):
        extra = [extra]
    if not isinstance(extra, Mapping):
        extra = {f"extra[{i}]": pattern for i, pattern in enumerate(extra)}
    found = recognise(text, {**RECOGNISERS, **extra})
    return oracle([(start, end) for _, start, end in found], offsets)


def oracle(spans: Iterable[Span], offsets: Sequence[Span]) -> np.ndarray:
    """1 where the predicted token overlaps a known private span; for tests and upper bounds.

    Args:
      spans: (start, end) in characters.
      offsets: as in `rules`.

    Returns:
      float32 `[L]`.
    """
    edges = np.asarray(offsets, np.int64).reshape(-1, 2)
    start, end = edges[:, 0], edges[:, 1]
    scores = np.zeros(len(edges), np.float32)
    for low, high in spans:
        scores[(start < end) & (start < high) & (end > low)] = 1.0
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
    radius: int = 2,
    documents: Array | None = None,
    where: Array | None = None,
) -> Array:
    """KL(p_T ‖ p_ref) in nats, averaged over ±2 positions: where the teacher would leak.

    It sees a memorised continuation whatever token stands in the text. The average runs over those
    neighbours alone that are in the row, not masked, and of the same document.

    Args:
      teacher_logits: `[..., L, V]`.
      reference_logits: `[..., L, V]`.
      radius: positions to either side, at least 0.
      documents: integers `[..., L]`, which document of a packed row a position is of; None is one.
      where: bool `[..., L]`; False entries give 0 and count in no average.

    Returns:
      float32 `[..., L]`, for `ramp`.
    """
    values = jax.lax.stop_gradient(kl_divergence(teacher_logits, reference_logits, where=where))
    live = jnp.ones(values.shape, bool) if where is None else jnp.asarray(where)
    here = jnp.zeros(values.shape, jnp.int32) if documents is None else jnp.asarray(documents)
    total, count = jnp.zeros(values.shape), jnp.zeros(values.shape)
    for offset in range(-radius, radius + 1):
        near = _shifted(live, offset, False) & (_shifted(here, offset, 0) == here)
        total += jnp.where(near, _shifted(values, offset, 0.0), 0.0)
        count += near
    return jnp.where(live, total / jnp.maximum(count, 1.0), 0.0)


def combine(*scores: Array) -> Array:
    """The highest of several scores at each position."""
    highest = jnp.asarray(scores[0], jnp.float32)
    for other in scores[1:]:
        highest = jnp.maximum(highest, jnp.asarray(other, jnp.float32))
    return highest


def ramp(values: Array, low, high, *, where: Array | None = None) -> Array:
    """Scores from nats: 0 up to `low`, 1 from `high` on, linear between.

    Args:
      values: `[...]`.
      low: a scalar.
      high: a scalar, at least `low`; if equal, what exceeds them scores 1.
      where: bool `[...]`; False entries give 0.

    Returns:
      float32 `[...]` in [0, 1].

    Raises:
      InputError: Python scalars out of order.
    """
    if isinstance(low, float | int) and isinstance(high, float | int) and not low <= high:
        raise InputError("high", high, f"must be at least low, {low}")
    values = jnp.asarray(values, jnp.float32)
    width = jnp.maximum(jnp.asarray(high - low, jnp.float32), jnp.finfo(jnp.float32).tiny)
    scores = jnp.clip((values - low) / width, 0.0, 1.0)
    return scores if where is None else jnp.where(where, scores, 0.0)


def ramp_quantiles(
    public_values: Any, quantiles: tuple[float, float] = (0.99, 0.999)
) -> tuple[float, float]:
    """The bounds of `ramp`: quantiles of a measure on held-out public text.

    Args:
      public_values: what the scorer gave on public text, any shape, masked positions left out.
      quantiles: lower and upper, 0 ≤ lower < upper ≤ 1.

    Returns:
      (low, high) in nats.

    Raises:
      InputError: quantiles out of order, or no public text.
    """
    lower, upper = quantiles
    if not 0.0 <= lower < upper <= 1.0:
        raise InputError("quantiles", quantiles, "must be two in ascending order, in [0, 1]")
    values = np.asarray(public_values, np.float64).ravel()
    if not values.size:
        raise InputError("public_values", [], "must hold values from public text; there is none")
    if np.isnan(values).any():
        raise InputError("public_values", np.nan, "must be numbers; leave masked positions out")
    low, high = np.quantile(values, (lower, upper))
    return float(low), float(high)


def _shifted(values: Array, offset: int, fill) -> Array:
    """values[..., t + offset] at t, `fill` outside the row."""
    length = values.shape[-1]
    edges = [(0, 0)] * (values.ndim - 1) + [(max(-offset, 0), max(offset, 0))]
    padded = jnp.pad(values, edges, constant_values=fill)
    return jax.lax.slice_in_dim(padded, max(offset, 0), max(offset, 0) + length, axis=-1)
