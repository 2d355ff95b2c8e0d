"""Discrete Gaussian noise for whole numbers, sampled exactly on the host.

Floating-point Gaussian noise reveals more than its formula says: its tail ends early, and the last
bits of a noisy value exclude neighbours. Whole numbers with discrete Gaussian noise have neither
fault (Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy", 2020).

The sampler is our own: OpenDP's takes 265 MB and accepts no seed.
"""

import decimal
import math
import os
from collections.abc import Callable
from fractions import Fraction

import numpy as np

_ROUNDING = 4  # s² of `variance`
_TAIL = 16  # standard deviations; 10⁻⁵⁷ lies beyond
_DOUBT = 2.0**-46  # some hundred times the error of the floats that are compared
_TRIALS = 1 << 20  # at once


def variance(std: float) -> int:
    """σ² of the discrete Gaussian that stands for continuous noise: ⌈std²⌉ + 4.

    Formal guarantee: integers with noise of this σ² are as private as with continuous Gaussian
    noise of standard deviation `std`, at every (ε, δ), in any number of coordinates and releases,
    adaptive ones included; so a ledger charges `std`. For it is continuous noise rounded at random:
    z ~ N(c, std²), then k ~ exp(−(k − z)²/2s²) on the integers with s² ≥ 4, has the density of the
    discrete Gaussian around c with σ² = std² + s², up to a factor within 1 ± 10⁻³³ (Peikert, "An
    Efficient and Parallel Gaussian Sampler for Lattices", 2010, Theorem 3.1; the factor is
    Σ exp(−2π²s²j²) over j ≠ 0). So ε grows by 10⁻³² per coordinate, far below the rounding of the
    formulas for ε themselves.

    Args:
      std: in units of the grid, finite and above 0.
    """
    return math.ceil(Fraction(std) ** 2) + _ROUNDING


def sample(std: float, size: int, random: Callable[[int], bytes] = os.urandom) -> np.ndarray:
    """Integers with the probabilities exp(−k²/2σ²)/Σ, independent, σ² = `variance(std)`.

    Formal guarantee: were the bytes fair and independent, every probability would be exact, but
    for 10⁻⁵⁶ of mass that is cut off: integers are drawn uniformly and accepted with probability
    exp(−k²/2σ²), by 64 bits where floats decide safely and by 256 bits where they do not.

    Args:
      std: as for `variance`, at most 10¹⁴.
      size: how many.
      random: n to n random bytes; the operating system's by default.

    Returns:
      int64 [size].

    Raises:
      ValueError: `std` outside its range.
    """
    if not 0.0 < std <= 1e14:
        raise ValueError(f"std: got {std}; must be in (0, 1e14]")
    squared = variance(std)
    bits = math.isqrt(_TAIL**2 * squared).bit_length()  # k in [−2^bits, 2^bits)
    accepted = math.sqrt(2 * math.pi * squared) / 2.0 ** (bits + 1)
    found = [np.empty(0, np.int64)]
    missing = size
    while missing > 0:
        trials = min(_TRIALS, 64 + math.ceil(1.1 * missing / accepted))
        drawn, level = np.frombuffer(random(16 * trials), "<u8").reshape(2, trials)
        k = (drawn >> np.uint64(63 - bits)).astype(np.int64) - (1 << bits)
        chance = np.exp(-np.square(k.astype(np.float64)) / (2.0 * squared))
        gap = chance - level.astype(np.float64) * 2.0**-64
        keep = gap > 0
        for i in np.flatnonzero(np.abs(gap) <= _DOUBT):
            keep[i] = _accepts(int(k[i]), squared, int(level[i]), random)
        found.append(k[keep][:missing])
        missing -= len(found[-1])
    return np.concatenate(found)


def _accepts(k: int, squared: int, level: int, random: Callable[[int], bytes]) -> bool:
    """Whether `level` and 192 more bits, as a binary fraction, lie below exp(−k²/2σ²)."""
    with decimal.localcontext(prec=100):
        chance = (-decimal.Decimal(k * k) / (2 * squared)).exp()
        return decimal.Decimal(level << 192 | int.from_bytes(random(24))) < chance * 2**256
