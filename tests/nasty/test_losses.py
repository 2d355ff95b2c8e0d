"""The nasty loss against its formula, its closed-form gradient, and at the edges of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from distill_core import cross_entropy, kl_divergence
from nasty import nasty_loss

C = 5
# At ω = 0.1, τ = 3 the KL term outweighs the cross-entropy in the drawn logits.
TEMPERATURE, OMEGA = 3.0, 0.1


def np_log_softmax(z):
    return special.log_softmax(np.asarray(z, np.float64), axis=-1)


def np_parts(teacher, adversary, temperature):
    """(s, log s − log q with 0 where s is 0, KL) of the softened distributions."""
    t = np.asarray(temperature, np.float64)[..., None]
    log_s, log_q = np_log_softmax(teacher / t), np_log_softmax(adversary / t)
    s = np.exp(log_s)
    ratio = np.where(s > 0, np.where(s > 0, log_s, 0) - log_q, 0)
    return s, ratio, np.sum(s * ratio, -1)


def np_nasty(teacher, adversary, labels, temperature=TEMPERATURE, omega=OMEGA):
    teacher, adversary = (np.asarray(z, np.float64) for z in (teacher, adversary))
    hard = -np.take_along_axis(np_log_softmax(teacher), labels[..., None], -1)[..., 0]
    divergence = np_parts(teacher, adversary, temperature)[2]
    return hard - np.asarray(omega) * np.asarray(temperature) ** 2 * divergence


def np_gradient(teacher, adversary, labels, temperature=TEMPERATURE, omega=OMEGA):
    """p − y − ω τ s (log(s/q) − KL), the method's closed form."""
    teacher, adversary = (np.asarray(z, np.float64) for z in (teacher, adversary))
    p, y = np.exp(np_log_softmax(teacher)), np.eye(C)[labels]
    s, ratio, divergence = np_parts(teacher, adversary, temperature)
    factor = np.asarray(omega * temperature)[..., None]
    return p - y - factor * s * (ratio - divergence[..., None])


def nasty(teacher, adversary, labels, temperature=TEMPERATURE, omega=OMEGA, where=None):
    return nasty_loss(teacher, adversary, labels, temperature=temperature, omega=omega, where=where)


def gradients(argnums, *args):
    return jax.jit(jax.grad(lambda *a: jnp.sum(nasty(*a)), argnums))(*args)


def draw(shape=(4,)):
    rng = np.random.default_rng(0)
    teacher, adversary = rng.normal(scale=3, size=(2, *shape, C)).astype(np.float32)
    return teacher, adversary, rng.integers(0, C, shape)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
def test_it_is_the_formula_for_any_leading_axes_under_jit(shape):
    found = jax.jit(nasty)(*draw(shape))
    assert found.shape == shape
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np_nasty(*draw(shape)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("temperature", "omega"), [(1.0, 0.5), (4.0, 0.04), (20.0, 0.005)])
def test_its_gradient_has_the_closed_form(temperature, omega):
    teacher, adversary, labels = draw((2, 3))
    (found,) = gradients((0,), teacher, adversary, labels, temperature, omega)
    expected = np_gradient(teacher, adversary, labels, temperature, omega)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_closed_form_is_the_formulas_gradient():
    """Central differences in float64, so that the test above compares with the truth."""
    teacher, adversary, labels = draw()
    numeric = np.zeros(teacher.shape)
    for i in np.ndindex(teacher.shape):
        step = np.zeros(teacher.shape)
        step[i] = 1e-5
        change = [np_nasty(teacher + sign * step, adversary, labels).sum() for sign in (1, -1)]
        numeric[i] = (change[0] - change[1]) / 2e-5
    np.testing.assert_allclose(np_gradient(teacher, adversary, labels), numeric, atol=1e-8)


@pytest.mark.parametrize("omega", [0, 0.0, jnp.zeros(4)], ids=["int", "float", "array"])
def test_without_omega_it_is_cross_entropy(omega):
    teacher, adversary, labels = draw()
    found = nasty(teacher, adversary, labels, 20.0, omega)
    np.testing.assert_array_equal(found, cross_entropy(teacher, labels))


def test_the_teacher_is_the_first_argument_of_the_divergence():
    teacher, adversary, labels = draw()

    @jax.jit
    def terms(teacher, adversary, labels):
        pushed = cross_entropy(teacher, labels) - nasty(teacher, adversary, labels)
        away = kl_divergence(teacher, adversary, temperature=TEMPERATURE)
        return pushed, OMEGA * TEMPERATURE**2 * away

    pushed, away = terms(teacher, adversary, labels)
    np.testing.assert_allclose(pushed, away, rtol=1e-4)


