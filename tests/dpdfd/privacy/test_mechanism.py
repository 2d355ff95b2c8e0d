"""What leaves a teacher: sensitivities under attack, hostile rows, and the noise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy import special

import dpdfd
from distill_core.privacy.per_example import SLACK
from distill_core.runtime.collectives import AXIS
from dpdfd import ensemble_gradients, private_answers, privatize_logit_gradients

KEY = jax.random.key(11)
MODES = ["normalize", "clip"]
ROOT2 = math.sqrt(2)
GARBAGE = np.array(
    [
        [np.nan, 0.5, 0.5], [np.inf, 0, 0], [-np.inf, 1, 0], [0, 0, 0], [-1, -2, -3],
        [1e30, 1e30, -1e30], [3e38, 3e38, 3e38], [1e-40, 0, 0],
        [5, -4, 0], [0, 0, 7], [1, 0, 0], [0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3],
    ],
    np.float32,
)  # fmt: skip
BROKEN = np.arange(len(GARBAGE)) < 5  # no distribution can be made of them


def softmax(z):
    return special.softmax(z, axis=-1).astype(np.float32)


def draw(rows=6, classes=4, teachers=3, seed=0):
    rng = np.random.default_rng(seed)
    student = rng.normal(size=(rows, classes)).astype(np.float32)
    return student, softmax(2 * rng.normal(size=(teachers, rows, classes)))


def logit_gradients(student, teacher, norm=0.5, mode="normalize", multiplier=0.0, **kw):
    noise = {"norm": norm, "noise_multiplier": multiplier}
    return privatize_logit_gradients(KEY, student, teacher, mode=mode, **noise, **kw)


def ensemble(student, teachers, order, norm=0.5, mode="clip", multiplier=0.0, **kw):
    noise = {"norm": norm, "noise_multiplier": multiplier}
    return ensemble_gradients(KEY, student, teachers, order=order, mode=mode, **noise, **kw)


def bounded(grads, norm, mode):
    norms = np.linalg.norm(grads, axis=-1, keepdims=True)
    return grads * (norm / norms if mode == "normalize" else np.minimum(1, norm / norms))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_without_noise_they_are_the_formulas_under_jit(mode, dtype):
    student, teachers = draw()
    student = jnp.asarray(student, dtype)
    grads = softmax(np.asarray(student, np.float64)) - teachers
    found = jax.jit(lambda *a, norm: logit_gradients(*a, norm, mode))(
        student, teachers[0], norm=0.4
    )
    assert (found.shape, found.dtype) == ((6, 4), jnp.float32)
    np.testing.assert_allclose(found, bounded(grads[0], 0.4, mode), rtol=1e-5, atol=1e-6)

    found = jax.jit(lambda *a: ensemble(*a, "bound_then_mean", 0.4, mode))(student, teachers)
    expected = bounded(grads, 0.4, mode).mean(0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    found = jax.jit(lambda *a: ensemble(*a, "mean_then_bound", 0.4))(student, teachers)
    expected = bounded(grads.mean(0), 0.4, "clip")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    found = jax.jit(lambda t: private_answers(KEY, t, noise_multiplier=0.0))(teachers)
    assert (found.shape, found.dtype) == ((6, 4), jnp.float32)
    np.testing.assert_allclose(found, teachers.mean(0), rtol=1e-5)
    votes = np.eye(4, dtype=np.int8)[np.array([[0, 1], [0, 2], [3, 2], [0, 2]])]
    found = private_answers(KEY, votes, noise_multiplier=0.0)
    np.testing.assert_array_equal(found, [[0.75, 0, 0, 0.25], [0, 0.25, 0.75, 0]])


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_by_parameters_is_their_product_with_the_jacobian(mode):
    """Where parameters are the logits themselves, both mechanisms bound the same vectors."""
    student, teachers = draw()

    def loss_fn(bias, example):
        logits, probs = example
        return -jnp.sum(probs * jax.nn.log_softmax(logits + bias))

    total = dpdfd.bounded_gradient_sum(
        loss_fn, jnp.zeros(4), (student, teachers[0]), norm=0.5, mode=mode
    )
    logits, pull_back = jax.vjp(lambda bias: student + jnp.tile(bias, (6, 1)), jnp.zeros(4))
    (found,) = pull_back(logit_gradients(logits, teachers[0], mode=mode))
    np.testing.assert_allclose(found, total, rtol=1e-5, atol=1e-6)


def opposite(student, size):
    """Two teachers that differ from the student by ±size·v, with v along the first two classes."""
    away = size * np.array([1, -1] + [0] * (student.shape[-1] - 2), np.float32)
    return softmax(student) + away, softmax(student) - away


def moved(release, one, other):
    """The largest distance (L2) between a query's releases."""
    return float(np.linalg.norm(np.asarray(release(one)) - release(other), axis=-1).max())


