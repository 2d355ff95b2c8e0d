"""Exposure: how many bits of a secret a model gives away, and how to read such numbers.

The estimators that ask a model are in `swingdistill/canaries/estimators.py`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.config import InputError

LEAST_FITTED = 5000  # values to which a distribution is fitted; from a few the fit gives any tail
CONFIDENCE = 0.95  # of bounds
LEVEL = 0.01  # p-values below it are called a leak


def exposure(secret_log_perplexity, reference_log_perplexities):
    """Bits of a secret that a model gives away: log₂|R| − log₂ rank.

    The rank is the secret's place, from 1, by log-perplexity among R, the secret and the other
    candidates; |R| = N + 1. A secret that was not learnt has a uniform rank and 1/ln 2 ≈ 1.44 bits
    on average, not 0; the most is log₂(N + 1), for a secret that every other candidate is behind.

    Candidates that tie with the secret rank behind it, so exposure is never understated: a model
    that finds all candidates equally likely gets the most.

    Source: Carlini et al., "The Secret Sharer", USENIX Security 2019, definition 4.

    Args:
      secret_log_perplexity: float `[...]`, −log p(secret), in any base.
      reference_log_perplexities: float `[N]`, or `[..., N]` for references of each secret's own;
        the other candidates, without the secret and without other secrets that were planted.

    Returns:
      Bits `[...]`: float32 and jit-safe for JAX arrays, float64 for NumPy's and Python's; NaN where
      the secret or one of its references is NaN.

    Raises:
      ValueError: the shapes do not match, or there is no reference.

    >>> print(exposure(1.5, [1.0, 2.0, 3.0]))
    1.0
    """
    given = (secret_log_perplexity, reference_log_perplexities)
    xp: Any = jnp if any(isinstance(array, jax.Array) for array in given) else np
    secret, reference = xp.asarray(given[0]), xp.asarray(given[1])
    leading = reference.shape[:-1]
    if reference.ndim < 1 or reference.shape[-1] < 1 or (leading and leading != secret.shape):
        raise ValueError(
            f"reference_log_perplexities: got shape {reference.shape}; must be [N] or "
            f"[..., N] for secrets of the shape {secret.shape}, N at least 1"
        )
    num = reference.shape[-1]
    if not leading:
        reference = reference.reshape((1,) * secret.ndim + (num,))
    rank = 1.0 + xp.sum(reference < secret[..., None], axis=-1)
    unknown = xp.isnan(secret) | xp.any(xp.isnan(reference), axis=-1)
    return xp.where(unknown, xp.nan, math.log2(num + 1) - xp.log2(rank))[()]


def skew_normal_exposure(
    secret_log_perplexity, reference_log_perplexities, *, num_candidates: float
) -> np.ndarray:
    """Exposure beyond the number of references: −log₂ of a fitted distribution's tail.

    A skew normal distribution is fitted to the references by maximum likelihood; its cumulative
    distribution at the secret stands for rank/|R|. The fit is an assumption, tried on the
    references themselves: what it says of them may differ from their shares by 0.03 + 1/√N at most,
    and by 1 + 3/√k bits at the k-th lowest, for k = N/40 and k = 10. Beyond them nothing tries it:
    compare with exact ranks where they can be had.

    Source: Carlini et al., 2019, section 4.3. That the value is cut at log₂ `num_candidates`, which
    no rank can exceed, and the two bounds are ours.

    Args:
      secret_log_perplexity: float `[...]`.
      reference_log_perplexities: float `[N]`, finite, N at least `LEAST_FITTED`.
      num_candidates: how many numbers the secret could have been.

    Returns:
      float64 `[...]`, bits.

    Raises:
      InputError: too few references, some that are not finite or all equal, or no fit.
    """
    from scipy import stats  # slow to import

    reference = np.sort(np.asarray(reference_log_perplexities, np.float64).ravel())
    num = len(reference)
    if num < LEAST_FITTED or not np.all(np.isfinite(reference)) or np.ptp(reference) == 0:
        allowed = (
            f"a skew normal distribution is fitted to at least {LEAST_FITTED} finite values that "
            "are not all equal"
        )
        raise InputError("reference_log_perplexities", num, allowed)
    with np.errstate(all="ignore"):  # the search for the maximum tries impossible values
        shape, location, scale = stats.skewnorm.fit(reference)
        fitted = stats.skewnorm(shape, loc=location, scale=scale)
        tail = fitted.cdf(np.asarray(secret_log_perplexity, np.float64))
        said = fitted.cdf(reference)
    shares = np.arange(1, num + 1) / num
    apart = np.max(np.maximum(shares - said, said - shares + 1 / num))
    bits_apart = {k: abs(math.log2(max(said[k - 1], 1e-300) * num / k)) for k in (num // 40, 10)}
    fits = all(bits <= 1 + 3 * k**-0.5 for k, bits in bits_apart.items())
    if not (apart <= 0.03 + num**-0.5 and fits):
        listed = " and ".join(f"{bits:.1f} at the lowest {k}" for k, bits in bits_apart.items())
        allowed = (
            f"no skew normal distribution fits them (off by {apart:.3f} of the values, and by "
            f"bits of {listed}): their tail would be a guess; rank among all candidates or a "
            "sample (estimator exact or sampled)"
        )
        raise InputError("reference_log_perplexities", num, allowed)
    return -np.log2(np.clip(tail, 1 / num_candidates, 1))


def rank_bounds(
    ahead: np.ndarray, asked: int, others: int, *, confidence: float = CONFIDENCE
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of exposure among all candidates, from ranks among a sample of them.

    `ahead` of the `asked` candidates are likelier than the secret; the share of all that are has
    the interval of Clopper and Pearson, which is a little too wide for a sample without repetition
    (its tails are below the binomial's: Hoeffding, 1963; Uhlmann, 1966). Where all were asked, both
    bounds are the exposure. Of a secret that is ahead of all n sampled, n not too few, exposure is
    at least log₂ n − 1.9 bits and may be log₂ of all candidates.

    Args:
      ahead: integers `[...]`, 0 to `asked`.
      asked: n, candidates sampled uniformly without repetition, the secret not among them.
      others: N, all candidates but the secret (and but other planted ones).
      confidence: probability that both bounds hold, for each secret by itself.

    Returns:
      (lower, upper), float64 `[...]`, bits.
    """
    from scipy import special

    ahead = np.asarray(ahead, np.float64)
    miss, behind = (1 - confidence) / 2, asked - ahead
    # At an end the bound is the end itself, and the quantile's parameter is 0.
    least = np.where(ahead > 0, special.betaincinv(np.maximum(ahead, 1), behind + 1, miss), 0.0)
    most = np.where(behind > 0, special.betaincinv(ahead + 1, np.maximum(behind, 1), 1 - miss), 1.0)
    fewest = np.clip(np.floor(least * others), ahead, others - behind)
    largest = np.clip(np.ceil(most * others), ahead, others - behind)
    total = math.log2(others + 1)
    return total - np.log2(1 + largest), total - np.log2(1 + fewest)


