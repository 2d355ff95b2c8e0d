"""A model's exposure of planted secrets: exact, sampled, extrapolated, and a classifier's.

A model is a function, of one of two kinds:

- `logits_fn(tokens int32 [B, L])` ranks `Candidates`, digit by digit. It returns logits
  `[B, L, V]`, or `[B, V]` after the last token alone (which spares most of the work where the
  vocabulary is large), and gets arrays of at most D different lengths.
- `line_fn(tokens int32 [B, L], weights float32 [B, L]) -> [B]` ranks `Lines`: the sum over tokens
  of weight × −ln p(token | those before it). Rows are padded at the end with their last token; the
  weights are 0 there and at the tokens that begin every candidate's line.

Both get NumPy arrays and return anything that NumPy can read, so a network of another framework
will do. Give it jitted, with the weights as arguments of what is jitted, for example
`functools.partial(jax.jit(apply), variables)`.

Source: Carlini et al., "The Secret Sharer", USENIX Security 2019. The prefix sharing, the bounds of
sampled ranks, and that the other planted secrets are no candidates, are ours.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.config import InputError
from swingdistill.canaries.exposure import LEAST_FITTED, rank_bounds, skew_normal_exposure
from swingdistill.canaries.secrets import MAX_LINES, Candidates, Lines

LogitsFn = Callable[[np.ndarray], Any]
LineFn = Callable[[np.ndarray, np.ndarray], Any]
ESTIMATORS = ("exact", "sampled", "extrapolated")
MAX_EXACT = 10**7
_LENGTHS = 8  # lines are padded to a multiple, so that few shapes are compiled
_TOKENS = 2**16  # of lines at a time, at most


class Ranks(NamedTuple):
    """Ranks of n secrets among other candidates.

    Attributes:
      bits: float64 [n], exposure; of a fitted distribution where it was extrapolated.
      ahead: int64 [n], the candidates asked that are likelier than the secret.
      asked: how many others each was ranked among.
      others: how many others there are; all were asked if it is `asked`.
    """

    bits: np.ndarray
    ahead: np.ndarray
    asked: int
    others: int

    @classmethod
    def of(cls, values: np.ndarray, reference: np.ndarray, others: int) -> "Ranks":
        """From log-perplexities of secrets [n] and other candidates [m]; ties rank behind."""
        ahead = np.searchsorted(np.sort(reference), values, side="left")
        return cls(rank_bits(ahead, len(reference)), ahead, len(reference), others)

    def take(self, index) -> "Ranks":
        """Those of some of the secrets."""
        return self._replace(bits=self.bits[index], ahead=self.ahead[index])

    @property
    def rank_bits(self) -> np.ndarray:
        """Exposure by rank among those asked, float64 [n]; what p-values are of."""
        return rank_bits(self.ahead, self.asked)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(lower, upper) 95% bounds of the exposure among all; see `exposure.rank_bounds`."""
        return rank_bounds(self.ahead, self.asked, self.others)


def rank_bits(ahead: np.ndarray, asked: int) -> np.ndarray:
    """log₂(asked + 1) − log₂(1 + ahead)."""
    return np.log2(asked + 1) - np.log2(1 + np.asarray(ahead))


def exact_exposure(
    model_fn: LogitsFn | LineFn,
    secrets: Sequence[str],
    candidates: Candidates | Lines,
    *,
    batch_size: int = 1000,
) -> np.ndarray:
    """Exposure of secrets by their ranks among all candidates.

    All numbers of six digits, one token each, take 1 + 10 + … + 10⁵ = 111,111 prefixes for all
    secrets together: the log-probabilities of the next digit after each are shared by the
    candidates that begin so. There only the digits count; what follows them in the line does not.
    Of `Lines` every candidate is a row.

    Args:
      model_fn: see above.
      secrets: all those planted in this format; each is ranked without the others.
      candidates: from `swingdistill.canaries.secrets.candidates` or `choices`.
      batch_size: prefixes or lines at a time.

    Returns:
      float64 [n], bits, at most log₂(number of candidates − n + 1).

    Raises:
      InputError: a secret that is no candidate or is there twice, more than 10⁷ candidates, or no
        candidate beside the secrets.
      ValueError: logits of another shape, or NaN.
    """
    return rank(model_fn, secrets, candidates, estimator="exact", batch_size=batch_size).bits