def test_the_adversary_gets_no_gradient():
    of_teacher, of_adversary = gradients((0, 1), *draw())
    np.testing.assert_array_equal(of_adversary, 0)
    assert np.abs(of_teacher).max() > 0.01


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__
)
def test_it_stays_finite_at_huge_logits_in_every_float_type(dtype):
    teacher, adversary, labels = draw()
    teacher, adversary = (
        jnp.asarray(np.r_[z[:1], 1e4 * np.sign(z[1:])], dtype) for z in (teacher, adversary)
    )
    found = jax.jit(nasty)(teacher, adversary, labels, 4.0, 0.04)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
        found, np_nasty(teacher, adversary, labels, 4.0, 0.04), rtol=1e-4, atol=1e-4
    )
    assert np.abs(found).max() > 1e3, "the case is not extreme"
    (gradient,) = gradients((0,), teacher, adversary, labels, 4.0, 0.04)
    assert gradient.dtype == dtype
    expected = np_gradient(teacher, adversary, labels, 4.0, 0.04)
    rtol = float(jnp.finfo(dtype).eps) + 1e-4
    np.testing.assert_allclose(np.asarray(gradient, np.float32), expected, rtol=rtol, atol=1e-3)


def test_the_gradient_is_right_where_the_teachers_probabilities_underflow():
    teacher = np.array([[0.0, -2e3, -1e4, 5.0, -360.0]], np.float32)
    adversary = np.array([[-1e3, 5.0, 1e4, 0.0, 1.0]], np.float32)
    labels = np.array([3])
    np.testing.assert_allclose(
        gradients((0,), teacher, adversary, labels)[0],
        np_gradient(teacher, adversary, labels),
        rtol=1e-4,
        atol=1e-3,
    )


def test_the_teacher_may_exclude_classes():
    teacher, adversary, labels = draw()
    wrong = (labels[:, None] + np.array([1, 3])) % C
    np.put_along_axis(teacher, wrong, -np.inf, -1)
    np.testing.assert_allclose(
        jax.jit(nasty)(teacher, adversary, labels), np_nasty(teacher, adversary, labels), rtol=1e-4
    )
    (found,) = gradients((0,), teacher, adversary, labels)
    np.testing.assert_allclose(found, np_gradient(teacher, adversary, labels), rtol=1e-4, atol=1e-5)


def test_masked_entries_are_zero_and_harmless_whatever_they_hold(masked_is_sliced):
    temperature = np.linspace(1, 4, 6, dtype=np.float32).reshape(2, 3)
    omega = np.linspace(0.01, 0.2, 6, dtype=np.float32).reshape(2, 3)
    masked_is_sliced(nasty, [*draw((2, 3)), temperature, omega], (0, 1, 3, 4))


def test_temperature_and_omega_act_on_each_element_before_any_reduction():
    args = draw()
    temperatures, omegas = jnp.array([0.5, 1.0, 4.0, 20.0]), jnp.array([0.0, 0.01, 0.1, 1.0])
    together = jax.jit(nasty)(*args, temperatures, omegas)
    mapped = jax.jit(jax.vmap(nasty))(*args, temperatures, omegas)
    np.testing.assert_allclose(mapped, together, rtol=1e-5, atol=1e-6)
    for i in range(4):
        alone = jax.jit(nasty)(*args, float(temperatures[i]), float(omegas[i]))
        np.testing.assert_allclose(together[i], alone[i], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        *[({"omega": v}, "omega: ") for v in (-0.01, np.nan, np.inf, jnp.ones(5))],
        *[({"temperature": v}, "temperature: ") for v in (0, -1.0, np.nan, np.inf, jnp.ones(5))],
        ({"adversary": np.zeros((4, C + 1))}, "teacher_logits .* adversary_logits "),
        ({"labels": np.zeros((4, 1), int)}, "labels: "),
        ({"where": np.ones((4, C), bool)}, "where: "),
    ],
)
def test_settings_out_of_range_and_shapes_that_do_not_belong_together_are_refused(change, named):
    args = dict(zip(("teacher", "adversary", "labels"), draw(), strict=True))
    with pytest.raises(ValueError, match=f"^{named}"):
        nasty(**{**args, **change})
