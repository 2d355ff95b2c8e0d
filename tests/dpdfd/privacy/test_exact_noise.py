"""Answers of an ensemble: how far one teacher moves them, and the noise they are bought with."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from distill_core.privacy import discrete_gaussian
from dpdfd.privacy.exact_noise import answer_counts, noisy_answers, parts

GARBAGE = np.array(
    [
        [np.nan, 0.5, 0.5], [np.inf, 0, 0], [-np.inf, 1, 0], [0, 0, 0], [-1, -2, -3],
        [1e30, 1e30, -1e30], [3e38, 3e38, 3e38], [1e-40, 0, 0],
        [5, -4, 0], [0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3],
    ],
    np.float32,
)  # fmt: skip
BROKEN = np.arange(len(GARBAGE)) < 5  # no distribution can be made of them


def draw(rows, classes, teachers, seed=0):
    """Probabilities float32 [M, B, K]."""
    z = 2 * np.random.default_rng(seed).normal(size=(teachers, rows, classes))
    return np.asarray(jax.nn.softmax(jnp.asarray(z, jnp.float32)))


def test_parts_are_as_many_as_int32_can_add_up():
    for num in (1, 2, 3, 250, 1000, 1024, 1025, 70_000, 1 << 29):
        whole = parts(num)
        assert 1 <= whole <= 1 << 20 and whole & (whole - 1) == 0
        assert num * whole <= 1 << 30
        assert whole == 1 << 20 or 2 * num * whole > 1 << 30


@pytest.mark.parametrize("compiled", [False, True])
def test_whatever_teachers_return_each_gives_whole_parts_that_add_up(compiled):
    count = jax.jit(answer_counts) if compiled else answer_counts
    rng = np.random.default_rng(0)
    rows = [*GARBAGE, *rng.dirichlet([0.1, 1, 3], 200).astype(np.float32)]
    outputs = np.stack(rows)[None]  # one teacher, [1, B, 3]
    found = np.asarray(count(outputs))
    assert found.dtype == np.int32
    assert (found >= 0).all()
    np.testing.assert_array_equal(found.sum(-1), parts(1))
    # So two rows of it are √2·R apart at most, exactly.
    gaps = found[:, None].astype(object) - found[None]
    assert max((gaps**2).sum(-1).ravel()) <= 2 * parts(1) ** 2
    uniform = found[: len(GARBAGE)][BROKEN] / parts(1)
    np.testing.assert_allclose(uniform, 1 / 3, atol=2e-6)


def test_counts_are_the_mean_of_probabilities_to_a_part_in_a_million():
    probs = draw(rows=50, classes=10, teachers=20)
    found = np.asarray(answer_counts(probs)) / (20 * parts(20))
    np.testing.assert_allclose(found, probs.mean(0), atol=1.5e-6)
    votes = np.eye(10, dtype=np.float32)[probs.argmax(-1)]
    exact = np.asarray(answer_counts(votes))
    np.testing.assert_array_equal(exact, votes.sum(0) * parts(20))


def test_one_teacher_moves_the_counts_of_a_query_by_at_most_root_2_parts():
    """Attacked: rows of one teacher replaced by anything, or its own answers turned round."""
    probs = draw(rows=40, classes=3, teachers=7, seed=4)
    rng = np.random.default_rng(1)
    before = np.asarray(answer_counts(probs)).astype(object)
    for attack in range(40):
        other = probs.copy()
        rows = GARBAGE[rng.integers(0, len(GARBAGE), 40)]
        other[3] = rows if attack % 2 else np.eye(3, dtype=np.float32)[probs[3].argmin(-1)]
        moved = np.asarray(answer_counts(other)).astype(object) - before
        assert max((moved**2).sum(-1)) <= 2 * parts(7) ** 2
    # The bound is reached: a sure teacher that changes its mind.
    sure = np.eye(3, dtype=np.float32)[np.zeros((7, 1), int)]
    turned = sure.copy()
    turned[3] = [[0, 0, 1]]
    moved = np.asarray(answer_counts(turned)) - np.asarray(answer_counts(sure))
    assert (moved.astype(object) ** 2).sum() == 2 * parts(7) ** 2


# -- the noise ---------------------------------------------------------------------------------


@functools.cache
def bought(multiplier=3.0, teachers=50, size=4000):
    """(noise in units of Δ's grid, counts): answers of many queries."""
    rng = np.random.default_rng(2)
    counts = rng.multinomial(teachers * parts(teachers), [0.2] * 5, size).astype(np.int32)
    found = noisy_answers(
        counts, teachers, noise_multiplier=multiplier, random=np.random.default_rng(3).bytes
    )
    return found, counts / (teachers * parts(teachers))


@pytest.mark.parametrize(("multiplier", "teachers"), [(3.0, 50), (300.0, 1000), (0.5, 1)])
def test_noise_is_gaussian_of_the_multiple_of_the_sensitivity(multiplier, teachers):
    found, truth = bought(multiplier, teachers)
    assert found.dtype == np.float32
    noise = (found - truth).ravel() / (multiplier * math.sqrt(2) / teachers)
    assert scipy.stats.kstest(noise, "norm").pvalue > 0.01
    for wrong in (0.95, 1.05):
        assert scipy.stats.kstest(noise * wrong, "norm").pvalue < 0.01
    rows = noise.reshape(found.shape)
    np.testing.assert_allclose(np.corrcoef(rows.T), np.eye(5), atol=0.06)


def test_what_is_charged_is_below_what_is_drawn(monkeypatch):
    """The ledger's std over Δ is the multiplier; the sampler is asked for at least that."""
    asked = []
    real = discrete_gaussian.sample
    monkeypatch.setattr(
        discrete_gaussian, "sample", lambda std, *rest: asked.append(std) or real(std, *rest)
    )
    for multiplier in (0.013, 0.7, 337.0, 1e6):
        noisy_answers(np.ones((1, 3), np.int32), 1000, noise_multiplier=multiplier)
        assert asked[-1] >= multiplier * math.sqrt(2) * parts(1000)
        assert asked[-1] <= multiplier * math.sqrt(2) * parts(1000) * (1 + 1e-9)


def test_noise_is_fresh_unless_the_bytes_are_given():
    counts = np.ones((20, 3), np.int32)
    first, second = (noisy_answers(counts, 10, noise_multiplier=1.0) for _ in range(2))
    assert (first != second).all()
    one, same = (
        noisy_answers(counts, 10, noise_multiplier=1.0, random=np.random.default_rng(5).bytes)
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, same)
