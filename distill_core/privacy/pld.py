"""ε of Poisson-sampled Gaussian noise from discretised privacy loss distributions (dp_accounting).

A loss is rounded to multiples of an interval so that ε can only grow. Measured: by up to
0.75 · count · interval² above ε = 0.2, and by that over 5ε below.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_ROUNDING = 2e-4  # of ε, wanted
_COARSE = 1e-3  # the same while noise is calibrated
_CELLS, _MOST_CELLS = 5e5, 2e6  # of one step's, and of all steps' losses: more take many seconds
_MOST_INTERVAL = 50.0  # its exponential has to be finite
_MOST_RATIO = 150.0  # one vector alone may cost ε of 1e4 then
_NEARLY_ONE = 1 - 1e-9  # dp_accounting fails at rates beyond; without sampling it costs no less
_TINY = 1e-14  # mass that truncation moves to infinity; of δ, whatever the count
_AT_ONCE = 1000  # compositions
_FOURIER = 1e-17  # mass that rounding in Fourier transforms loses or makes, for each step


def resolution(count: int) -> float:
    """The least δ that distributions of `count` sampled steps resolve to about a percent."""
    return max(100 * _TINY, 100 * _FOURIER * count)


def epsilon(noised: Sequence[Any], delta: float, *, most: float, replace_one: bool) -> float:
    """An upper bound on ε at δ, at most `most`.

    Args:
      noised: `accountants.Noised`, checked, some of them sampled.
      delta: δ, at least the `resolution`.
      most: ε of the same without sampling, which is an upper bound, too.
      replace_one: as for `accountants.composed_epsilon`.
    """
    if most == 0.0 or total_variation(noised, replace_one=replace_one) <= delta:
        return 0.0
    found, interval = most, math.inf
    while found > 0.0:
        needed = _interval(noised, found, _ROUNDING)
        if needed > 0.9 * interval:
            break
        interval = needed
        found = min(found, _at(noised, delta, interval, replace_one))
    return found


def epsilon_near(noised: Sequence[Any], delta: float, *, most: float, near: float) -> float:
    """`epsilon` for zero-out, on one grid, which is fine enough if ε is about `near`."""
    if most == 0.0 or total_variation(noised) <= delta:
        return 0.0
    return min(most, _at(noised, delta, _interval(noised, near, _COARSE, 4.0), False))


def total_variation(noised: Sequence[Any], *, replace_one: bool = False) -> float:
    """An upper bound on the total variation of all releases: at a δ that is no less, ε is 0.

    The sum over the steps; of one step the probability that the record is drawn times the total
    variation of Gaussian noise.
    """
    scale = (1 + replace_one) / math.sqrt(8.0)
    return math.fsum(n * q * math.erf(scale * ratio) for ratio, n, q in noised)


def _interval(noised: Sequence[Any], near: float, rounding: float, fewer: float = 1.0) -> float:
    """Fine enough for an ε of about `near`, if so many cells can be held."""
    sampled = sum(each.count for each in noised if each.sampling_rate < 1.0)
    tail = max(each.ratio**2 / 2 + 10 * each.ratio for each in noised)
    needed = math.sqrt(rounding * near * min(1.0, 5 * near) / sampled)
    cells = max((tail + 2 * near) / _CELLS, _spread(noised) / _MOST_CELLS)
    return min(max(cells * fewer, needed), _MOST_INTERVAL)


def _spread(noised: Sequence[Any]) -> float:
    """About how far losses of everything together reach."""
    total = 0.0
    for ratio, count, rate in noised:
        drawn = count * rate
        drawn += 10 * math.sqrt(drawn) + 10
        square = math.expm1(min(ratio**2, 700.0))
        many = count * rate**2 * square
        total += min(drawn * (ratio**2 / 2 + 10 * ratio), many / 2 + 10 * math.sqrt(many))
    return total


def _at(noised: Sequence[Any], delta: float, interval: float, replace_one: bool) -> float:
    too_wide = _spread(noised) > 5 * _MOST_CELLS * interval
    if too_wide or max(each.ratio for each in noised) > _MOST_RATIO:
        return math.inf
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as losses

    # REPLACE_SPECIAL is zero-out; its numbers are those of a record added or removed.
    neighbours = NeighboringRelation.REPLACE_SPECIAL
    neighbours = NeighboringRelation.REPLACE_ONE if replace_one else neighbours
    grid: dict[str, Any] = {"value_discretization_interval": interval}
    grid["neighboring_relation"] = neighbours
    total, steps = losses.identity(interval), 0
    with np.errstate(over="ignore", invalid="ignore"):  # then it is NaN, and no bound
        for ratio, count, rate in noised:
            if rate < _NEARLY_ONE:
                steps += count
                one = losses.from_gaussian_mechanism(1.0 / ratio, sampling_prob=rate, **grid)
                total = total.compose(_self_composed(one, count))
            else:
                std = 1.0 / ratio / math.sqrt(count)
                total = total.compose(losses.from_gaussian_mechanism(std, **grid))
        found = float(total.get_epsilon_for_delta(delta - _TINY - _FOURIER * steps))
    return found if found >= 0.0 else math.inf  # also NaN


def _self_composed(one: Any, count: int) -> Any:
    """`count` times; in parts, for dp_accounting raises its size to that power, as an integer."""
    many, rest = divmod(count, _AT_ONCE)
    if not many:
        return one.self_compose(count)
    found = one.self_compose(_AT_ONCE).self_compose(many)
    return found.compose(one.self_compose(rest)) if rest else found