def sampled_exposure(
    model_fn: LogitsFn | LineFn,
    secrets: Sequence[str],
    candidates: Candidates | Lines,
    *,
    num_samples: int = 10_000,
    seed: int = 0,
    batch_size: int = 1000,
) -> np.ndarray:
    """Exposure of secrets by their ranks among random candidates: at most log₂(num_samples + 1).

    For spaces too large to go through. The sample is without repetition and without the secrets;
    where it would exceed the candidates, it is all of them, and the exposure exact. `rank` gives
    the bounds.

    Args, Raises: as `exact_exposure`; `num_samples` candidates are drawn with `seed`.

    Returns:
      float64 [n], bits.
    """
    how = {"estimator": "sampled", "num_samples": num_samples, "seed": seed}
    return rank(model_fn, secrets, candidates, **how, batch_size=batch_size).bits


def extrapolated_exposure(
    model_fn: LogitsFn | LineFn,
    secrets: Sequence[str],
    candidates: Candidates | Lines,
    *,
    num_samples: int = 10_000,
    seed: int = 0,
    batch_size: int = 1000,
) -> np.ndarray:
    """Exposure of secrets by a skew normal distribution fitted to random candidates.

    As `sampled_exposure`, but reaches log₂(number of candidates): see `skew_normal_exposure`.

    Raises:
      InputError: also on `num_samples`: fewer than `LEAST_FITTED`, or fewer candidates; or on
        `reference_log_perplexities`, which no skew normal distribution fits.
    """
    how = {"estimator": "extrapolated", "num_samples": num_samples, "seed": seed}
    return rank(model_fn, secrets, candidates, **how, batch_size=batch_size).bits


def rank(
    model_fn: LogitsFn | LineFn,
    secrets: Sequence[str],
    candidates: Candidates | Lines,
    *,
    estimator: str | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
    batch_size: int = 1000,
) -> Ranks:
    """Ranks of secrets by log-perplexity, which all three estimators read.

    Args, Raises: as `exact_exposure`, `sampled_exposure` and `extrapolated_exposure`; `estimator`
    is one of `ESTIMATORS`. By default it is exact up to 10⁷ numbers of one token per digit and up
    to 50,000 `Lines`, beyond which candidates are sampled.
    """
    planted = candidates.index(secrets)
    num = _check_others(candidates, planted)
    if estimator is None:
        most = MAX_LINES if isinstance(candidates, Lines) else MAX_EXACT
        estimator = "exact" if len(candidates) <= most else "sampled"
    if estimator == "exact":
        if len(candidates) > MAX_EXACT:
            allowed = f"at most {MAX_EXACT:,} are ranked exactly; take the estimator sampled"
            raise InputError("candidates", len(candidates), allowed)
        others = np.delete(np.arange(len(candidates)), planted)
    else:
        if estimator == "extrapolated" and min(num_samples, num) < LEAST_FITTED:
            allowed = (
                f"a distribution is fitted to at least {LEAST_FITTED} sampled candidates"
                if num >= LEAST_FITTED
                else f"there are {num} other candidates, and a distribution is fitted to at least "
                f"{LEAST_FITTED}; rank among all of them (estimator exact)"
            )
            raise InputError("num_samples", num_samples, allowed)
        others = _draw_others(candidates, planted, num_samples, seed)
    indices = np.concatenate([planted, others])
    both = log_perplexities(model_fn, indices, candidates, batch_size=batch_size)
    values, reference = both[: len(planted)], both[len(planted) :]
    found = Ranks.of(values, reference, num)
    if estimator == "extrapolated":
        bits = skew_normal_exposure(values, reference, num_candidates=len(candidates))
        return found._replace(bits=bits)
    return found


