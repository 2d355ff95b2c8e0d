"""The losses against float64 formulas in NumPy, against Optax, and at the edges of float32."""

from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from distill_core import cross_entropy, distillation_loss, kl_divergence, losses

C = 5
SHAPES = [(), (4,), (2, 3)]


def np_log_softmax(z):
    return special.log_softmax(np.asarray(z, np.float64), axis=-1)


def np_kl(p, q, labels=None, temperature=1.0, alpha=None):
    t = np.asarray(temperature, np.float64)[..., None]
    log_p, log_q = np_log_softmax(np.asarray(p) / t), np_log_softmax(np.asarray(q) / t)
    live = np.exp(log_p) > 0
    return np.sum(np.exp(log_p) * np.where(live, np.where(live, log_p, 0) - log_q, 0), -1)


def np_ce(z, other, labels, temperature=None, alpha=None):
    return -np.take_along_axis(np_log_softmax(z), np.asarray(labels)[..., None], -1)[..., 0]


def np_distillation(student, teacher, labels, temperature=1.0, alpha=0.5):
    soft = np.asarray(temperature) ** 2 * np_kl(teacher, student, temperature=temperature)
    return alpha * soft + (1 - np.asarray(alpha)) * np_ce(student, None, labels)


def kl(p, q, labels, temperature=1.0, alpha=None, where=None):
    return kl_divergence(p, q, temperature=temperature, where=where)


def ce(z, other, labels, temperature=None, alpha=None, where=None):
    return cross_entropy(z, labels, where=where)


def distillation(student, teacher, labels, temperature=1.0, alpha=0.5, where=None):
    return distillation_loss(
        student, teacher, labels, temperature=temperature, alpha=alpha, where=where
    )


# Each as loss(trained logits, other logits, labels, temperature, alpha, where).
PAIRS = [(kl, np_kl), (ce, np_ce), (distillation, np_distillation)]
both = pytest.mark.parametrize(
    ("loss", "formula"), PAIRS, ids=["kl_divergence", "cross_entropy", "distillation_loss"]
)
each = pytest.mark.parametrize("loss", [kl, ce, distillation])


def draw(shape=(4,)):
    rng = np.random.default_rng(0)
    a, b = rng.normal(scale=3, size=(2, *shape, C)).astype(np.float32)
    return a, b, rng.integers(0, C, shape)


def central_differences(f, x, eps=1e-5):
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = eps
        gradient[i] = (f(x + step).sum() - f(x - step).sum()) / (2 * eps)
    return gradient


def summed_gradient(loss, argnums, *args):
    return jax.jit(jax.grad(lambda *a: jnp.sum(loss(*a)), argnums))(*args)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@both
def test_it_is_the_formula_for_any_leading_axes_under_jit(loss, formula, shape):
    a, b, labels = draw(shape)
    found = jax.jit(loss)(a, b, labels, 2.5, 0.3)
    assert found.shape == shape
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, formula(a, b, labels, 2.5, 0.3), rtol=1e-5, atol=1e-6)


@both
def test_the_gradient_is_that_of_the_formula(loss, formula):
    a, b, labels = draw()
    found = summed_gradient(loss, 0, a, b, labels, 2.5, 0.3)
    expected = central_differences(lambda z: formula(z, b, labels, 2.5, 0.3), a)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    if loss is kl:
        found = summed_gradient(loss, 1, a, b, labels, 2.5)
        expected = central_differences(lambda z: formula(a, z, labels, 2.5), b)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__
)
@both
def test_it_stays_finite_at_huge_logits_in_every_float_type(loss, formula, dtype):
    a, b, labels = draw()
    a, b = (jnp.asarray(np.r_[z[:1], 1e4 * np.sign(z[1:])], dtype) for z in (a, b))
    found = jax.jit(loss)(a, b, labels, 4.0, 0.9)
    assert found.dtype == jnp.float32
    a64, b64 = (np.asarray(z, np.float64) for z in (a, b))
    np.testing.assert_allclose(found, formula(a64, b64, labels, 4.0, 0.9), rtol=1e-4, atol=1e-5)
    assert np.max(found) > 1e3, "the case is not extreme"
    for gradient in summed_gradient(loss, (0, 1), a, b, labels, 4.0, 0.9):
        assert gradient.dtype == dtype
        assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_the_reference_may_exclude_classes():
    student, teacher, labels = draw()
    teacher[:, 1:3] = -np.inf
    teacher[0, 3:] = -np.inf  # one class left
    for loss, formula, args in [
        (kl, np_kl, (teacher, student, labels, 2.0)),
        (distillation, np_distillation, (student, teacher, labels, 2.0, 0.7)),
    ]:
        np.testing.assert_allclose(jax.jit(loss)(*args), formula(*args), rtol=1e-5)
        for gradient in summed_gradient(loss, (0, 1), *args):
            assert np.isfinite(gradient).all()
    p, q = (np.exp(np_log_softmax(z / 2.0)) for z in (teacher, student))
    pull = summed_gradient(kl, 1, teacher, student, labels, 2.0)
    np.testing.assert_allclose(pull, (q - p) / 2, atol=1e-6)