def assert_tight(found, bound):
    assert 0.9 * bound <= found <= bound * (1 + SLACK)


@pytest.mark.parametrize(("mode", "norm"), [("normalize", 3.0), ("clip", 0.1), ("clip", 5.0)])
def test_one_teacher_moves_a_query_as_far_as_stated(mode, norm):
    student = np.zeros((1, 4), np.float32)
    bound = 2 * norm if mode == "normalize" else min(2 * norm, ROOT2)
    corners = np.eye(4, dtype=np.float32)[None, :2]
    pairs = [opposite(student, 0.2), (corners[:, 0], corners[:, 1])]
    tried = [moved(lambda t: logit_gradients(student, t, norm, mode), *pair) for pair in pairs]
    assert_tight(max(tried), bound)


@pytest.mark.parametrize("mode", MODES)
def test_one_teacher_moves_the_sum_by_all_queries_and_one_query_by_itself(mode):
    rows, norm = 5, 0.1
    x = np.tile(np.array([0.5, -1, 2], np.float32), (rows, 1))
    params = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)

    def loss_fn(params, example):
        x, probs = example
        return -jnp.sum(probs * jax.nn.log_softmax(x @ params))

    def release(probs):
        total = dpdfd.bounded_gradient_sum(loss_fn, params, (x, probs), norm=norm, mode=mode)
        return np.ravel(total)

    one, other = opposite(x @ params, 0.1)
    assert_tight(moved(release, one, other), 2 * rows * norm)
    replaced = np.concatenate([other[:1], one[1:]])
    assert_tight(moved(release, one, replaced), 2 * norm)


def test_one_of_many_teachers_moves_an_answer_as_far_as_stated():
    _, teachers = draw(teachers=20)
    one, other = teachers.copy(), teachers.copy()
    one[3], other[3] = np.eye(4, dtype=np.float32)[0], np.eye(4, dtype=np.float32)[1]
    answers = jax.jit(lambda t: private_answers(KEY, t, noise_multiplier=0.0))
    assert_tight(moved(answers, one, other), ROOT2 / 20)


@pytest.mark.parametrize(
    ("order", "mode", "norm", "bound"),
    [
        ("bound_then_mean", "normalize", 3.0, 6.0 / 20),
        ("bound_then_mean", "clip", 0.1, 0.2 / 20),
        ("bound_then_mean", "clip", 5.0, ROOT2 / 20),
        ("mean_then_bound", "clip", 0.01, 0.02),
        ("mean_then_bound", "clip", 5.0, ROOT2 / 20),
    ],
)
def test_one_of_many_teachers_moves_a_gradient_as_far_as_stated(order, mode, norm, bound):
    student = np.zeros((1, 2), np.float32)
    teachers = np.tile(softmax(student), (20, 1, 1))  # all agree, but for the first
    tried = []
    for pair in ([[1, 0], [0, 1]], [[0.7, 0.3], [0.3, 0.7]]):
        one, other = teachers.copy(), teachers.copy()
        one[0], other[0] = np.float32(pair[0]), np.float32(pair[1])
        tried.append(moved(lambda t: ensemble(student, t, order, norm, mode), one, other))
    assert_tight(max(tried), bound)


def test_normalising_the_mean_is_refused_since_many_teachers_gain_nothing():
    with pytest.raises(ValueError, match="of sensitivity 2·norm for however many"):
        ensemble(*draw(), "mean_then_bound", mode="normalize")