def classifier_exposure(
    loss_fn: Callable[[np.ndarray, np.ndarray], Any],
    secrets: Sequence[str],
    labels: Sequence[int],
    candidates: Candidates | Lines,
    *,
    num_samples: int = 10_000,
    seed: int = 0,
    batch_size: int = 1000,
) -> np.ndarray:
    """Exposure of secrets in a classifier's training texts: their ranks by the label's loss.

    A candidate's rank is that of the loss of the canary's label on the line that holds the
    candidate in place of the secret. Nothing is shared between candidates, so they are sampled.
    Our reconstruction.

    Args:
      loss_fn: `loss_fn(tokens int32 [B, L], labels int32 [B]) -> losses [B]`; the tokens are whole
        lines, suffix included, all of one length in a call.
      secrets: as in `exact_exposure`.
      labels: each canary's label, [n].
      candidates, num_samples, seed, batch_size: as in `sampled_exposure`.

    Returns:
      float64 [n], bits, at most log₂(num_samples + 1).

    Raises:
      InputError: as `exact_exposure`.
      ValueError: losses that are NaN or not [B].
    """
    how = {"num_samples": num_samples, "seed": seed, "batch_size": batch_size}
    return rank_by_label(loss_fn, secrets, labels, candidates, **how).bits


def rank_by_label(
    loss_fn: Callable[[np.ndarray, np.ndarray], Any],
    secrets: Sequence[str],
    labels: Sequence[int],
    candidates: Candidates | Lines,
    *,
    num_samples: int = 10_000,
    seed: int = 0,
    batch_size: int = 1000,
) -> Ranks:
    """The ranks that `classifier_exposure` reads; Args and Raises as there."""
    planted = candidates.index(secrets)
    others = _draw_others(candidates, planted, num_samples, seed)
    rows = _rows(candidates, np.concatenate([planted, others]))
    losses, ahead = np.empty(len(rows)), np.empty(len(planted), np.int64)
    groups = list(_by_length(rows, 1))
    for label in sorted(set(labels)):
        for chosen, tokens, _ in groups:
            targets = np.full(len(chosen), label, np.int32)
            found = _batched(loss_fn, batch_size, tokens, targets)
            losses[chosen] = _checked(found, len(chosen), "losses")
        mine = np.flatnonzero(np.asarray(labels) == label)
        reference = np.sort(losses[len(planted) :])
        ahead[mine] = np.searchsorted(reference, losses[mine], side="left")
    num = len(candidates) - len(planted)
    return Ranks(rank_bits(ahead, len(others)), ahead, len(others), num)


def log_perplexities(
    model_fn: LogitsFn | LineFn,
    indices: np.ndarray,
    candidates: Candidates | Lines,
    *,
    batch_size: int = 1000,
) -> np.ndarray:
    """−ln p of some candidates, float64 [n]: of their digits, or of their lines.

    Args:
      model_fn: see above.
      indices: places of different candidates, int [n]; see `Candidates.index`.
      candidates: their token ids.
      batch_size: prefixes or lines at a time.

    Raises:
      ValueError: an empty prefix, results of another shape, or NaN.
    """
    if isinstance(candidates, Lines):
        return line_log_perplexities(model_fn, candidates.rows(indices), batch_size=batch_size)
    return _digit_log_perplexities(model_fn, indices, candidates, batch_size)


