"""What repeated Gaussian noise costs in (ε, δ), and how much of it a budget needs."""

import math

from distill_core.config import InputError


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
    from dp_accounting import gaussian_mechanism

    _check("epsilon", epsilon)
    _check_counted(count, delta)
    return float(gaussian_mechanism.get_sigma_gaussian(epsilon, delta)) * math.sqrt(count)


def _check(name: str, value: float):
    if not 0.0 < value < math.inf:
        raise InputError(name, value, "must be finite and above 0")


def _check_counted(count: int, delta: float):
    if count != int(count) or count < 1:
        raise InputError("count", count, "must be an integer of at least 1")
    if not 0.0 < delta < 1.0:
        raise InputError("delta", delta, "must be in (0, 1)")
