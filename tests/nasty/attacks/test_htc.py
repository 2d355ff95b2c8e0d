"""HTC: its formula and gradient by hand, and its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from distill_core import cross_entropy
from nasty.attacks.htc import htc_loss

C = 5


def log_softmax(z):
    return special.log_softmax(np.asarray(z, np.float64), axis=-1)


def by_hand(student, teacher, labels, temperature=50.0, alpha=0.9, multiplier=2.0):
    log_p, log_s = log_softmax(np.asarray(teacher, np.float64) / temperature), log_softmax(student)
    p = np.exp(log_p)
    divergence = np.where(p > 0, p * (np.where(p > 0, log_p, 0) - log_s), 0).sum(-1)
    hard = -np.take_along_axis(log_s, labels[..., None], -1)[..., 0]
    return alpha * multiplier * divergence + (1 - alpha) * hard


def gradient_by_hand(student, teacher, labels, temperature=50.0, alpha=0.9, multiplier=2.0):
    s = np.exp(log_softmax(student))
    p = np.exp(log_softmax(np.asarray(teacher, np.float64) / temperature))
    return alpha * multiplier * (s - p) + (1 - alpha) * (s - np.eye(C)[labels])


def htc(student, teacher, labels, temperature=50.0, alpha=0.9, multiplier=2.0, where=None):
    settings = {"temperature": temperature, "alpha": alpha, "multiplier": multiplier}
    return htc_loss(student, teacher, labels, **settings, where=where)


def gradients(*args, argnums=0):
    return jax.jit(jax.grad(lambda *a: jnp.sum(htc(*a)), argnums))(*args)


def draw(shape=(4,)):
    rng = np.random.default_rng(0)
    student = rng.normal(scale=3, size=(*shape, C)).astype(np.float32)
    teacher = rng.normal(scale=40, size=(*shape, C)).astype(np.float32)
    return student, teacher, rng.integers(0, C, shape)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
def test_it_is_the_formula_and_its_gradient_for_any_leading_axes(shape):
    found = jax.jit(htc)(*draw(shape))
    assert found.shape == shape
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, by_hand(*draw(shape)), rtol=1e-4)
    np.testing.assert_allclose(gradients(*draw(shape)), gradient_by_hand(*draw(shape)), atol=1e-5)


def test_the_temperature_is_the_teachers_alone():
    student, teacher, labels = draw()
    hot, cold = jax.jit(htc)(student, teacher, labels), htc(student, teacher / 50, labels, 1.0)
    np.testing.assert_allclose(hot, cold, rtol=1e-5)


def test_without_alpha_it_is_cross_entropy():
    student, teacher, labels = draw()
    np.testing.assert_array_equal(
        htc(student, teacher, labels, alpha=0.0), cross_entropy(student, labels)
    )


def test_the_teacher_gets_no_gradient_and_may_exclude_classes():
    student, teacher, labels = draw()
    teacher[:, :3] = -np.inf
    of_student, of_teacher, of_temperature = gradients(
        student, teacher, labels, 50.0, 0.9, argnums=(0, 1, 3)
    )
    np.testing.assert_array_equal(of_teacher, 0)
    assert of_temperature == 0
    np.testing.assert_allclose(of_student, gradient_by_hand(student, teacher, labels), atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(htc)(student, teacher, labels), by_hand(student, teacher, labels), rtol=1e-4
    )


def test_it_stays_finite_at_huge_logits():
    student, teacher, labels = draw()
    student, teacher = 1e4 * np.sign(student), 1e4 * np.sign(teacher)
    np.testing.assert_allclose(
        jax.jit(htc)(student, teacher, labels), by_hand(student, teacher, labels), rtol=1e-4
    )
    found = gradients(student, teacher, labels)
    np.testing.assert_allclose(found, gradient_by_hand(student, teacher, labels), atol=1e-4)


def test_masked_entries_are_zero_and_harmless_whatever_they_hold(masked_is_sliced):
    settings = [np.linspace(a, b, 6, dtype=np.float32).reshape(2, 3) for a, b in ((20, 60), (0, 1))]
    args = [*draw((2, 3)), *settings, np.ones((2, 3), np.float32)]
    masked_is_sliced(htc, args, (0, 1, 3, 4, 5))


@pytest.mark.parametrize(
    ("setting", "value"), [("temperature", 0), ("alpha", 1.1), ("multiplier", -1.0)]
)
def test_a_setting_outside_its_range_is_refused(setting, value):
    with pytest.raises(ValueError, match=f"^{setting}: got {value}"):
        htc(*draw(), **{setting: value})