def floor_bits() -> float:
    """Mean exposure of a secret that was not learnt, 1/ln 2 ≈ 1.44 bits.

    A uniform rank has −log₂(rank/|R|) distributed exponentially with that mean (for large |R|).
    """
    return 1 / math.log(2)


def exposure_reduction(kd, swing, *, corrected: bool = True):
    """The share of plain distillation's exposure that a defence takes away.

    Corrected, (kd − swing)/(kd − floor): 1 where the secrets are as if never seen; chance can
    overshoot it. Raw, (kd − swing)/kd: at most 0.93 on average against 20 bits, since the floor
    counts as a leak. Report both; our reconstruction.

    Args:
      kd: mean exposure of the student of plain distillation, bits, a scalar or `[...]`.
      swing: of the defended student, of the same shape.
      corrected: measures both from `floor_bits()`.

    Returns:
      float64 `[...]`; NaN where `kd` is not above the floor: there is nothing to reduce.
    """
    kd, swing = np.asarray(kd, np.float64), np.asarray(swing, np.float64)
    floor = floor_bits() if corrected else 0.0
    leak = np.where(kd > floor, kd - floor, np.nan)
    return ((kd - swing) / leak)[()]


def worst_allowed(num_secrets: int) -> float:
    """Bits that the worst of n secrets exceeds once in a hundred if none was learnt: log₂ n + 6.6.

    A uniform rank exceeds x bits with probability 2⁻ˣ, the worst of n with at most n·2⁻ˣ.
    """
    return math.log2(num_secrets) + 6.6