def test_whatever_a_teacher_returns_it_moves_no_release_further_than_stated():
    rows = len(GARBAGE)
    student = np.random.default_rng(0).normal(size=(1, 3)).astype(np.float32)
    honest = softmax(np.random.default_rng(1).normal(size=(4, 1, 3)))
    students, others = np.repeat(student, rows, 0), np.repeat(honest, rows, 1)
    teachers = np.concatenate([GARBAGE[None], others])  # one of five is hostile, in every row

    def spread(released):
        assert np.isfinite(released).all()
        return np.linalg.norm(np.asarray(released)[:, None] - released[None], axis=-1).max()

    for norm in (0.05, 4.0):
        grads = logit_gradients(students, GARBAGE, norm, "normalize")
        assert spread(grads) <= 2 * norm * (1 + SLACK)
        assert spread(logit_gradients(students, GARBAGE, norm, "clip")) <= min(2 * norm, ROOT2) * (
            1 + SLACK
        )
        for order, mode, bound in (
            ("bound_then_mean", "normalize", 2 * norm / 5),
            ("bound_then_mean", "clip", min(2 * norm, ROOT2) / 5),
            ("mean_then_bound", "clip", min(2 * norm, ROOT2 / 5)),
        ):
            found = ensemble(students, teachers, order, norm, mode)
            assert spread(found) <= bound * (1 + SLACK)
    answers = private_answers(KEY, teachers, noise_multiplier=0.0)
    assert spread(answers) <= ROOT2 / 5 * (1 + SLACK)
    assert spread(answers) >= 0.9 * ROOT2 / 5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_teacher_that_agrees_with_the_student_is_bounded_like_any_other(dtype):
    """Gradients are little more than rounding then, and stretched to the norm."""
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((64, 10), (10, 10)))

    def logits(x):
        return 5 * jnp.tanh(x @ weights)

    teacher = jax.jit(lambda x: jax.nn.softmax(logits(x).astype(jnp.float32)))(x)
    found = jax.jit(lambda x, teacher: logit_gradients(logits(x), teacher, 2.0))(x, teacher)
    norms = np.linalg.norm(np.asarray(found, np.float64), axis=1)
    assert np.count_nonzero(norms) > 16, "nothing was tried"
    np.testing.assert_allclose(norms[norms > 0], 2.0, rtol=SLACK / 50)


