"""The bits of a secret, and what they say beside chance."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special, stats

from distill_core.config import InputError
from swingdistill.canaries.exposure import (
    exposure,
    exposure_reduction,
    floor_bits,
    leak_test,
    rank_bounds,
    rank_test,
    skew_normal_exposure,
    unnoticed,
    verdict,
    worst_allowed,
)

N = 1023


@pytest.mark.parametrize(
    ("secret", "rank"), [(-0.5, 1), (0.5, 2), (3.5, 5), (N - 1.5, N), (N + 9.0, N + 1)]
)
def test_exposure_is_bits_of_candidates_less_bits_of_rank(secret, rank):
    bits = exposure(secret, np.random.default_rng(0).permutation(N).astype(float))
    np.testing.assert_allclose(bits, math.log2(N + 1) - math.log2(rank), atol=1e-12)


def test_candidates_that_tie_rank_behind_the_secret():
    assert exposure(2.0, [1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0]) == math.log2(8 / 2)
    assert exposure(1.0, np.ones(N)) == 10.0


def test_jit_agrees_with_numpy():
    rng = np.random.default_rng(0)
    secrets, references = rng.normal(size=(3, 4)), rng.normal(size=N)
    expected = exposure(secrets, references)
    assert expected.dtype == np.float64
    found = jax.jit(exposure)(jnp.asarray(secrets), jnp.asarray(references))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_references_may_be_each_secrets_own():
    rng = np.random.default_rng(0)
    secrets, references = rng.normal(size=(2, 3)), rng.normal(size=(2, 3, 50))
    found = exposure(secrets, references)
    for place in np.ndindex(2, 3):
        assert found[place] == exposure(secrets[place], references[place])


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_nan_is_not_mistaken_for_a_secret_that_nobody_knows(array):
    assert np.isnan(exposure(array(np.nan), array([1.0, 2.0])))
    assert np.isnan(exposure(array(0.0), array([1.0, np.nan])))


@pytest.mark.parametrize("shape", [(), (0,), (2, 5), (4, 5)])
def test_shapes_that_do_not_belong_together(shape):
    with pytest.raises(ValueError, match=r"reference_log_perplexities: got shape"):
        exposure(np.zeros(3), np.zeros(shape))


def _secret_sharer_exposures(perplexities: dict, references):
    """What tensorflow_privacy's `secret_sharer.exposures` computes, without its code.

    Each repetition level's secrets come back in the order of their perplexity, best known first.
    """
    ranks = {
        level: [1 + sum(r < value for r in references) for value in sorted(values)]
        for level, values in perplexities.items()
    }
    return {
        level: [math.log2(len(references)) - math.log2(rank) for rank in found]
        for level, found in ranks.items()
    }


def test_agrees_with_the_secret_sharers_interpolation():
    rng = np.random.default_rng(1)
    references = rng.normal(20.0, 2.0, 400)
    perplexities = {1: rng.normal(19.0, 3.0, 8), 10: rng.normal(14.0, 2.0, 8)}
    expected = _secret_sharer_exposures(perplexities, references)
    for level, values in perplexities.items():
        # It leaves the secret out of the number of candidates; we count it in.
        ours = np.sort(exposure(values, references))[::-1] - math.log2(401 / 400)
        np.testing.assert_allclose(ours, expected[level], atol=1e-12)


def test_agrees_with_the_secret_sharers_extrapolation():
    rng = np.random.default_rng(2)
    # A skew normal variable is |u| δ + v √(1 − δ²).
    u, v = rng.normal(size=(2, 5000))
    references = 20 + 3 * (0.9 * np.abs(u) + math.sqrt(1 - 0.9**2) * v)

    def negative_log_likelihood(parameters):
        shape, location, log_scale = parameters
        z = (references - location) / math.exp(log_scale)
        return np.sum(log_scale + z**2 / 2 - special.log_ndtr(shape * z))

    start = [1.0, references.mean(), math.log(references.std())]
    fit = optimize.minimize(negative_log_likelihood, start, method="BFGS")
    shape, location, scale = fit.x[0], fit.x[1], math.exp(fit.x[2])
    secrets = np.array([23.0, 20.0, 18.0, 17.0])
    for secret, found in zip(
        secrets, skew_normal_exposure(secrets, references, num_candidates=1e6), strict=True
    ):
        x = np.linspace(location - 12 * scale, secret, 200_001)
        z = (x - location) / scale
        density = 2 / scale * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * special.ndtr(shape * z)
        np.testing.assert_allclose(found, -math.log2(np.trapezoid(density, x)), atol=0.02)


def test_extrapolation_reaches_beyond_the_sample_and_stops_at_all_candidates():
    references = np.random.default_rng(3).normal(size=5000)
    bits = skew_normal_exposure([-4.5, -100.0], references, num_candidates=10**6)
    assert math.log2(501) < bits[0] < math.log2(1e6)
    assert bits[1] == math.log2(1e6)


_RNG = np.random.default_rng(6)


@pytest.mark.parametrize(
    ("references", "reason"),
    [
        *[(_RNG.normal(size=num), "at least 5000 finite values") for num in (10, 4999)],
        *[(np.full(5000, value), "at least 5000 finite values") for value in (1, np.inf)],
        # Two groups, exponential, uniform: not skew normal.
        (np.concatenate([_RNG.normal(size=2500), _RNG.normal(6, 1, 2500)]), "off by"),
        (-_RNG.exponential(size=5000), "off by"),
        (_RNG.uniform(size=5000), "off by"),
    ],
)
def test_extrapolation_refuses_what_it_cannot_fit(references, reason):
    with pytest.raises(InputError, match=reason):
        skew_normal_exposure(-3.0, references, num_candidates=10**6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num", [5000, 20_000])
def test_extrapolation_takes_values_that_are(seed, num):
    rng = np.random.default_rng([seed, num])
    references = np.sum(rng.gumbel(size=(num, 6)), axis=1)  # of six digits
    assert 0 <= skew_normal_exposure(references[0], references, num_candidates=10**6) < 20


def test_floor_is_the_mean_of_uniform_ranks():
    ranks = np.arange(1, 2**18 + 1)
    np.testing.assert_allclose(floor_bits(), np.mean(18 - np.log2(ranks)), atol=1e-4)


def test_reduction():
    floor = floor_bits()
    np.testing.assert_allclose(exposure_reduction(20.0, floor), 1.0)
    np.testing.assert_allclose(exposure_reduction(20.0, floor, corrected=False), 1 - floor / 20)
    np.testing.assert_allclose(
        exposure_reduction([19.9, 11.0], [19.9, 1.0], corrected=False), [0.0, 10 / 11]
    )
    assert exposure_reduction(11.0, 1.0) == 10 / (11 - floor)
    assert np.isnan(exposure_reduction(1.4, 0.7))


@pytest.mark.parametrize("num", [1, 8, 24, 1000])
def test_the_worst_of_unlearnt_secrets_passes_its_threshold_once_in_a_hundred(num):
    exceeds = 1 - (1 - 2 ** -worst_allowed(num)) ** num
    np.testing.assert_allclose(exceeds, 0.01, atol=0.0005)


def test_rank_test_of_one_secret_is_its_rank():
    np.testing.assert_allclose(rank_test([math.log2(1000 / 3)], 1000), 0.003)
    assert rank_test([0.0], 1000) == 1.0


def test_rank_test_holds_its_level_when_nothing_was_learnt():
    rng = np.random.default_rng(4)
    sets = math.log2(1e6) - np.log2(rng.integers(1, 10**6 + 1, (4000, 24)))
    p = np.array([rank_test(bits, 10**6) for bits in sets])
    assert abs(np.mean(p < 0.05) - 0.05) < 0.012
    assert abs(np.mean(p < 0.5) - 0.5) < 0.03


def test_rank_test_never_rejects_too_often_with_few_candidates():
    # All 10 ranks among 10 candidates are equally likely.
    p = np.array([rank_test([math.log2(10 / rank)], 10) for rank in range(1, 11)])
    assert all(np.mean(p <= level) <= level + 1e-12 for level in np.linspace(0, 1, 101))


def test_rank_test_sees_a_small_leak_in_many_secrets():
    leak = np.full(24, 3.0)
    assert leak.max() < worst_allowed(24)
    assert rank_test(leak, 10**6) < 1e-4
    assert rank_test(np.full(24, 0.7), 10**6) > 0.9


@pytest.mark.parametrize("bits", [[], [10.2], [-0.1], [np.nan]])
def test_rank_test_refuses_what_is_no_rank(bits):
    with pytest.raises(ValueError, match=r"must be bits in 0 to 9\.97"):
        rank_test(bits, 1000)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
@pytest.mark.parametrize(("others", "asked"), [(999, 40), (50_000, 300), (300, 299)])
def test_bounds_hold_the_true_exposure_as_often_as_they_say(others, asked, confidence):
    """Whatever the true rank, summed over all that a sample can show: no draw is involved."""
    ahead = np.arange(asked + 1)
    low, high = rank_bounds(ahead, asked, others, confidence=confidence)
    covered = []
    for rank in np.unique(np.geomspace(1, others + 1, 60).astype(int)):
        bits = math.log2(others + 1) - math.log2(rank)
        shown = stats.hypergeom.pmf(ahead, others, rank - 1, asked)
        covered.append(np.sum(shown[(low - 1e-9 <= bits) & (bits <= high + 1e-9)]))
    assert min(covered) >= confidence
    if asked < others / 10:
        assert min(covered) < 1 - (1 - confidence) / 4, "nor far too wide"


def test_bounds_are_around_the_sampled_exposure_and_end_at_what_can_be():
    low, high = rank_bounds(np.array([0, 1, 50, 10_000]), 10_000, 10**6)
    sampled = math.log2(10_001) - np.log2([1, 2, 51, 10_001])
    assert np.all((low <= sampled) & (sampled <= high))
    np.testing.assert_allclose(low[0], math.log2(10_000) - 1.883, atol=0.01)
    np.testing.assert_allclose(high[0], math.log2(10**6 + 1))
    assert high[2] - low[2] < 1
    np.testing.assert_allclose(low[3], 0, atol=1e-9)


def test_where_all_were_asked_bounds_are_the_exposure():
    ahead = np.array([0, 3, 99])
    low, high = rank_bounds(ahead, 99, 99)
    np.testing.assert_allclose(low, math.log2(100) - np.log2(1 + ahead))
    np.testing.assert_allclose(low, high)


def test_leak_test_holds_its_level_and_sees_both_kinds_of_leak():
    rng = np.random.default_rng(4)
    sets = math.log2(1e6) - np.log2(rng.integers(1, 10**6 + 1, (4000, 24)))
    p = np.array([leak_test(bits, 10**6) for bits in sets])
    assert np.mean(p < 0.05) < 0.06 and np.mean(p < 0.01) < 0.015
    assert leak_test(np.full(24, 3.0), 10**6) < 1e-3
    chance = np.full(24, 1.0)
    chance[3] = 19.9
    assert leak_test(chance, 10**6) < 1e-4 < 0.01 < rank_test(chance, 10**6)
    assert leak_test([9.0], 1000) == rank_test([9.0], 1000)


@pytest.mark.parametrize("num", [1, 8, 24])
def test_what_goes_unnoticed_is_where_the_verdict_turns(num):
    alike, alone = unnoticed(num)
    for more, leaks in ((-0.01, False), (0.01, True)):
        assert (leak_test(np.full(num, alike + more), 10**6) < 0.01) == leaks
        one = np.zeros(num)
        one[0] = alone + more
        assert (leak_test(one, 10**6) < 0.01) == leaks


def test_a_verdict_says_what_it_cannot_see():
    assert verdict([19.0] * 8, 10**6)[1].startswith("leaks (p ")
    p, text = verdict([1.0, 2.0, 0.5], 10**6)
    assert text.startswith(f"no leak seen (p {p:.2g}): ") and "would go unnoticed" in text
    assert verdict([3.0], 50)[1].startswith("cannot tell (p 0.12): ranks among 50 show 5.6 bits")
    assert "8.6 in one" in verdict([1.0, 1.0], 1000)[1]
    assert "in one" not in verdict([1.0, 1.0], 200)[1], "so much cannot be"
