"""CKA, probe and t-SNE on representations whose answers are known."""

import numpy as np
import pytest

from nasty.experiment.representations import linear_cka, linear_probe_accuracy, tsne


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def clusters(rng, n=120, d=8, classes=3, distance=20.0):
    labels = np.arange(n) % classes
    return rng.normal(size=(n, d)) + distance * np.eye(d)[labels], labels


def test_cka_of_a_rotated_scaled_shifted_copy_is_one(rng):
    x = rng.normal(size=(100, 6)) * np.arange(1, 7)
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    assert linear_cka(x, -3e5 * x @ rotation + 7) == pytest.approx(1, abs=1e-9)
    assert linear_cka(1e200 * x, 1e-200 * x) == pytest.approx(1)
    assert linear_cka(x.astype(np.float32) + 1e4, x) == pytest.approx(1, abs=1e-4)


def test_cka_of_independent_representations_is_small_and_of_a_constant_undefined(rng):
    x, y = rng.normal(size=(2000, 10)), rng.normal(size=(2000, 7))
    assert 0 <= linear_cka(x, y) < 0.02
    assert linear_cka(x, np.c_[x, 1.5 * y]) > 0.3
    assert np.isnan(linear_cka(x, np.full((2000, 3), 0.1)))


def test_cka_equals_the_kernel_form(rng):
    """The same number from the N×N Gram matrices, equation 4 of the paper as it stands there."""
    x = rng.normal(size=(40, 5))
    y = np.tanh(x @ rng.normal(size=(5, 3)))
    centring = np.eye(40) - 1 / 40
    k, m = (centring @ z @ z.T @ centring for z in (x, y))
    expected = np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))
    assert 0.1 < expected < 0.99
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-10)
    assert linear_cka(y, x) == pytest.approx(expected, rel=1e-10)


def test_probe_reads_separable_classes_and_nothing_from_noise(rng):
    x, labels = clusters(rng)
    assert linear_probe_accuracy(x, labels, seed=0) == 1.0
    noise = rng.normal(size=(600, 4))
    assert 0.2 < linear_probe_accuracy(noise, np.arange(600) % 3, seed=0) < 0.47
    wild = rng.standard_cauchy(size=(300, 32)) * 1e4  # a warning would be an error
    assert 0 <= linear_probe_accuracy(wild, rng.integers(0, 5, 300), seed=0) <= 1
    assert linear_probe_accuracy(np.ones((300, 4)), np.arange(300) % 3, seed=0) < 0.4


def test_probe_is_a_function_of_the_seed_and_not_of_scale(rng):
    x, labels = clusters(rng, distance=1.5)
    first = linear_probe_accuracy(x, labels, seed=3)
    assert first == linear_probe_accuracy(x, labels, seed=3)
    assert first == pytest.approx(linear_probe_accuracy(1e4 * x - 5, labels, seed=3), abs=0.02)
    assert len({linear_probe_accuracy(x, labels, seed=seed) for seed in range(5)}) > 1


def test_tsne_keeps_clusters_together_and_is_deterministic(rng):
    x, labels = clusters(rng)
    points = tsne(x, seed=0)
    assert points.shape == (120, 2) and points.dtype == np.float32
    np.testing.assert_array_equal(points, tsne(x, seed=0))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).mean() == 1.0


def test_tsne_of_few_degenerate_and_huge_rows(rng):
    np.testing.assert_array_equal(tsne(np.full((20, 3), 0.1), seed=0), np.zeros((20, 2)))
    few = [rng.normal(size=(n, 3)) for n in (1, 3, 4, 5)]
    for x in (*few, rng.normal(size=(20, 1)), 1e30 * rng.normal(size=(20, 3))):
        points = tsne(x, seed=0)
        assert points.shape == (len(x), 2) and np.isfinite(points).all()
