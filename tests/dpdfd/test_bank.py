"""The bank: what is kept, how often it is replayed, and which queries are bought."""

import numpy as np
import pytest

from dpdfd import bank as lib
from dpdfd.features import FeatureRidge

CLASSES, SHAPE = 3, (4, 4, 1)


def images(num, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, *SHAPE), dtype=np.uint8)


def predictions(classes):
    """Probabilities whose first choices these are."""
    return np.eye(CLASSES, dtype=np.float32)[np.asarray(classes)] * 0.5 + 0.1


def test_a_deposit_fills_its_rows_and_leaves_the_others():
    empty = lib.empty_bank(12, SHAPE, CLASSES)
    answers = np.arange(12, dtype=np.float32).reshape(4, CLASSES)
    first = lib.deposit(empty, 0, images(4), answers)
    second = lib.deposit(first, 4, images(4, seed=1), answers + 100)
    for name, parts in (
        ("images", [images(4), images(4, seed=1), np.zeros((4, *SHAPE))]),
        ("answers", [answers, answers + 100, np.zeros((4, CLASSES))]),
        ("targets", [answers, answers + 100, np.zeros((4, CLASSES))]),
    ):
        np.testing.assert_array_equal(second[name], np.concatenate(parts))
    assert not any(value.any() for value in empty.values())
    np.testing.assert_array_equal(first["images"][4:], 0)
    assert {name: value.dtype for name, value in second.items()} == {
        "images": np.uint8, "answers": np.float32, "targets": np.float32, "replay_cdf": np.float32,
    }  # fmt: skip


def chances(bank):
    return np.diff(bank["replay_cdf"], prepend=0.0)


def test_then_classes_are_replayed_alike_and_a_rare_one_not_without_end():
    empty = lib.empty_bank(10, SHAPE, CLASSES)
    classes = [0, 0, 0, 0, 1, 1, 2, 0]
    found = chances(lib.balance(empty, 8, predictions(classes)))
    each = {0: 1 / 15, 1: 1 / 6, 2: 1 / 3}
    np.testing.assert_allclose(found, [each[c] for c in classes] + [0, 0], atol=1e-6)
    empty = lib.empty_bank(1000, SHAPE, CLASSES)
    found = chances(lib.balance(empty, 1000, predictions([0] * 999 + [1])))
    # 1/1000 of the queries would be half of all replays.
    assert found[-1] == pytest.approx(30 / (999 / 0.999 + 30), rel=1e-3)


@pytest.mark.parametrize("bought", [1, 7, 640, 999])
def test_no_draw_reaches_a_row_that_was_not_bought(bought):
    rng = np.random.default_rng(bought)
    empty = lib.empty_bank(1000, SHAPE, CLASSES)
    last = np.nextafter(np.float32(1), np.float32(0))
    for probs in (None, predictions(rng.integers(0, CLASSES, bought))):
        reach = lib.balance(empty, bought, probs)["replay_cdf"]
        assert (np.diff(reach) >= 0).all()
        assert np.searchsorted(reach, last, side="right") < bought
        if probs is None:  # alike at first
            np.testing.assert_allclose(np.diff(reach[:bought]), 1 / bought, atol=1e-6)


def test_shared_noise_is_a_gaussian_processs_posterior_mean_of_what_was_bought():
    """By the dual formula; features are public random ones."""
    std, prior, bought = 0.3, 2 / 9, 10
    bank = lib.deposit(
        lib.empty_bank(12, SHAPE, CLASSES),
        0,
        images(10),
        np.random.default_rng(0).normal(size=(10, CLASSES)).astype(np.float32),
    )
    features = np.asarray(
        FeatureRidge(num_classes=2).public(images(10).astype(np.float32) / 255), np.float64
    )
    kernel = prior * features @ features.T
    away = bank["answers"][:bought] - 1 / 3
    expected = 1 / 3 + kernel @ np.linalg.solve(kernel + std**2 * np.eye(bought), away)
    found = lib.smooth(bank, bought, std)
    np.testing.assert_allclose(found["targets"][:bought], expected, atol=1e-4)
    np.testing.assert_array_equal(found["targets"][bought:], 0)
    np.testing.assert_array_equal(found["answers"], bank["answers"])
    # Of next to no noise nothing is taken away, of much noise nothing is believed.
    sure, unsure = (lib.smooth(bank, bought, std)["targets"][:bought] for std in (1e-3, 1e3))
    np.testing.assert_allclose(sure, bank["answers"][:bought], atol=0.01)
    np.testing.assert_allclose(unsure, 1 / 3, atol=0.01)


# -- which queries are bought ------------------------------------------------------------------


def test_queries_are_chosen_in_equal_parts_from_what_the_student_takes_them_for():
    rng = np.random.default_rng(0)
    classes = rng.choice(CLASSES, 300, p=[0.8, 0.15, 0.05])
    chosen = lib.choose_balanced(predictions(classes), 60)
    np.testing.assert_array_equal(chosen, lib.choose_balanced(predictions(classes), 60))
    assert (np.diff(chosen) > 0).all() and len(chosen) == 60
    counts = np.bincount(classes[chosen], minlength=CLASSES)
    assert counts[2] == min((classes == 2).sum(), 20)
    assert abs(counts[0] - counts[1]) <= 1
    # The first of a class, as far as they are needed.
    for name in range(CLASSES):
        taken = np.isin(np.flatnonzero(classes == name), chosen)
        assert taken[: taken.sum()].all()
    few = lib.choose_balanced(predictions(classes), 3)
    assert sorted(classes[few].tolist()) == [0, 1, 2]
    everything = lib.choose_balanced(predictions(classes), 300)
    np.testing.assert_array_equal(everything, np.arange(300))
    same = lib.choose_balanced(predictions([1] * 9), 4)
    np.testing.assert_array_equal(same, np.arange(4))
