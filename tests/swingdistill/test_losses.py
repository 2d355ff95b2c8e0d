"""Temperatures, noised targets and the loss: formulas, limits, and the noise's distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy import special

from distill_core.losses import distillation_loss
from swingdistill import context_ids, soft_targets, swing_loss, token_temperatures

V = 5
KEY = jax.random.key(3)
SHAPES = [(), (4,), (2, 3)]


def np_log_softmax(z):
    return special.log_softmax(np.asarray(z, np.float64), axis=-1)


def np_swing(student, target, labels, scores, alpha, temperature, keep_ce=False):
    temperature = np.asarray(temperature, np.float64)
    log_q = np_log_softmax(student / temperature[..., None])
    p = np.exp(np.asarray(target, np.float64))
    kl = np.sum(np.where(p > 0, p * (np.where(p > 0, target, 0) - log_q), 0), -1)
    ce = -np.take_along_axis(np_log_softmax(student), labels[..., None], -1)[..., 0]
    public = 1 if keep_ce else 1 - np.asarray(scores)
    return alpha * temperature**2 * kl + (1 - np.asarray(alpha)) * public * ce


def draw(shape=(4,), scale=3):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(scale=scale, size=(2, *shape, V)).astype(np.float32)
    target = np_log_softmax(teacher).astype(np.float32)
    return student, target, rng.integers(0, V, shape), rng.uniform(size=shape).astype(np.float32)


def swing(student, target, labels, scores, alpha=0.7, temperature=2.0, where=None, keep_ce=False):
    settings = {"alpha": alpha, "temperature": temperature, "where": where, "keep_ce": keep_ce}
    return swing_loss(student, target, labels, scores, **settings)


def targets(logits, temperatures=1.0, noise_scale=0, clip=10.0, ids=None, key=KEY):
    ids = np.arange(logits[..., 0].size, dtype=np.uint32).reshape(logits.shape[:-1])
    return soft_targets(
        key, logits, temperatures, noise_scale=noise_scale, clip=clip, noise_ids=ids
    )


def test_the_temperature_rises_from_t_min_to_t_max_as_a_power_of_the_score():
    scores = np.array([[0.0, 0.25], [0.5, 1.0]], np.float32)
    heats = jax.jit(lambda s, g: token_temperatures(s, t_min=2.0, t_max=10.0, gamma=g))
    np.testing.assert_allclose(heats(scores, 1.0), [[2, 4], [6, 10]], rtol=1e-6)
    np.testing.assert_allclose(heats(scores, 2.0), [[2, 2.5], [4, 10]], rtol=1e-6)
    assert heats(scores, 3.0).dtype == jnp.float32
    assert heats(scores, 0.3)[0, 0] == 2.0, "exactly T_min where nothing is private"
    np.testing.assert_array_equal(token_temperatures(scores, t_min=3, t_max=3, gamma=0.5), 3.0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_noise_the_target_is_the_heated_teacher(shape):
    teacher = draw(shape)[0]
    heats = np.linspace(1, 9, teacher[..., 0].size, dtype=np.float32).reshape(shape)
    expected = np_log_softmax(teacher / heats[..., None])
    zeros = jnp.zeros(shape)
    for scale in (0, 0.0, zeros):  # a clip of 0.01 would change everything
        found = jax.jit(lambda z, t, s=scale: targets(z, t, s, clip=0.01))(teacher, heats)
        assert (found.shape, found.dtype) == ((*shape, V), jnp.float32)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    unread = soft_targets(None, teacher, heats, noise_scale=0, clip=1.0, noise_ids=None)
    np.testing.assert_allclose(unread, expected, rtol=1e-5, atol=1e-6)


def test_centring_and_clipping_act_where_there_is_noise_and_there_alone():
    teacher = np.array([[9.0, 1.0, -1.0, 3.0, -2.0]] * 2, np.float32)  # mean 2
    scale = jnp.array([0.0, 1e-6])
    found = jax.jit(lambda z: targets(z, 2.0, scale, clip=2.5))(teacher)
    np.testing.assert_allclose(found[0], np_log_softmax(teacher[0] / 2), rtol=1e-6)
    bounded = np.array([2.5, -1.0, -2.5, 1.0, -2.5])
    np.testing.assert_allclose(found[1], np_log_softmax(bounded / 2), atol=1e-4)


def noise_of(found):
    """The noise in targets of equal logits, but for its mean over the vocabulary."""
    return np.asarray(found - found.mean(-1, keepdims=True)).ravel()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_noise_is_gaussian_of_the_given_scale_after_the_temperature(temperature):
    scale, count = 0.7, 2000
    found = jax.jit(lambda z: targets(z, temperature, scale))(jnp.zeros((12, count)))
    noise = noise_of(found)
    std = scale * (1 - 1 / count) ** 0.5
    assert scipy.stats.kstest(noise, scipy.stats.norm(0, std).cdf).pvalue > 0.01
    for wrong in (0.95, 1.05):
        assert scipy.stats.kstest(noise, scipy.stats.norm(0, wrong * std).cdf).pvalue < 0.01
    rows = noise.reshape(12, count)
    correlation = np.corrcoef(rows) - np.eye(12)
    assert np.abs(correlation).max() < 5 / count**0.5, "contexts share noise"


def test_equal_contexts_meet_equal_noise_in_any_row_batch_or_epoch():
    logits = jnp.zeros((2, 3, V))
    ids = jnp.array([[7, 8, 7], [9, 7, 8]], jnp.uint32)

    def noise(key, ids, logits=logits):
        return soft_targets(key, logits, 1.0, noise_scale=1.0, clip=1.0, noise_ids=ids)

    found = jax.jit(noise)(KEY, ids)
    by_id = {int(i): row for i, row in zip(ids.ravel(), found.reshape(-1, V), strict=True)}
    for i, row in zip(ids.ravel(), found.reshape(-1, V), strict=True):
        np.testing.assert_array_equal(row, by_id[int(i)])
    alone = noise(KEY, jnp.array([9], jnp.uint32), jnp.zeros((1, V)))
    np.testing.assert_allclose(alone[0], by_id[9], rtol=1e-6)
    assert np.abs(by_id[7] - by_id[8]).max() > 0.1
    assert np.abs(found - jax.jit(noise)(jax.random.key(4), ids)).max() > 0.1


def test_classes_that_the_teacher_excludes_stay_excluded_and_move_no_mean():
    teacher = np.array([[4.0, -np.inf, 2.0, 0.0, -np.inf]], np.float32)
    found = targets(jnp.asarray(teacher), 1.0, 1e-6, clip=1.0)
    np.testing.assert_array_equal(found[0, [1, 4]], -np.inf)
    np.testing.assert_allclose(found[0, [0, 2, 3]], np_log_softmax([1.0, 0.0, -1.0]), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("keep_ce", [False, True])
def test_the_loss_is_the_formula_for_any_leading_axes_under_jit(shape, keep_ce):
    batch = draw(shape)
    found = jax.jit(lambda *a: swing(*a, 0.7, 2.5, keep_ce=keep_ce))(*batch)
    assert (found.shape, found.dtype) == (shape, jnp.float32)
    np.testing.assert_allclose(found, np_swing(*batch, 0.7, 2.5, keep_ce), rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_formula():
    student, *rest = draw()
    found = jax.jit(jax.grad(lambda z: swing(z, *rest).sum()))(student)
    step = 1e-5 * np.eye(V)
    for i in range(V):
        up, down = (np_swing(student + sign * step[i], *rest, 0.7, 2.0) for sign in (1.0, -1.0))
        np.testing.assert_allclose(found[:, i], (up - down) / 2e-5, rtol=1e-4, atol=1e-5)


def test_without_private_tokens_it_is_plain_distillation():
    student, teacher, labels, _ = draw((2, 3))
    teacher = 4 * teacher
    scores = jnp.zeros((2, 3))

    def private(z):
        heats = token_temperatures(scores, t_min=2.0, t_max=16.0)
        target = targets(teacher, heats, jnp.where(scores > 0, 1.0, 0.0))
        return swing(z, target, labels, scores)

    def plain(z):
        return distillation_loss(z, teacher, labels, temperature=2.0, alpha=0.7)

    np.testing.assert_allclose(jax.jit(private)(student), jax.jit(plain)(student), rtol=2e-6)
    one, other = (jax.jit(jax.grad(lambda z, f=f: f(z).sum()))(student) for f in (private, plain))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_one_temperature_for_all_tokens_is_plain_distillation_at_that_temperature():
    student, teacher, labels, scores = draw()
    heats = token_temperatures(scores, t_min=3.0, t_max=3.0)
    found = swing(student, targets(teacher, heats), labels, 0.0, alpha=0.6, temperature=3.0)
    plain = distillation_loss(student, teacher, labels, temperature=3.0, alpha=0.6)
    np.testing.assert_allclose(found, plain, rtol=2e-6)


def test_a_private_token_teaches_its_label_only_if_cross_entropy_is_kept():
    student, target, labels, _ = draw()
    certain = jnp.ones(4)
    other = (labels + 1) % V
    np.testing.assert_array_equal(
        swing(student, target, labels, certain), swing(student, target, other, certain)
    )
    kept = [swing(student, target, y, certain, keep_ce=True) for y in (labels, other)]
    assert np.abs(kept[0] - kept[1]).min() > 0.01


def test_the_hot_target_is_learnt_at_the_students_own_temperature():
    """Were the student heated as well, equal logits would be the optimum and nothing hidden."""
    teacher = jnp.array([[8.0, 0.0, 0.0, 0.0, 0.0]])
    target = targets(teacher, 16.0)
    pull = jax.grad(lambda z: swing(z, target, jnp.array([0]), 1.0, 1.0, 1.0).sum())
    assert pull(teacher)[0, 0] > 0.3, "a student that copies the teacher is pushed away"
    assert np.abs(pull(target)).max() < 1e-6, "the optimum is the hot target"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: d.__name__)
def test_it_stays_finite_at_huge_logits_in_float32(dtype):
    student, _, labels, scores = draw()
    student = jnp.asarray(1e4 * np.sign(student), dtype)
    teacher = jnp.asarray(-1e4 * np.sign(student), dtype).at[:, 1].set(-jnp.inf)
    target = targets(teacher, 2.0, jnp.array([0.0, 0.0, 1.0, 1.0]), clip=30.0)
    assert target.dtype == jnp.float32
    value = swing(student, target, labels, scores)
    assert value.dtype == jnp.float32
    assert np.isfinite(value).all()
    assert value.max() > 1e3, "the case is not extreme"
    gradient = jax.grad(lambda z: swing(z, target, labels, scores).sum())(student)
    assert gradient.dtype == dtype
    assert np.isfinite(gradient.astype(jnp.float32)).all()


def test_masked_tokens_are_zero_and_harmless_whatever_they_hold(masked_is_sliced):
    alpha, heat = (
        np.linspace(*ends, 6, dtype=np.float32).reshape(2, 3) for ends in ((0.1, 0.9), (1, 4))
    )
    masked_is_sliced(swing, [*draw((2, 3)), alpha, heat], (0, 3, 4, 5))


def test_the_teacher_and_the_scores_get_no_gradient():
    student, teacher, labels, scores = draw()

    def loss(student, teacher, scores):
        target = targets(teacher, token_temperatures(scores, t_min=1.0, t_max=8.0), 1.0)
        return swing(student, target, labels, scores).sum()

    found = jax.grad(loss, (0, 1, 2))(student, teacher, scores)
    assert np.abs(found[0]).max() > 0.01
    np.testing.assert_array_equal(found[1], 0)
    np.testing.assert_array_equal(found[2], 0)
    direct = jax.grad(lambda t: swing(student, t, labels, scores).sum())(teacher)
    np.testing.assert_array_equal(direct, 0)


LABELS = np.zeros(4, int)
FLOAT_IDS = {"noise_scale": 1.0, "clip": 1.0, "noise_ids": jnp.ones(4)}


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda z: token_temperatures(z, t_min=4.0, t_max=2.0), "t_max"),
        (lambda z: token_temperatures(z, t_min=0.0, t_max=2.0), "t_min"),
        (lambda z: token_temperatures(z, t_min=1.0, t_max=np.inf), "t_max"),
        (lambda z: token_temperatures(z, t_min=1.0, t_max=2.0, gamma=0), "gamma"),
        (lambda z: token_temperatures(1.5, t_min=1.0, t_max=2.0), "privacy_scores"),
        (lambda z: targets(z, noise_scale=-1.0), "noise_scale"),
        (lambda z: targets(z, clip=0.0), "clip"),
        (lambda z: targets(z, 0.0), "temperatures"),
        (lambda z: targets(z, jnp.ones(3)), "temperatures"),
        (lambda z: targets(z, noise_scale=jnp.ones((4, 1))), "noise_scale"),
        (lambda z: soft_targets(KEY, z, 1.0, **FLOAT_IDS), "noise_ids"),
        # Noise that is no function of the context.
        (lambda z: targets(z, noise_scale=1.0, key=jax.random.key(0, impl="unsafe_rbg")), "key"),
        (lambda z: targets(z, noise_scale=1.0, key=None), "key"),
        (lambda z: swing(z, z[:3], None, 0.0), "student_logits .* and target_log_probs .*"),
        (lambda z: swing(z, z, LABELS, 1.5), "privacy_scores"),
        (lambda z: swing(z, z, LABELS, 0.0, 1.1), "alpha"),
        (lambda z: swing(z, z, LABELS, 0.0, 0.5, 0.0), "temperature"),
        (lambda z: context_ids(z), "tokens"),
    ],
)
def test_wrong_arguments_are_refused(call, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        call(draw()[0])


def test_a_context_id_is_a_function_of_the_whole_prefix_and_nothing_else():
    tokens = np.random.default_rng(0).integers(0, 50, (3, 40))
    tokens[1, :25] = tokens[0, :25]
    ids = jax.jit(context_ids)(tokens)
    assert (ids.shape, ids.dtype) == ((3, 40), jnp.uint32)
    np.testing.assert_array_equal(ids[0, :25], ids[1, :25])
    assert not np.any(ids[0, 25:] == ids[1, 25:])
    np.testing.assert_array_equal(context_ids(tokens[1, :30]), ids[1, :30])
    swapped = tokens[0].copy()
    swapped[[3, 9]] = swapped[[9, 3]]
    assert tokens[0, 3] != tokens[0, 9]
    assert not np.any(context_ids(swapped)[9:] == ids[0, 9:]), "the order counts"


def test_context_ids_collide_no_more_than_chance_and_every_bit_mixes():
    digits = (np.arange(100_000)[:, None] // 10 ** np.arange(5)) % 10  # near-equal contexts
    ids = np.asarray(jax.jit(context_ids)(digits)[:, -1])
    assert len(ids) - len(np.unique(ids)) <= 7  # 1.2 expected; 8 happen once in 20,000 times
    bits = (ids[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / len(ids) ** 0.5
    flips = np.unpackbits((ids[::2] ^ ids[1::2]).view(np.uint8)).mean()  # one token differs by 1
    assert abs(flips - 0.5) < 0.005


def test_lines_that_share_a_row_have_the_ids_that_each_has_alone():
    rng, ids = np.random.default_rng(0), jax.jit(context_ids)
    lines = [rng.integers(0, 50, size) for size in (6, 1, 6, 1)]
    lines.append(lines[0])  # the same context, later in the row
    tokens = np.concatenate([*lines, [0, 0]])[None]
    segments = np.repeat([0, 1, 2, 3, 9, -1], [*map(len, lines), 2])[None]
    found = ids(tokens, segments)
    assert (found.shape, found.dtype) == (tokens.shape, jnp.uint32)
    start = 0
    for line in lines:
        np.testing.assert_array_equal(found[0, start : start + len(line)], ids(line))
        start += len(line)
    whole = ids(tokens)
    np.testing.assert_array_equal(whole[0, :6], found[0, :6])
    assert not np.any(whole[0, 6:] == found[0, 6:]), "a row that is one line has others"
    np.testing.assert_array_equal(ids(tokens, np.zeros_like(tokens)), whole)


def test_a_line_that_goes_on_in_the_next_row_begins_anew_there():
    """Its network sees no further back than the row either."""
    tokens, segments = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[0, 0, 0], [0, 0, 1]])
    found = jax.jit(context_ids)(tokens, segments)
    alone = [context_ids(np.array(line)) for line in ([1, 2, 3], [4, 5], [6])]
    np.testing.assert_array_equal(found.ravel(), np.concatenate(alone))
