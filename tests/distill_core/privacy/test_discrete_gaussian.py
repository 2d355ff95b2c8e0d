"""The noise on whole numbers: its probabilities, and its tail against the claimed δ."""

import functools

import mpmath
import numpy as np
import pytest
import scipy.stats

from distill_core.privacy import accountants, discrete_gaussian

REACH = 14  # standard deviations that a sum over the lattice takes in


@pytest.fixture(autouse=True)
def digits():
    """δ is compared where it is small."""
    with mpmath.workdps(50):
        yield


def probabilities(variance: int) -> dict[int, mpmath.mpf]:
    """Of the integers, by the definition."""
    reach = REACH * (int(variance**0.5) + 1)
    weights = {k: mpmath.exp(mpmath.mpf(-k * k) / (2 * variance)) for k in range(-reach, reach + 1)}
    total = mpmath.fsum(weights.values())
    return {k: weight / total for k, weight in weights.items()}


def exact_delta(variance: int, moves: list[int], epsilon) -> mpmath.mpf:
    """δ(ε), the hockey-stick divergence, of integers with noise that move by `moves`.

    The privacy loss of noise x is Σ (m² − 2mx) / 2σ², so that the law of Σ mx is enough.
    """
    law = {0: mpmath.mpf(1)}
    each = probabilities(variance)
    for move in moves:
        wider: dict[int, mpmath.mpf] = {}
        for total, chance in law.items():
            for k, own in each.items():
                at = total + move * k
                wider[at] = wider.get(at, mpmath.mpf(0)) + chance * own
        law = wider
    square = sum(move**2 for move in moves)
    found = mpmath.mpf(0)
    for total, chance in law.items():
        loss = (mpmath.mpf(square) / 2 - total) / variance
        if loss > epsilon:
            found += chance * (1 - mpmath.exp(epsilon - loss))
    return found


def claimed_delta(std, square, epsilon) -> mpmath.mpf:
    """δ(ε) of continuous noise: Balle and Wang, 2018, Theorem 8."""
    mu = mpmath.sqrt(square) / mpmath.mpf(std)
    first = mpmath.ncdf(mu / 2 - epsilon / mu)
    return first - mpmath.exp(epsilon) * mpmath.ncdf(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0, 5.0])
@pytest.mark.parametrize(
    ("std", "moves"),
    [
        (0.5, [1]),
        (1.0, [1]),
        (3.0, [2]),
        (7.3, [30]),  # 225 releases of shift 2, as one μ
        (6.0, [1, -1]),  # a vote that goes from one class to another
        (4.0, [3, -2, -1]),
        (90.0, [5]),
    ],
)
def test_the_exact_delta_is_below_the_claimed_one(std, moves, epsilon):
    square = sum(move**2 for move in moves)
    claimed = claimed_delta(std, square, epsilon)
    assert exact_delta(discrete_gaussian.variance(std), moves, epsilon) <= claimed
    # What the accountants claim is that formula.
    if 1e-12 < claimed < 0.5:
        ratio = float(mpmath.sqrt(square)) / std
        spent = accountants.composed_epsilon([accountants.Noised(ratio)], float(claimed))
        assert spent == pytest.approx(epsilon, rel=1e-4)


def test_without_what_is_added_to_the_variance_it_is_not():
    """So that the test above could fail."""
    wrong = [
        epsilon
        for epsilon in np.linspace(0.05, 3, 60)
        if exact_delta(1, [1], epsilon) > claimed_delta(1.0, 1, epsilon)
    ]
    assert wrong


@pytest.mark.parametrize("count", [2, 5])
def test_releases_compose_as_one_mu(count):
    std, epsilon = 6.0, 0.5
    variance = discrete_gaussian.variance(std)
    exact = exact_delta(variance, [1] * count, epsilon)
    assert exact <= claimed_delta(std, count, epsilon)
    # Close to it, too: nothing is given away for nothing.
    assert exact >= claimed_delta(variance**0.5, count, epsilon) * 0.9


