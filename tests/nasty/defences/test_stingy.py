"""The stingy teacher: what it releases, and that students can learn from that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core import distillation_loss
from distill_core.config import InputError
from nasty.defences.stingy import check_top_k, release_top_k


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_the_largest_are_released_and_no_others(shape, top_k):
    logits = np.random.default_rng(0).normal(size=(*shape, 5)).astype(np.float32)
    found = jax.jit(release_top_k, static_argnums=1)(logits, top_k)
    assert found.dtype == jnp.float32
    smallest = np.sort(logits, -1)[..., -top_k][..., None]
    np.testing.assert_array_equal(found, np.where(logits >= smallest, logits, -np.inf))


def test_of_equal_logits_exactly_so_many_are_released():
    found = release_top_k(jnp.zeros((2, 4), jnp.bfloat16), 2)
    np.testing.assert_array_equal(found, [[0, 0, -np.inf, -np.inf]] * 2)


def test_a_student_learns_from_the_softmax_over_what_is_released():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(scale=3, size=(2, 4, 5)).astype(np.float32)
    labels = rng.integers(0, 5, 4)

    def loss(student, teacher):
        released = release_top_k(teacher, 2)
        return jnp.sum(distillation_loss(student, released, labels, temperature=4.0, alpha=0.9))

    of_student, of_teacher = jax.grad(loss, (0, 1))(student, teacher)
    odds = np.exp(teacher / 4) * (teacher >= np.sort(teacher, -1)[:, -2:-1])
    target = odds / odds.sum(-1, keepdims=True)
    expected = 0.9 * 4 * (jax.nn.softmax(student / 4) - target)
    expected += 0.1 * (jax.nn.softmax(student) - np.eye(5)[labels])
    np.testing.assert_allclose(of_student, expected, atol=1e-5)
    np.testing.assert_array_equal(of_teacher, 0)


@pytest.mark.parametrize("top_k", [0, 6, -1])
def test_a_number_that_the_classes_do_not_have_is_refused_in_one_line(top_k):
    for refuse in (lambda: check_top_k(top_k, 5), lambda: release_top_k(jnp.zeros(5), top_k)):
        with pytest.raises(InputError, match="^top_k: "):
            refuse()
    check_top_k(None, 5)
    check_top_k(5, 5)
