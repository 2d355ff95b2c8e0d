"""A model's exposure of planted secrets: exact, sampled, extrapolated, and a classifier's.

`logits_fn(tokens int32 [B, L])` is any causal language model: it returns logits `[B, L, V]`, or
`[B, V]` after the last token alone (which spares most of the work where the vocabulary is large).
It gets NumPy arrays of at most D different lengths and returns anything that NumPy can read, so a
network of another framework will do. Give it jitted, with the weights as arguments of what is
jitted, for example `functools.partial(jax.jit(apply), variables)`.

Source: Carlini et al., "The Secret Sharer", USENIX Security 2019. The prefix sharing, and that the
other planted secrets are no candidates, are ours.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.config import InputError
from swingdistill.canaries.exposure import LEAST_FITTED, exposure, skew_normal_exposure
from swingdistill.canaries.secrets import Candidates

LogitsFn = Callable[[np.ndarray], Any]
MAX_EXACT = 10**7


def exact_exposure(
    logits_fn: LogitsFn, secrets: Sequence[str], candidates: Candidates, *, batch_size: int = 1000
) -> np.ndarray:
    """Exposure of secrets by their ranks among all candidates.

    All numbers of six digits take 1 + 10 + … + 10⁵ = 111,111 prefixes for all secrets together:
    the log-probabilities of the next digit after each are shared by the candidates that begin so.
    Only the digits count; what follows them in the line does not.

    Args:
      logits_fn: see above.
      secrets: all those planted in this format; each is ranked without the others.
      candidates: from `swingdistill.canaries.secrets.candidates`.
      batch_size: prefixes at a time.

    Returns:
      float64 [n], bits, at most log₂(number of candidates − n + 1).

    Raises:
      InputError: a secret that is no candidate or is there twice, more than 10⁷ candidates, or no
        candidate beside the secrets.
      ValueError: logits of another shape, or NaN.
    """
    planted = candidates.index(secrets)
    size = len(candidates)
    if size > MAX_EXACT:
        allowed = f"at most {MAX_EXACT:,} are ranked exactly; use sampled_exposure"
        raise InputError("candidates", size, allowed)
    _check_others(candidates, planted)
    values = log_perplexities(logits_fn, np.arange(size), candidates, batch_size=batch_size)
    # As `exposure` of each secret, in the time of one sort.
    others = np.sort(np.delete(values, planted))
    rank = 1 + np.searchsorted(others, values[planted], side="left")
    return np.log2(len(others) + 1) - np.log2(rank)


def sampled_exposure(
    logits_fn: LogitsFn,
    secrets: Sequence[str],
    candidates: Candidates,
    *,
    num_samples: int = 10_000,
    seed: int = 0,
    batch_size: int = 1000,
) -> np.ndarray:
    """Exposure of secrets by their ranks among random candidates: at most log₂(num_samples + 1).

    For spaces too large to go through. The sample is without repetition and without the secrets;
    where it would exceed the candidates, it is all of them, and the exposure exact.

    Args, Raises: as `exact_exposure`; `num_samples` candidates are drawn with `seed`.

    Returns:
      float64 [n], bits.
    """
    values, reference = _sampled(logits_fn, secrets, candidates, num_samples, seed, batch_size)
    return np.asarray(exposure(values, reference))


def extrapolated_exposure(
    logits_fn: LogitsFn,
    secrets: Sequence[str],
    candidates: Candidates,
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
    size = _check_others(candidates, candidates.index(secrets))
    if min(num_samples, size) < LEAST_FITTED:
        allowed = (
            f"a distribution is fitted to at least {LEAST_FITTED} sampled candidates"
            if size >= LEAST_FITTED
            else f"there are {size} other candidates, and a distribution is fitted to at least "
            f"{LEAST_FITTED}; rank among all of them (estimator exact)"
        )
        raise InputError("num_samples", num_samples, allowed)
    values, reference = _sampled(logits_fn, secrets, candidates, num_samples, seed, batch_size)
    return skew_normal_exposure(values, reference, num_candidates=len(candidates))


def classifier_exposure(
    loss_fn: Callable[[np.ndarray, np.ndarray], Any],
    secrets: Sequence[str],
    labels: Sequence[int],
    candidates: Candidates,
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
        lines, suffix included, all of one length.
      secrets: as in `exact_exposure`.
      labels: each canary's label, [n].
      candidates, num_samples, seed, batch_size: as in `sampled_exposure`.

    Returns:
      float64 [n], bits, at most log₂(num_samples + 1).

    Raises:
      InputError: as `exact_exposure`.
      ValueError: losses that are NaN or not [B].
    """
    planted = candidates.index(secrets)
    others = _draw_others(candidates, planted, num_samples, seed)

    def losses(indices, label):
        tokens = candidates.tokens(indices)
        targets = np.full(len(indices), label, np.int32)
        return _checked(_batched(loss_fn, batch_size, tokens, targets), len(indices), "losses")

    bits = np.empty(len(planted))
    for label in sorted(set(labels)):
        mine = np.flatnonzero(np.asarray(labels) == label)
        bits[mine] = exposure(losses(planted[mine], label), losses(others, label))
    return bits


def log_perplexities(
    logits_fn: LogitsFn, indices: np.ndarray, candidates: Candidates, *, batch_size: int = 1000
) -> np.ndarray:
    """−ln p(digits | prefix) of some candidates, float64 [n]; each prefix is computed once.

    Args:
      logits_fn: see above.
      indices: places of candidates, int [n]; see `Candidates.index`.
      candidates: their token ids.
      batch_size: prefixes at a time.

    Raises:
      ValueError: an empty prefix, logits of another shape, or NaN.
    """
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


def _sampled(logits_fn, secrets, candidates, num_samples, seed, batch_size):
    """Log-perplexities of the secrets and of random other candidates."""
    planted = candidates.index(secrets)
    others = _draw_others(candidates, planted, num_samples, seed)
    both = np.concatenate([planted, others])
    values = log_perplexities(logits_fn, both, candidates, batch_size=batch_size)
    return values[: len(planted)], values[len(planted) :]


def _draw_others(candidates: Candidates, planted, num: int, seed: int) -> np.ndarray:
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


def _check_others(candidates: Candidates, planted: np.ndarray) -> int:
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