def test_gradients_of_the_divergence_are_right_where_probabilities_underflow():
    p_logits = np.array([[0.0, -500.0, -2e4, 1.0, -90.0]], np.float32)  # e⁻⁹⁰ is subnormal
    q_logits = np.array([[-300.0, 0.0, 2.0, -1e4, 1.0]], np.float32)
    of_p, of_q = summed_gradient(kl, (0, 1), p_logits, q_logits, None)
    log_p, log_q = np_log_softmax(p_logits), np_log_softmax(q_logits)
    p, q = np.exp(log_p), np.exp(log_q)
    divergence = np_kl(p_logits, q_logits)[:, None]
    np.testing.assert_allclose(of_p, p * (log_p - log_q - divergence), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(of_q, q - p, rtol=1e-5, atol=1e-6)


def exact_kl(p_logits, q_logits, temperature):
    """(KL, its gradients by both logits) of one example in 60 digits, of the numbers as given."""
    with localcontext(prec=60):
        t = Decimal(float(np.float32(temperature)))
        logs = []
        for logits in (p_logits, q_logits):
            z = [Decimal(float(x)) / t for x in logits]
            total = sum((x.exp() for x in z), Decimal(0)).ln()
            logs.append([x - total for x in z])
        p = [x.exp() for x in logs[0]]
        q = [x.exp() for x in logs[1]]
        ratio = [a - b if a.is_finite() else Decimal(0) for a, b in zip(*logs, strict=True)]
        divergence = sum(a * r for a, r in zip(p, ratio, strict=True))
        of_p = [a * (r - divergence) / t for a, r in zip(p, ratio, strict=True)]
        of_q = [(b - a) / t for a, b in zip(p, q, strict=True)]
        return float(divergence), np.array(of_p, float), np.array(of_q, float)


def close_to_one_another(kind):
    """Logits of two networks that soften to nearly equal probabilities."""
    rng = np.random.default_rng(0)
    p, q = rng.normal(scale=3, size=(2, 4, C)).astype(np.float32)
    if kind == "wide":
        p, q = 3e3 * p, 3e3 * q
    elif kind == "shifted":
        q += np.float32(1e4)
    elif kind == "nearly equal":
        q = p + np.float32(1e-3) * q
    elif kind == "sure":
        p[:, 2] += 20
        q[:, 2] += 20
    elif kind == "exclusive":
        p[:, 1:3] = -np.inf
        q[:2, 1] = -np.inf
    return p, q


@pytest.mark.parametrize("temperature", [1.0, 100.0, 1e3, 1e4, 1e6])
@pytest.mark.parametrize("kind", ["usual", "wide", "shifted", "nearly equal", "sure", "exclusive"])
def test_nearly_equal_distributions_keep_the_digits_of_their_divergence(kind, temperature):
    p, q = close_to_one_another(kind)
    found = jax.jit(kl)(p, q, None, temperature)
    of_p, of_q = summed_gradient(kl, (0, 1), p, q, None, temperature)
    for i in range(len(p)):
        exact, exact_of_p, exact_of_q = exact_kl(p[i], q[i], temperature)
        np.testing.assert_allclose(found[i], exact, rtol=1e-5)
        for gradient, wanted in ((of_p[i], exact_of_p), (of_q[i], exact_of_q)):
            # Where the divergence is large, so is the rounding of what it multiplies.
            scale = np.abs(wanted).max() + 1e-3 * exact / temperature + 1e-36
            np.testing.assert_allclose(gradient / scale, wanted / scale, atol=1e-4)


def test_the_derivative_by_the_temperature_is_that_of_the_formula():
    a, b, _ = draw()
    t = np.array([0.5, 2.0, 10.0, 100.0])
    a[0, 1] = -np.inf
    found = jax.jit(jax.grad(lambda t: kl(a, b, None, t).sum()))(jnp.asarray(t))
    wanted = central_differences(lambda t: np_kl(a, b, temperature=t), t)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_a_class_that_the_reference_allows_may_not_be_excluded():
    p, q = jnp.zeros(3), jnp.array([0.0, 1.0, -jnp.inf])
    assert jax.jit(kl)(p, q, None) == np.inf
    assert np.isfinite(summed_gradient(kl, 1, p, q, None)).all()
    opposite = jnp.array([1e4, -1e4, -1e4])
    assert jax.jit(kl)(opposite, -opposite.at[2].set(1e4), None) == 2e4


@pytest.mark.parametrize(
    ("loss", "by"), [(ce, (0,)), (kl, (0, 1, 3)), (distillation, (0, 1, 3, 4))]
)
def test_masked_entries_are_zero_and_harmless_whatever_they_hold(loss, by, masked_is_sliced):
    temperature = np.linspace(1, 4, 6, dtype=np.float32).reshape(2, 3)
    alpha = np.linspace(0.1, 0.9, 6, dtype=np.float32).reshape(2, 3)
    masked_is_sliced(loss, [*draw((2, 3)), temperature, alpha], by)


def test_the_teacher_gets_no_gradient():
    student, teacher, labels = draw()
    of_student, of_teacher = summed_gradient(distillation, (0, 1), student, teacher, labels, 2.0)
    np.testing.assert_array_equal(of_teacher, 0)
    assert np.abs(of_student).max() > 0.01


def test_temperature_and_alpha_act_on_each_element_before_any_reduction():
    a, b, labels = draw()
    temperatures, alphas = np.array([0.5, 1.0, 4.0, 20.0]), np.array([0.0, 0.3, 0.9, 1.0])
    together = jax.jit(distillation)(a, b, labels, temperatures, alphas)
    divergence = jax.jit(kl)(a, b, labels, temperatures)
    for i, (t, alpha) in enumerate(zip(temperatures, alphas, strict=True)):
        alone = jax.jit(distillation)(a, b, labels, float(t), float(alpha))
        np.testing.assert_allclose(together[i], alone[i], rtol=1e-5)
        np.testing.assert_allclose(divergence[i], jax.jit(kl)(a, b, labels, float(t))[i], rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        *[
            (lambda a, b, y, loss=loss, t=t: loss(a, b, y, t), "temperature: ")
            for t in (0, 0.0, -1.0, np.nan, np.inf, np.float32(-2))
            for loss in (kl, distillation)
        ],
        *[
            (lambda a, b, y, alpha=alpha: distillation(a, b, y, 1.0, alpha), "alpha: ")
            for alpha in (-0.1, 1.01, np.nan, -np.inf)
        ],
        (lambda a, b, y: kl_divergence(a, b[:3]), "logits_p .* logits_q "),  # shapes, from here on
        (lambda a, b, y: distillation(a, b[..., :4], y), "student_logits .* teacher_logits "),
        (lambda a, b, y: cross_entropy(a[0, 0], y[0]), "logits "),
        (lambda a, b, y: cross_entropy(a, y[:, None]), "labels: "),
        (lambda a, b, y: cross_entropy(a, a), "labels: "),
        (lambda a, b, y: cross_entropy(a, y * 1.0), "labels: "),
        (lambda a, b, y: cross_entropy(a, y, where=np.ones((4, 5), bool)), "where: "),
        (lambda a, b, y: kl_divergence(a, b, temperature=jnp.ones(5)), "temperature: "),
        (lambda a, b, y: distillation(a, b, y, 1.0, jnp.ones((4, 1))), "alpha: "),
    ],
)
def test_settings_out_of_range_and_shapes_that_do_not_belong_together_are_refused(call, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        call(*draw())
    assert jax.jit(distillation)(*draw(), 0.0, -1.0).shape == (4,), "traced settings pass"


def test_a_label_outside_the_classes_gives_nan():
    logits = jnp.zeros((4, C))
    found = np.isnan(jax.jit(cross_entropy)(logits, jnp.array([-1, 0, C - 1, C])))
    np.testing.assert_array_equal(found, [True, False, False, True])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
def test_labels_may_be_of_any_integer_type(dtype):
    logits = np.random.default_rng(0).normal(size=(2, 300)).astype(np.float32)
    labels = np.array([3, 100], dtype)
    np.testing.assert_allclose(
        jax.jit(cross_entropy)(logits, labels), np_ce(logits, None, labels), rtol=1e-5
    )
    if dtype is np.int8:
        assert np.isnan(jax.jit(cross_entropy)(logits, -labels)).all()


def test_standardized_logits_know_neither_shift_nor_scale_and_keep_excluded_classes_out():
    logits = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    expected = (logits - logits.mean(1, keepdims=True)) / logits.std(1, keepdims=True)
    np.testing.assert_allclose(losses.standardized(logits), expected, rtol=1e-4, atol=1e-6)
    moved = losses.standardized(3.0 * logits - 40.0)
    np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-4)
    excluded = np.concatenate([logits, np.full((5, 1), -np.inf, np.float32)], 1)
    found = losses.standardized(excluded)
    np.testing.assert_allclose(found[:, :7], expected, rtol=1e-4, atol=1e-6)
    assert np.isneginf(found[:, 7]).all()
    even = jnp.full((1, 3), 0.1)
    grads = jax.grad(lambda x: losses.standardized(x).sum())(even)
    assert not losses.standardized(even).any() and np.isfinite(grads).all()