def rank_test(exposures: Sequence[float] | np.ndarray, num_candidates: int) -> float:
    """Probability of so much exposure, summed over the set, if no secret had been learnt.

    One-sided. A uniform rank's exposure times ln 2 is exponential with mean 1, so the sum over n
    secrets follows Gamma(n, 1), and the p-value is its upper tail. Ranks are whole numbers, which
    makes their exposure a little smaller than that: the test never rejects too often. It sees a
    small leak in many secrets; `worst_allowed` sees a large one in a single secret.

    The secrets must have been drawn uniformly and anew for each model in the set: exposures of the
    same secrets in several models are not independent. Our reconstruction.

    Args:
      exposures: bits `[n]`, of ranks (not extrapolated).
      num_candidates: |R|, how many candidates the ranks are among.

    Returns:
      The p-value.

    Raises:
      ValueError: no exposures, or one outside 0 to log₂ `num_candidates`.
    """
    from scipy import special

    bits = np.asarray(exposures, np.float64).ravel()
    most = math.log2(num_candidates)
    if not (len(bits) and np.all(bits >= -1e-4) and np.all(bits <= most + 1e-4)):
        raise ValueError(
            f"exposures: got {np.array2string(bits, threshold=8)}; must be bits in 0 to "
            f"{most:.2f}, those of ranks among {num_candidates:,}"
        )
    return float(special.gammaincc(len(bits), math.log(2) * bits.sum()))


def leak_test(
    exposures: Sequence[float] | np.ndarray, num_candidates: int, *, related: bool = False
) -> float:
    """p-value that sees a small leak in many secrets and a large one in a single secret.

    Twice the lower p-value of `rank_test` and of the worst secret, n·2⁻ʷᵒʳˢᵗ (Bonferroni); of one
    secret its rank/|R|. Where secrets are `related`, such as telephone numbers of one exchange,
    whose ranks rise and fall together, the worst alone counts. Args, Raises and assumptions
    otherwise as `rank_test`. Our reconstruction.

    >>> leak_test([0.0, 0.5, 13.0], 10**4) < 0.01 < rank_test([0.0, 0.5, 7.0], 10**4)
    True
    """
    bits = np.asarray(exposures, np.float64).ravel()
    together = rank_test(bits, num_candidates)
    if len(bits) == 1:
        return together
    if related:
        return min(1.0, len(bits) * 2.0 ** -float(bits.max()))
    return min(1.0, 2 * together, 2 * len(bits) * 2.0 ** -float(bits.max()))


def unnoticed(num_secrets: int, *, related: bool = False) -> tuple[float, float]:
    """Bits that `leak_test` calls chance at `LEVEL`: (of every secret alike, of one of them).

    >>> print("%.1f %.1f" % unnoticed(1), "%.1f %.1f" % unnoticed(24))
    6.6 6.6 2.3 12.2
    """
    from scipy import special

    if related:
        alone = math.log2(num_secrets / LEVEL)
        return alone, alone
    level = LEVEL if num_secrets == 1 else LEVEL / 2
    alike = special.gammainccinv(num_secrets, level) / (num_secrets * math.log(2))
    return float(alike), math.log2(num_secrets / level)


def verdict(
    exposures: Sequence[float] | np.ndarray, num_candidates: int, *, related: bool = False
) -> tuple[float, str]:
    """(p-value of `leak_test`, what it says in words, with what would have gone unnoticed).

    >>> print(verdict([3.1, 0.2, 1.5], 1000)[1])
    no leak seen (p 0.7): 4.5 bits in each of the 3 secrets, or 9.2 in one, would go unnoticed
    """
    num, most = np.size(exposures), math.log2(num_candidates)
    p = leak_test(exposures, num_candidates, related=related)
    if p < LEVEL:
        return p, f"leaks (p {p:.1e})" if p > 0 else "leaks (p below 1e-300)"
    alike, alone = unnoticed(num, related=related)
    if min(alike, alone) > most:
        return p, (
            f"cannot tell (p {p:.2g}): ranks among {num_candidates:,} show {most:.1f} bits at most "
            f"in each of {num}, and chance has {min(alike, alone):.1f} once in a hundred"
        )
    worst = f", or {alone:.1f} in one," if num > 1 and alone <= most and not related else ""
    some = f"each of the {num} secrets" if num > 1 else "it"
    some = f"one of the {num} secrets" if num > 1 and related else some
    return p, f"no leak seen (p {p:.2g}): {alike:.1f} bits in {some}{worst} would go unnoticed"
