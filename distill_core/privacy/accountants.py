"""What repeated Gaussian noise costs in (ε, δ), and how much noise a budget needs.

Every ε returned is a finite upper bound; arguments for which none can be computed are refused.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from distill_core.config import InputError
from distill_core.privacy import pld

_TOLERANCE = 1e-3  # of calibration
# Arguments beyond these are refused.
_RATIOS = (1e-100, 1e9)  # Δ/σ, also of everything together
_EPSILONS = (1e-6, 1e9)  # that noise is calibrated for
_SAMPLED_EPSILON, _SAMPLED_DELTA, _LEAST_RATE = 1e4, 0.5, 1e-12
_MOST_COUNT, _MOST_SAMPLED = 10**15, 10**7
_MOST_AFTER_SPENT = 30  # times the noise without: more is for what calibration left over


class Noised(NamedTuple):
    """`count` vectors released under Gaussian noise of one strength.

    Attributes:
      ratio: Δ/σ, from 1e-100 to 1e9: L2 sensitivity of a vector over the noise's standard
        deviation. Δ says what neighbours are, and so what is protected.
      count: how many, at least 1.
      sampling_rate: below 1 for sums over Poisson samples of the records, as in DP-SGD; then Δ is
        how far replacing one record by an *empty* one moves a sum, and ε is for such neighbours.
    """

    ratio: float
    count: int = 1
    sampling_rate: float = 1.0


def calibrate_gaussian(epsilon: float, delta: float, count: int) -> float:
    """The noise multiplier σ/Δ with which `count` Gaussian mechanisms spend exactly (ε, δ).

    Raises InputError outside ε from 1e-6 to 1e9, δ in (0, 1) and count of at least 1.
    """
    _check_count(count)
    return math.sqrt(count) / gaussian_mu(epsilon, delta)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """μ = Δ/σ of the one Gaussian mechanism that spends exactly (ε, δ).

    Several together may have Σ countᵢ·(Δᵢ/σᵢ)² = μ² (`composed_epsilon`). Raises InputError
    outside ε from 1e-6 to 1e9 and δ in (0, 1).

    >>> round(gaussian_mu(1.0, 1e-5), 4)
    0.2681
    """
    from dp_accounting import gaussian_mechanism  # brings in SciPy

    _check_budget(epsilon, delta)
    with np.errstate(divide="ignore"):  # log 0 while it searches
        mu = 1.0 / float(gaussian_mechanism.get_sigma_gaussian(epsilon, delta))
    mu *= 1 - 1e-9  # square roots and quotients around it round
    while _gaussian_epsilon(mu, delta) > epsilon:
        mu *= 1 - 1e-8
    return mu


def composed_epsilon(noised: Sequence[Noised], delta: float, *, replace_one: bool = False) -> float:
    """ε at δ of all mechanisms composed, in any order, adaptive queries included.

    Without sampling it is exact: together they are one Gaussian mechanism of μ = √Σ countᵢ·ratioᵢ²
    (Dong et al., "Gaussian Differential Privacy", 2019, Corollary 3.3; its exact δ(ε): Balle and
    Wang, 2018). With Poisson sampling it comes from privacy loss distributions, rounded so that ε
    is an upper bound, mostly by about 0.1% (Koskela et al., 2020; Doroshenko et al., "Connect the
    Dots", 2022, as in dp_accounting), and is never above the same without sampling.

    Guaranteed if each record enters each batch independently with the stated probability, and noise
    strengths and rates are fixed before any answer is seen (choosing them by the answers needs a
    privacy filter). With a sampling rate below 1 anywhere, all ratios must be for neighbours of
    which one has an empty record in place of the other's.

    Args:
      noised: what was released; empty costs 0.
      delta: δ in (0, 1); with sampling at most 0.5 and not below 1e-12, or 1e-15 for each sampled
        vector, which is what these distributions resolve.
      replace_one: ε for neighbours that differ in a record, each of its versions at most Δ from an
        empty one: 2Δ without sampling, and with it the two mixtures of that.

    Raises:
      InputError: an argument outside its range.
    """
    _check_all(noised, delta)
    if not noised:
        return 0.0
    mu = (1 + replace_one) * _unsampled_mu(noised)
    if mu > _RATIOS[1]:
        raise InputError("ratio", mu, f"Δ/σ of everything together: at most {_RATIOS[1]:g}")
    unsampled = _gaussian_epsilon(mu, delta)
    if all(each.sampling_rate == 1.0 for each in noised):
        return unsampled
    return pld.epsilon(noised, delta, most=unsampled, replace_one=replace_one)


def calibrate(
    noised: Sequence[Noised], epsilon: float, delta: float, *, spent: Sequence[Noised] = ()
) -> float:
    """The factor on every σ of `noised` with which all of it, after `spent`, costs (ε, δ).

    Ratios given as Δ alone (σ = 1) make the factor σ itself. Never above ε; below by at most 0.5%
    (without sampling: exact). A million sampled steps take some seconds, 100,000 less than one;
    with `spent` about a dozen times as long.

    Args:
      noised: what is to be released, at least one mechanism.
      epsilon: ε from 1e-6 to 1e9, of everything together.
      delta: δ in (0, 1).
      spent: what was released before; its noise stays as it is.

    Raises:
      InputError: an argument outside its range, or `spent` leaves nothing of ε, or so little that
        the factor is more than 30 times what it is without `spent`.
    """
    _check_budget(epsilon, delta)
    _check_all([*noised, *spent], delta)
    if not noised:
        raise InputError("noised", (), "needs at least one mechanism to calibrate")
    before = composed_epsilon(spent, delta)
    if before >= epsilon:
        raise InputError("epsilon", epsilon, f"must be above the {before:.6g} that is spent")
    alone = _calibrated(noised, epsilon, delta)
    if not spent:
        return alone

    def cost(factor: float) -> float:
        scaled = [each._replace(ratio=each.ratio / factor) for each in noised]
        return composed_epsilon([*scaled, *spent], delta)

    low, high = alone, _MOST_AFTER_SPENT * alone
    if cost(high) > epsilon:
        allowed = f"is all but spent before ({before:.6g}): take a larger one, or leave more of it"
        raise InputError("epsilon", epsilon, allowed)
    if all(each.sampling_rate == 1.0 for each in [*noised, *spent]):
        mu, spent_mu = gaussian_mu(epsilon, delta), _unsampled_mu(spent)
        return _unsampled_mu(noised) / math.sqrt((mu - spent_mu) * (mu + spent_mu))
    while high > low * (1 + _TOLERANCE):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) > epsilon else (low, middle)
    return high


def _calibrated(noised: Sequence[Noised], epsilon: float, delta: float) -> float:
    """`calibrate` where nothing was spent before."""
    mu = gaussian_mu(epsilon, delta)
    if all(each.sampling_rate == 1.0 for each in noised):
        return _unsampled_mu(noised) / mu

    if epsilon > _SAMPLED_EPSILON:
        raise InputError("epsilon", epsilon, f"must be at most {_SAMPLED_EPSILON:g} with sampling")
    drawn = math.fsum(each.sampling_rate * each.count for each in noised)
    if drawn <= delta:
        allowed = "is no less than the chance that a record is drawn at all: any noise gives it"
        raise InputError("delta", delta, allowed)

    def scaled(factor: float) -> list[Noised]:
        return [each._replace(ratio=each.ratio / factor) for each in noised]

    def coarse(factor: float) -> float:
        found = scaled(factor)
        mu = _unsampled_mu(found)
        most = _gaussian_epsilon(mu, delta) if mu <= _RATIOS[1] else math.inf
        return pld.epsilon_near(found, delta, most=most, near=epsilon)

    # With many steps sampling is Gaussian, too, nearly: μ² = Σ count·rate²·(e^(ratio²) − 1).
    largest = max(each.ratio for each in noised)
    weight = math.fsum(n * (q * r / largest) ** 2 for r, n, q in noised)
    start = largest / math.sqrt(math.log1p(mu**2 / weight))
    factor = _least(coarse, epsilon, start=start)
    while composed_epsilon(scaled(factor), delta) > epsilon:  # on the grid that fits this factor
        factor *= 1 + _TOLERANCE / 4
    return factor


def round_up(noise_multiplier: float) -> float:
    """Rounded up to six digits, lest another machine's last bits make it another run.

    >>> round_up(1.2345678)
    1.23457
    """
    digits = 5 - math.floor(math.log10(noise_multiplier))
    return math.ceil(noise_multiplier * 10**digits) / 10**digits


def _least(cost: Callable[[float], float], epsilon: float, *, start: float) -> float:
    """About the least factor whose cost, falling in it, is at most ε and not 0.1% below."""
    low, above, high, below = 0.0, math.inf, math.inf, 0.0  # costs more than ε; costs at most ε
    factor = start
    while high > low * (1 + 1e-5):
        found = cost(factor)
        if found > epsilon:
            low, above = factor, found
        elif found >= (1 - _TOLERANCE) * epsilon:
            return factor
        else:
            high, below = factor, found
        # ε is about a power of the factor.
        if high == math.inf:
            factor *= min(max(above / epsilon, 1 + _TOLERANCE), 4.0)
        elif low == 0.0:
            factor /= min(max(epsilon / below, 1 + _TOLERANCE), 4.0) if below > 0.0 else 4.0
        else:
            share = 0.5
            if below > 0.0:
                share = math.log(below / (1 - _TOLERANCE / 2) / epsilon) / math.log(below / above)
            factor = high * (low / high) ** min(max(share, 0.05), 0.95)
    return high


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """ε of one Gaussian mechanism of ratio μ, or above it by less than 1e-6 of it."""
    from dp_accounting import gaussian_mechanism
    from scipy import special

    if delta >= math.erf(mu / math.sqrt(8.0)):  # their total variation: no likelihoods to compare
        return 0.0
    # The one term of δ(ε) that is above 0: always above, and nearly exact where μ is large.
    most = max(0.0, mu * (mu / 2 - float(special.ndtri_exp(math.log(delta)))))
    if mu < 1e-7:  # where float64 loses the difference of both terms
        return most
    with np.errstate(divide="ignore"):
        return min(most, float(gaussian_mechanism.get_epsilon_gaussian(1.0 / mu, delta)))


def _unsampled_mu(noised: Sequence[Noised]) -> float:
    return math.sqrt(math.fsum(each.count * each.ratio**2 for each in noised))


def _check_range(name: str, value: float, allowed: tuple[float, float]):
    least, most = allowed
    if isinstance(value, bool | str) or not least <= value <= most:
        raise InputError(name, value, f"must be from {least:g} to {most:g}")


def _check_budget(epsilon: float, delta: float):
    _check_range("epsilon", epsilon, _EPSILONS)
    _check_delta(delta)


def _check_delta(delta: float):
    if isinstance(delta, bool | str) or not 0.0 < delta < 1.0:
        raise InputError("delta", delta, "must be in (0, 1)")


def _check_count(count: int):
    if isinstance(count, bool | str) or not 1 <= count <= _MOST_COUNT or count != int(count):
        raise InputError("count", count, f"must be an integer in [1, {_MOST_COUNT:g}]")


def _check_all(noised: Sequence[Noised], delta: float):
    for each in noised:
        _check_range("ratio", each.ratio, _RATIOS)
        _check_count(each.count)
        _check_range("sampling_rate", each.sampling_rate, (_LEAST_RATE, 1.0))
    _check_delta(delta)
    sampled = sum(each.count for each in noised if each.sampling_rate < 1.0)
    if sampled > _MOST_SAMPLED:
        raise InputError("count", sampled, f"must be at most {_MOST_SAMPLED:g} with sampling")
    least, most = pld.resolution(sampled), _SAMPLED_DELTA
    if sampled and not least <= delta <= most:
        allowed = f"must be from {least:g} to {most:g}: what {sampled:,} sampled steps resolve"
        raise InputError("delta", delta, allowed)