@pytest.mark.parametrize("centre", [0.0, 0.25, 0.5])
def test_it_is_rounded_continuous_noise_up_to_one_part_in_ten_to_the_33(centre):
    """The factor of `variance`'s docstring, Σ over the integers against the integral."""
    total = mpmath.nsum(
        lambda k: mpmath.exp(-((k - mpmath.mpf(centre)) ** 2) / 8), [-mpmath.inf, mpmath.inf]
    )
    assert abs(total / mpmath.sqrt(8 * mpmath.pi) - 1) < 1e-33


# -- the sampler -------------------------------------------------------------------------------


def seeded(seed):
    return np.random.default_rng(seed).bytes


@functools.cache
def sample(std, size=200_000, seed=3):
    return discrete_gaussian.sample(std, size, seeded(seed))


def chi_square(drawn, variance):
    """p of the draws under the discrete Gaussian of that variance; rare integers share a cell."""
    chances = {k: float(p) for k, p in probabilities(variance).items()}
    common = [k for k, p in chances.items() if p * len(drawn) >= 10]
    low, high = min(common), max(common)
    counts = [np.sum(drawn < low), *(np.sum(drawn == k) for k in common), np.sum(drawn > high)]
    tail = sum(p for k, p in chances.items() if k > high)
    expected = np.array([tail, *(chances[k] for k in common), tail]) * len(drawn)
    return scipy.stats.chisquare(counts, expected * len(drawn) / expected.sum()).pvalue


@pytest.mark.parametrize("std", [0.4, 2.0, 9.5])
def test_draws_have_the_discrete_gaussians_probabilities(std):
    variance = discrete_gaussian.variance(std)
    assert chi_square(sample(std), variance) > 0.01
    assert chi_square(sample(std), round(1.1 * variance) + 1) < 1e-6


@pytest.mark.parametrize("std", [1e3, 5e8, 1e14])
def test_wide_noise_is_gaussian_too(std):
    drawn = sample(std, 50_000)
    assert drawn.dtype == np.int64
    assert scipy.stats.kstest(drawn / std, "norm").pvalue > 0.01
    assert len(np.unique(drawn % 16)) == 16  # down to the last bit


def test_the_tail_reaches_where_float32_ends():
    """Eight standard deviations come out where the bits say so; `jax.random.normal` ends at 5.4."""
    bits = (16 * 1001).bit_length()

    def far(count):
        words = np.zeros((2, count // 16), "<u8")
        words[0] = (8 * 1000 + (1 << bits)) << (63 - bits)
        return words.tobytes()

    assert set(discrete_gaussian.sample(1000.0, 5, far)) == {8000}


def test_what_floats_cannot_decide_is_decided_by_more_bits():
    """Chance exp(−1/10) for k = 1, σ² = 5: 64 bits just there, and 192 more on either side."""
    with mpmath.workdps(100):
        chance = int(mpmath.floor(mpmath.exp(mpmath.mpf(-1) / 10) * 2**256))
    bits = (16 * 2 + 4).bit_length()  # of isqrt(256·5) = 35
    more = []

    def source(count):
        if count == 24:
            more.append(1)
            below = chance % 2**192
            return (below - 1 if len(more) % 2 else below + 1).to_bytes(24)
        words = np.zeros((2, count // 16), "<u8")
        words[0] = (1 + (1 << bits)) << (63 - bits)
        words[1] = chance >> 192
        return words.tobytes()

    drawn = discrete_gaussian.sample(1.0, 20, source)
    assert set(drawn) == {1} and len(more) >= 40
    kept = discrete_gaussian._accepts(1, 5, chance >> 192, lambda n: bytes(n))
    lost = discrete_gaussian._accepts(1, 5, chance >> 192, lambda n: b"\xff" * n)
    assert (kept, lost) == (True, False)


def test_the_bits_are_the_operating_systems_unless_given():
    a, b = (discrete_gaussian.sample(100.0, 50) for _ in range(2))
    assert (a != b).any()
    np.testing.assert_array_equal(
        sample(2.0, 100, 7), discrete_gaussian.sample(2.0, 100, seeded(7))
    )
    assert discrete_gaussian.sample(2.0, 0).shape == (0,)


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf"), 2e14])
def test_a_standard_deviation_outside_its_range_is_refused(std):
    with pytest.raises(ValueError, match="std: got"):
        discrete_gaussian.sample(std, 1)