def test_rows_of_no_distribution_answer_uniformly_and_others_are_scaled():
    found = np.asarray(private_answers(KEY, GARBAGE[None], noise_multiplier=0.0))
    np.testing.assert_allclose(found[BROKEN], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(found[5:8], [[0.5, 0.5, 0], [1 / 3] * 3, [1 / 3] * 3], rtol=1e-6)
    np.testing.assert_array_equal(found[8:11], [[1, 0, 0], [0, 0, 1], [1, 0, 0]])
    np.testing.assert_allclose(found[11:], GARBAGE[11:], rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_rows_without_a_gradient_move_nothing_but_are_noised_and_masked_rows_are_empty(mode):
    students = np.tile(np.float32([1, 0, -1]), (len(GARBAGE), 1))
    students[8], students[10] = np.nan, [0, -1e9, -1e9]  # the other is what the teacher says
    still = BROKEN | np.isin(np.arange(len(GARBAGE)), [7, 8, 10])  # 7: 1e-40 is lost in float32
    found = np.asarray(logit_gradients(students, GARBAGE, mode=mode))
    np.testing.assert_array_equal((found == 0).all(1), still)
    where = np.arange(len(GARBAGE)) % 2 == 0
    silent = logit_gradients(students, GARBAGE, mode=mode, where=where)
    np.testing.assert_array_equal(silent, np.where(where[:, None], found, 0))
    noisy = logit_gradients(students, GARBAGE, mode=mode, where=where, multiplier=2.0)
    assert np.isfinite(noisy).all()
    np.testing.assert_array_equal(np.abs(noisy).min(1) > 0, where)
    pair = np.stack([GARBAGE, GARBAGE])
    for order in ("bound_then_mean", "mean_then_bound"):
        noisy = ensemble(students, pair, order, where=where, multiplier=2.0)
        assert np.isfinite(noisy).all()
        np.testing.assert_array_equal(np.abs(noisy).min(1) > 0, where)


def release_noise(kind, key, rows=4000):
    """(noise of a release, the standard deviation it should have)."""
    student, teachers = (np.zeros((rows, 3), np.float32), np.full((5, rows, 3), 1 / 3, np.float32))
    teachers[:, :, 0] += 0.2
    teachers[:, :, 1] -= 0.2
    if kind == "answers":
        found = private_answers(key, teachers, noise_multiplier=0.8)
        return found - teachers.mean(0), 0.8 * ROOT2 / 5
    settings = {"norm": 0.3, "mode": "clip", "noise_multiplier": 1.7}
    if kind == "logits":
        silent = logit_gradients(student, teachers[0], 0.3, "clip")
        return privatize_logit_gradients(key, student, teachers[0], **settings) - silent, 0.51
    silent = ensemble(student, teachers, kind, 0.3)
    return ensemble_gradients(key, student, teachers, order=kind, **settings) - silent, 0.51


@pytest.mark.parametrize("kind", ["logits", "answers", "bound_then_mean", "mean_then_bound"])
def test_the_noise_is_gaussian_of_the_stated_scale_in_every_coordinate(kind):
    noise, std = release_noise(kind, KEY)
    values = np.ravel(noise)
    assert scipy.stats.kstest(values, scipy.stats.norm(0, std).cdf).pvalue > 0.01
    for wrong in (0.94, 1.06):
        assert scipy.stats.kstest(values, scipy.stats.norm(0, wrong * std).cdf).pvalue < 0.01
    other, _ = release_noise(kind, jax.random.key(12))
    together = np.corrcoef(np.concatenate([noise.T, other.T])) - np.eye(6)
    assert np.abs(together).max() < 5 / 4000**0.5


def test_eight_devices_release_what_one_does():
    student, teachers = draw(rows=24)
    where = np.arange(24) % 5 != 0

    def both(student, teachers, where):
        settings = {"where": where, "multiplier": 1.0}
        return (
            logit_gradients(student, teachers[0], **settings),
            ensemble(student, teachers, "bound_then_mean", **settings),
        )

    expected = both(student, teachers, where)
    split = (
        student.reshape(8, 3, 4),
        np.moveaxis(teachers.reshape(3, 8, 3, 4), 1, 0),
        where.reshape(8, 3),
    )
    found = jax.pmap(both, axis_name=AXIS)(*split)
    for one, many in zip(expected, found, strict=True):
        np.testing.assert_allclose(np.reshape(many, (24, 4)), one, rtol=1e-5, atol=1e-6)


def test_nothing_is_differentiated_through_a_release():
    student, teachers = draw()

    def total(student, teachers):
        return (
            jnp.sum(logit_gradients(student, teachers[0]) ** 2)
            + jnp.sum(ensemble(student, teachers, "bound_then_mean") ** 2)
            + jnp.sum(private_answers(KEY, teachers, noise_multiplier=1.0) ** 2)
        )

    for grad in jax.grad(total, argnums=(0, 1))(student, teachers):
        np.testing.assert_array_equal(grad, 0.0)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda s, t: logit_gradients(s, t[0], mode="norm"), "^mode: "),
        (lambda s, t: logit_gradients(s, t[0], norm=-1.0), "^norm: "),
        (lambda s, t: logit_gradients(s, t[0], multiplier=-1.0), "^noise_multiplier: "),
        (lambda s, t: logit_gradients(s, t), "must have one shape"),
        (lambda s, t: logit_gradients(s, t[0], where=np.ones(2, bool)), "^where: "),
        (lambda s, t: ensemble(s, t, "first"), "^order: "),
        (lambda s, t: ensemble(s, t[0], "bound_then_mean"), r"must be \[M, B, K\]"),
        (lambda s, t: private_answers(KEY, t[0], noise_multiplier=1.0), r"must be \[M, B, K\]"),
        (lambda s, t: private_answers(KEY, t, noise_multiplier=np.nan), "^noise_multiplier: "),
    ],
)
def test_wrong_arguments_are_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call(*draw())
