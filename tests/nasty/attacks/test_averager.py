"""The averager's class means."""

import numpy as np

from distill_core import distillation_loss
from nasty.attacks.averager import class_means


def test_a_row_is_the_mean_of_the_answers_to_its_class():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 4)).astype(np.float32)
    labels = rng.integers(0, 3, 40)
    found = class_means(logits, labels)
    assert found.shape == (4, 4)
    assert found.dtype == np.float32
    for k in range(3):
        np.testing.assert_allclose(found[k], logits[labels == k].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[3], 0)  # no example has this class


def test_logits_that_were_withheld_do_not_count():
    inf = np.inf
    logits = [[1.0, -inf, 6.0], [3.0, -inf, -inf], [-inf, 2.0, 1.0]]
    found = class_means(logits, [0, 0, 1])
    np.testing.assert_array_equal(found, [[2, -inf, 6], [-inf, 2, 1], [0, 0, 0]])
    student = np.zeros((3, 3), np.float32)
    loss = distillation_loss(student, found, np.array([0, 1, 2]), temperature=4.0, alpha=0.9)
    assert np.isfinite(loss).all()


def test_sums_of_huge_logits_do_not_overflow():
    found = class_means(np.full((1000, 2), 1e38, np.float32), np.zeros(1000, int))
    np.testing.assert_allclose(found[0], 1e38, rtol=1e-6)
