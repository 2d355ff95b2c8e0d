"""What repeated Gaussian noise costs in (ε, δ), and how much of it a budget needs."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from distill_core.config import InputError

# Of ε, where there is no formula and a privacy loss is discretised: always on the safe side.
_ROUNDING = 2e-4
_TOLERANCE = 1e-3  # of calibration


class Noised(NamedTuple):
    """`count` vectors that leave under Gaussian noise of one strength.

    Attributes:
      ratio: Δ/σ, above 0: the L2 sensitivity of a vector over the noise's standard deviation.
      count: how many, at least 1.
      sampling_rate: below 1 for sums over Poisson samples of the records, as in DP-SGD; then Δ is
        what one record moves by being replaced by an *empty* one, and ε is for such neighbours.
    """

    ratio: float
    count: int = 1
    sampling_rate: float = 1.0


def gaussian_epsilon(sensitivity_over_std: float, count: int, delta: float) -> float:
    """ε of `count` Gaussian mechanisms composed, exactly.

    Each adds noise of standard deviation σ to a vector of L2 sensitivity Δ. Together they are one
    Gaussian mechanism of ratio √count·Δ/σ, adaptively chosen queries included (Dong et al.,
    "Gaussian Differential Privacy", 2019, Corollary 3.3; its exact δ(ε): Balle and Wang, 2018).

    What is a neighbour, and so what is protected, is the caller's to say: Δ bounds the change of a
    vector between neighbours.

    Args:
      sensitivity_over_std: Δ/σ, above 0.
      count: how many vectors are noised, at least 1.
      delta: δ in (0, 1).

    Returns:
      ε, at least 0.

    Raises:
      InputError: an argument outside its range.
    """
    from dp_accounting import gaussian_mechanism  # brings in SciPy

    _check("sensitivity_over_std", sensitivity_over_std)
    _check_counted(count, delta)
    std = 1.0 / (sensitivity_over_std * math.sqrt(count))
    with np.errstate(divide="ignore"):  # log 0 while it searches
        return float(gaussian_mechanism.get_epsilon_gaussian(std, delta))


def calibrate_gaussian(epsilon: float, delta: float, count: int) -> float:
    """The noise multiplier σ/Δ with which `count` Gaussian mechanisms spend exactly (ε, δ).

    The inverse of `gaussian_epsilon`.

    Args:
      epsilon: ε above 0, of all of them together.
      delta: δ in (0, 1).
      count: how many vectors are noised, at least 1.

    Returns:
      σ/Δ for each.

    Raises:
      InputError: an argument outside its range.
    """
    _check_counted(count, delta)
    return math.sqrt(count) / gaussian_mu(epsilon, delta)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """μ = Δ/σ of the one Gaussian mechanism that spends exactly (ε, δ).

    Several together may have Σ countᵢ·(Δᵢ/σᵢ)² = μ² (`composed_mu`). Raises InputError outside
    ε > 0 and δ in (0, 1).

    >>> round(gaussian_mu(1.0, 1e-5), 4)
    0.2681
    """
    from dp_accounting import gaussian_mechanism

    _check("epsilon", epsilon)
    _check_counted(1, delta)
    with np.errstate(divide="ignore"):
        return 1.0 / float(gaussian_mechanism.get_sigma_gaussian(epsilon, delta))


def composed_mu(noised: Sequence[Noised]) -> float:
    """μ of Gaussian mechanisms of any strengths composed: √Σ countᵢ·ratioᵢ²; 0 for none.

    Exact; order does not matter, and queries may be adaptive, but each strength is fixed before any
    answer is seen (choosing it by the answers needs a privacy filter). Source: Dong et al., 2019.
    No amplification by sampling: raises InputError on a sampling rate below 1.
    """
    for each in noised:
        _check_noised(each)
        if each.sampling_rate < 1.0:
            raise InputError("sampling_rate", each.sampling_rate, "μ composes without sampling")
    return math.sqrt(math.fsum(each.count * each.ratio**2 for each in noised))


def composed_epsilon(noised: Sequence[Noised], delta: float, *, replace_one: bool = False) -> float:
    """ε at δ of everything together.

    Exact without sampling (`composed_mu`). With Poisson sampling from privacy loss distributions,
    rounded so that ε is an upper bound, by about 0.1% (Koskela et al., 2020; Doroshenko et al.,
    "Connect the Dots", 2022, as in dp_accounting).

    Guaranteed if each record enters each batch independently with the stated probability, and noise
    strengths and rates are fixed beforehand. With a sampling rate below 1 anywhere, all ratios must
    be for neighbours of which one has an empty record in place of the other's.

    Args:
      noised: what left; empty costs 0.
      delta: δ in (0, 1).
      replace_one: ε for neighbours that differ in a record, each of its versions at most Δ from an
        empty one: 2Δ without sampling, and with it the two mixtures of that.

    Raises:
      InputError: an argument outside its range.
    """
    for each in noised:
        _check_noised(each)
    _check_counted(1, delta)
    if not noised:
        return 0.0
    if all(each.sampling_rate == 1.0 for each in noised):
        return gaussian_epsilon((1 + replace_one) * composed_mu(noised), 1, delta)
    interval = _interval(noised)
    epsilon = _pld_epsilon(noised, delta, interval, replace_one)
    sampled = sum(each.count for each in noised if each.sampling_rate < 1.0)
    least = interval / 20  # finer takes minutes
    while epsilon > 0.0:
        # Measured: rounding adds up to 0.75 · count · interval²; more than that below ε = 0.2.
        needed = max(least, math.sqrt(_ROUNDING * epsilon / sampled))
        if needed > 0.9 * interval:
            break
        interval = needed
        epsilon = min(epsilon, _pld_epsilon(noised, delta, interval, replace_one))
    return epsilon


def poisson_gaussian_epsilon(
    sensitivity_over_std: float, sampling_rate: float, count: int, delta: float
) -> float:
    """ε of DP-SGD: `count` steps of noise on sums over Poisson samples; see `composed_epsilon`.

    Args:
      sensitivity_over_std: Δ/σ above 0; Δ is the clipping norm (one record zeroed out).
      sampling_rate: probability in (0, 1] that a record is in a batch.
      count: steps, at least 1.
      delta: δ in (0, 1).

    Raises:
      InputError: an argument outside its range.
    """
    _check("sensitivity_over_std", sensitivity_over_std)
    return composed_epsilon([Noised(sensitivity_over_std, count, sampling_rate)], delta)


def calibrate_poisson_gaussian(
    epsilon: float, delta: float, sampling_rate: float, count: int
) -> float:
    """The noise multiplier σ/Δ with which `count` steps of DP-SGD spend (ε, δ), or up to 0.1% less.

    The inverse of `poisson_gaussian_epsilon`, whose arguments these are. Raises InputError.
    """
    return calibrate([Noised(1.0, count, sampling_rate)], epsilon, delta)


def calibrate(
    noised: Sequence[Noised], epsilon: float, delta: float, *, spent: Sequence[Noised] = ()
) -> float:
    """The factor on every σ of `noised` with which all of it, after `spent`, costs (ε, δ).

    Ratios given as Δ alone (σ = 1) make the factor σ itself. Never above ε beyond the last bits;
    below by at most 0.1% (no sampling: exact).

    Args:
      noised: what is to leave, at least one.
      epsilon: ε above 0, of everything together.
      delta: δ in (0, 1).
      spent: what has left before; keeps its strength.

    Raises:
      InputError: an argument outside its range, or `spent` leaves nothing of ε.
    """
    _check("epsilon", epsilon)
    _check_counted(1, delta)
    for each in [*noised, *spent]:
        _check_noised(each)
    if not noised:
        raise InputError("noised", (), "needs at least one mechanism to calibrate")
    before = composed_epsilon(spent, delta)
    if before >= epsilon:
        raise InputError("epsilon", epsilon, f"must be above the {before:.6g} that is spent")
    if all(each.sampling_rate == 1.0 for each in [*noised, *spent]):
        left = gaussian_mu(epsilon, delta) ** 2 - composed_mu(spent) ** 2
        return composed_mu(noised) / math.sqrt(left)

    def scaled(factor: float) -> list[Noised]:
        return [each._replace(ratio=each.ratio / factor) for each in noised] + list(spent)

    def coarse(factor: float) -> float:
        return _pld_epsilon(scaled(factor), delta, _interval(scaled(factor)))

    def fine(factor: float) -> float:
        return composed_epsilon(scaled(factor), delta)

    # A margin for rounding: the same mechanisms with other last bits must not come out above ε.
    goal = (1 - _ROUNDING) * epsilon
    # The cheap upper bound first: then the better one has little left to do.
    return _least(fine, goal, start=_least(coarse, goal, start=1.0, step=1.5), step=1.01)


def round_up(noise_multiplier: float) -> float:
    """To six significant digits: another machine's last bits must not make it another run.

    >>> round_up(1.2345678)
    1.23457
    """
    digits = 5 - math.floor(math.log10(noise_multiplier))
    return math.ceil(noise_multiplier * 10**digits) / 10**digits


def _least(cost: Callable[[float], float], epsilon: float, *, start: float, step: float) -> float:
    """About the least factor whose cost, falling in it, is at most ε and not 0.1% below."""
    high, below = start, cost(start)
    low, above = high, below
    while below > epsilon:
        if high > 1e12 * start:
            raise InputError("epsilon", epsilon, "no noise gives it at this delta; make one larger")
        low, above = high, below
        high, below = high * step, cost(high * step)
    while above <= epsilon:
        high, below = low, above
        low, above = low / step, cost(low / step)
    while below < (1 - _TOLERANCE) * epsilon and high > low * (1 + 1e-9):
        share = 0.5
        if below > 0 and above < math.inf:  # ε is about a power of the factor
            share = math.log(below / (1 - _TOLERANCE / 2) / epsilon) / math.log(below / above)
        middle = high * (low / high) ** min(max(share, 0.05), 0.95)
        found = cost(middle)
        if found <= epsilon:
            high, below = middle, found
        else:
            low, above = middle, found
    return high


def _pld_epsilon(
    noised: Sequence[Noised], delta: float, interval: float, replace_one: bool = False
) -> float:
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    # REPLACE_SPECIAL is zero-out; its numbers are those of a record added or removed.
    neighbours = NeighboringRelation.REPLACE_SPECIAL
    neighbours = NeighboringRelation.REPLACE_ONE if replace_one else neighbours
    accountant = PLDAccountant(neighbours, value_discretization_interval=interval)
    whole = [each for each in noised if each.sampling_rate == 1.0]
    if whole:
        accountant.compose(GaussianDpEvent(1.0 / composed_mu(whole)))
    for ratio, count, rate in noised:
        if rate < 1.0:
            accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(1.0 / ratio)), count)
    return float(accountant.get_epsilon(delta))


def _interval(noised: Sequence[Noised]) -> float:
    """A first step of the grid: 200,000 cells at most, for one loss and for the mean of all."""
    tail = max(each.ratio**2 / 2 + 10 * each.ratio for each in noised)
    mean = sum(each.count * each.sampling_rate * each.ratio**2 / 2 for each in noised)
    return max(1e-3, max(tail, mean) / 2e5)


def _check(name: str, value: float):
    if isinstance(value, bool | str) or not 0.0 < value < math.inf:
        raise InputError(name, value, "must be finite and above 0")


def _check_counted(count: int, delta: float):
    if not 1 <= count < math.inf or count != int(count):
        raise InputError("count", count, "must be an integer of at least 1")
    if isinstance(delta, bool | str) or not 0.0 < delta < 1.0:
        raise InputError("delta", delta, "must be in (0, 1)")


def _check_noised(each: Noised):
    _check("ratio", each.ratio)
    _check_counted(each.count, 0.5)
    if not 0.0 < each.sampling_rate <= 1.0:
        raise InputError("sampling_rate", each.sampling_rate, "must be in (0, 1]")