def line_log_perplexities(
    line_fn: Any, rows: Sequence[np.ndarray], *, batch_size: int = 1000
) -> np.ndarray:
    """−ln p of lines after the tokens that all of them begin with, float64 [n].

    Lines are padded to few lengths, multiples of 8, and the longest.

    Args:
      line_fn: `(tokens int32 [B, L], weights float32 [B, L]) -> [B]`, see above.
      rows: token ids of each line, `<bos>` first.
      batch_size: lines at a time; fewer where they have more than 2¹⁶ tokens in all.

    Raises:
      ValueError: results that are NaN or not [B].
    """
    shared = 1 if len(rows) == 1 else _shared(rows)
    values = np.empty(len(rows))
    for chosen, tokens, lengths in _by_length(rows, _LENGTHS):
        places = np.arange(tokens.shape[1])
        weights = ((places >= shared) & (places < lengths[:, None])).astype(np.float32)
        size = max(1, min(batch_size, _TOKENS // tokens.shape[1]))
        values[chosen] = _checked(
            _batched(line_fn, size, tokens, weights), len(chosen), "log-perplexities of lines"
        )
    return values


def _shared(rows: Sequence[np.ndarray]) -> int:
    """How many tokens all rows begin with; at least 1, as nothing predicts the first."""
    first, last = min(rows, key=list), max(rows, key=list)
    same = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return max(1, next(same, len(first)))


def _by_length(
    rows: Sequence[np.ndarray], step: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(places, tokens [m, L], lengths [m]) of rows padded to one length, a multiple of `step`."""
    lengths = np.array([len(row) for row in rows])
    padded = np.minimum(-(-lengths // step) * step, lengths.max())
    for length in np.unique(padded):
        chosen = np.flatnonzero(padded == length)
        tokens = [np.pad(rows[int(i)], (0, length - lengths[i]), mode="edge") for i in chosen]
        yield chosen, np.stack(tokens), lengths[chosen]


def _rows(candidates: Candidates | Lines, indices: np.ndarray) -> Sequence[np.ndarray]:
    if isinstance(candidates, Lines):
        return candidates.rows(indices)
    return list(candidates.tokens(indices))


def _digit_log_perplexities(logits_fn, indices, candidates: Candidates, batch_size: int):
    """−ln p(digits | prefix); each prefix is computed once."""
    if not len(candidates.prefix):
        raise ValueError("candidates: have no prefix; give `context=[bos_id]` to make one")
    places, base = candidates.symbols.shape
    total = np.zeros(len(indices))
    for place in range(places):
        # What stands before this place, as a number, and the digit that comes next.
        before, digit = np.divmod(indices // base ** (places - 1 - place), base)
        known, row = np.unique(before, return_inverse=True)

        def surprise(tokens, symbols=candidates.symbols[place]):
            logits = logits_fn(tokens)
            if logits.ndim not in (2, 3) or len(logits) != len(tokens):
                raise ValueError(
                    f"logits_fn: returned {tuple(logits.shape)} for tokens {tokens.shape}; must "
                    "be [B, L, V], or [B, V] after the last token"
                )
            last = logits[:, -1] if logits.ndim == 3 else logits
            return _surprise(last if isinstance(last, jax.Array) else np.asarray(last), symbols)

        table = _batched(surprise, batch_size, candidates.beginnings(known, place))  # [m, A]
        total += _checked(table, len(known), "logits")[row, digit]
    return total


@jax.jit
def _surprise(logits, symbols):
    """−log p of some tokens, float32 [B, A], from logits [B, V]."""
    return -jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)[:, symbols]


def _draw_others(candidates: Candidates | Lines, planted, num: int, seed: int) -> np.ndarray:
    """Up to `num` different candidates beside the planted ones, in random order."""
    if num < 1:
        raise InputError("num_samples", num, "must be at least 1")
    size = _check_others(candidates, planted)
    rng = np.random.default_rng(seed)
    if size <= max(MAX_EXACT, 2 * num):
        return rng.permutation(np.delete(np.arange(len(candidates)), planted))[:num]
    taken = set(planted.tolist())
    others: list[int] = []
    while len(others) < num:
        index = int(rng.integers(len(candidates)))
        if index not in taken:
            taken.add(index)
            others.append(index)
    return np.array(others, np.int64)


def _check_others(candidates: Candidates | Lines, planted: np.ndarray) -> int:
    """How many candidates there are beside the planted ones."""
    if not len(planted) or len(planted) >= len(candidates):
        allowed = f"must be at least 1 and fewer than the {len(candidates):,} candidates"
        raise InputError("secrets", len(planted), allowed)
    return len(candidates) - len(planted)


def _batched(function, batch_size: int, *arrays: np.ndarray) -> np.ndarray:
    """A function of rows applied to equal batches; the last one repeats its last row."""
    num = len(arrays[0])
    size = min(batch_size, num)
    parts = []
    for start in range(0, num, size):
        rows = np.minimum(np.arange(start, start + size), num - 1)
        parts.append(function(*(array[rows] for array in arrays)))
    return np.concatenate([np.asarray(part) for part in parts])[:num]


def _checked(values: np.ndarray, num: int, what: str) -> np.ndarray:
    """Float64 values of `num` rows; a diverged model is no model that forgot."""
    values = np.asarray(values, np.float64)
    if len(values) != num or np.any(np.isnan(values)):
        raise ValueError(f"{what}: got shape {values.shape}, with NaN or not one row a candidate")
    return values
