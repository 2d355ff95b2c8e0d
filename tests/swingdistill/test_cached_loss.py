"""The loss from cached answers: the k classes, and the tail on drawn classes or as one outcome."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from distill_core import coarse
from swingdistill import soft_targets, swing_loss_from_hidden, token_temperatures

B, L, V, D, E, K = 2, 7, 37, 5, 3, 6
KEY = jax.random.key(5)
HEATS = {"t_min": 1.0, "t_max": 4.0, "gamma": 1.5}
PLAIN = {"alpha": 0.6, "noise_scale": 0, "clip": 2.0}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    drawn = {
        "student": (normal(B, L, D), normal(V, D)),
        "teacher": (2 * normal(B, L, E), normal(V, E)),
        "labels": rng.integers(0, V, (B, L)),
        "scores": np.float32(rng.uniform(size=(B, L)) < 0.4),  # temperatures 1 and 4
        "ids": 7 * np.arange(B * L, dtype=np.uint32).reshape(B, L),
        "weights": np.float32(rng.uniform(size=(B, L))),
    }
    drawn["weights"][[0, 1], [2, 6]] = 0.0
    return jax.tree.map(jnp.asarray, drawn)


def logits(pair):
    return jnp.einsum("...d,vd->...v", *pair, preferred_element_type=jnp.float32)


def cached(batch, k=K, places=None):
    places = np.random.default_rng(2).uniform(size=B * L) if places is None else places
    flat = logits(batch["teacher"]).reshape(-1, V)
    found = coarse.answers(flat, k, jnp.asarray(places, jnp.float32))
    return tuple(
        found[name].reshape(B, L, -1) for name in ("classes", "log_probs", "tails", "drawn")
    )


def loss(student, batch, *, answers=None, heats=HEATS, chunk=4, **settings):
    teacher = batch["teacher"] if answers is None else (None, None)
    return swing_loss_from_hidden(
        *student,
        *teacher,
        batch["labels"],
        batch["scores"],
        key=KEY,
        noise_ids=batch["ids"],
        weights=batch["weights"],
        chunk=chunk,
        cached=answers,
        **heats,
        **{**PLAIN, **settings},
    )


def with_gradients(batch, **settings):
    return jax.value_and_grad(functools.partial(loss, **settings))(batch["student"], batch)


def assert_same(found, expected, tolerance=1e-5):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max(), rtol=0)


def joined(log_probs, classes):
    """Log-probabilities [..., V] to those of the classes and of any other, [..., k + 1]."""
    listed = np.take_along_axis(np.asarray(log_probs, np.float64), np.asarray(classes), -1)
    rest = 1 - np.exp(listed).sum(-1, keepdims=True)
    return np.concatenate([listed, np.log(rest)], axis=-1)


def by_hand(student, batch, target, answers, *, t_min=1.0):
    """The weighted sum from whole logits in float64, by the definition.

    Drawn classes count at temperature 1, elsewhere classes outside the k are one outcome.
    """
    classes, drawn = answers[0], np.asarray(answers[3])
    given = logits(student)
    log_soft = np.asarray(jax.nn.log_softmax(given / t_min), np.float64)
    theirs, ours = joined(target, classes), joined(log_soft, classes)
    kl = np.sum(np.exp(theirs) * (theirs - ours), -1)
    tail = np.exp(theirs[..., -1:])
    shares = np.stack([(drawn == v).mean(-1) for v in range(V)], -1)
    p = tail * shares
    apart = np.sum(np.exp(theirs) * (theirs - ours), -1, where=np.arange(K + 1) < K)
    exact = np.asarray(target, np.float64)
    outside = np.ones((B, L, V))
    np.put_along_axis(outside, np.asarray(classes), 0, -1)
    apart += np.sum(outside * np.exp(exact) * exact - p * log_soft, -1)
    counts = (batch["scores"] == 0) & (t_min == 1)
    kl = np.where(counts, apart, kl)
    hard = -np.take_along_axis(jax.nn.log_softmax(given), batch["labels"][..., None], -1)[..., 0]
    values = 0.6 * t_min**2 * kl + 0.4 * (1 - batch["scores"]) * hard
    return np.sum(batch["weights"] * values)


@pytest.mark.parametrize("settings", [{}, {"noise_scale": 0.5}, {"heats": {**HEATS, "t_min": 2.0}}])
def test_with_all_classes_it_is_the_loss_from_the_teacher(batch, settings):
    found = with_gradients(batch, answers=cached(batch, V), **settings)
    assert_same(found, with_gradients(batch, **settings))


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_the_tail_is_on_drawn_classes_at_temperature_1_and_else_one_outcome(batch, chunk):
    heats = token_temperatures(batch["scores"], **HEATS)
    noiseless = {"noise_scale": 0, "clip": 1.0, "noise_ids": None}
    target = soft_targets(None, logits(batch["teacher"]), heats, **noiseless)
    answers = cached(batch)
    found = loss(batch["student"], batch, answers=answers, chunk=chunk)
    np.testing.assert_allclose(found, by_hand(batch["student"], batch, target, answers), 1e-5)


def test_as_one_outcome_the_tail_bounds_the_divergence_from_below(batch):
    heats = {**HEATS, "t_min": 2.0}
    temperatures = token_temperatures(batch["scores"], **heats)
    noiseless = {"noise_scale": 0, "clip": 1.0, "noise_ids": None}
    target = soft_targets(None, logits(batch["teacher"]), temperatures, **noiseless)
    answers = cached(batch)
    found = loss(batch["student"], batch, answers=answers, heats=heats)
    expected = by_hand(batch["student"], batch, target, answers, t_min=2.0)
    np.testing.assert_allclose(found, expected, 1e-5)
    assert float(found) < float(loss(batch["student"], batch, heats=heats))


def test_over_the_draws_the_gradient_is_the_one_of_the_teacher(batch):
    """16 draws at equal distances from 64 places give each class to 1/1024 of the tail."""
    batch = {**batch, "scores": jnp.zeros((B, L))}
    means = [
        with_gradients(batch, answers=cached(batch, places=np.full(B * L, (i + 0.5) / 64)))
        for i in range(64)
    ]
    found = jax.tree.map(lambda *each: sum(each) / 64, *means)
    value, exact = with_gradients(batch)
    assert_same(found, (value, exact), 1e-3)
    for one, other in zip(means[0][1], exact, strict=True):
        assert np.abs(one - other).max() > 3e-3 * np.abs(other).max(), "a single draw is not"
    known = cached(batch)
    renormalised = (*known[:2], jnp.array(known[2]).at[..., :3].set(-jnp.inf), known[3])
    biased = with_gradients(batch, answers=renormalised)[1]
    assert np.abs(biased[0] - exact[0]).max() > 0.02 * np.abs(exact[0]).max()


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_one_token_by_hand(score):
    """Teacher (⅛, ½, ⅛, ¼), the two likeliest kept; a student that finds all four alike."""
    teacher = jnp.log(jnp.array([[0.125, 0.5, 0.125, 0.25]]))
    found = coarse.answers(teacher, 2, jnp.array([0.3]))
    np.testing.assert_array_equal(found["classes"], [[1, 3]])
    np.testing.assert_allclose(found["tails"][0, 0], np.log(0.25), rtol=1e-6)
    np.testing.assert_array_equal(found["drawn"], [[0] * 8 + [2] * 8])
    np.testing.assert_allclose(found["tails"][0, -1], np.log(0.125), rtol=1e-6)
    answers = tuple(found[name] for name in ("classes", "log_probs", "tails"))
    answers += (jnp.array([[0, 0, 0, 2]]),)  # three draws of class 0, one of class 2

    def call(student):
        return swing_loss_from_hidden(
            student, jnp.eye(4), None, None, jnp.array([1]), jnp.array([score]), key=None,
            noise_ids=None, weights=jnp.ones(1), alpha=1.0, t_min=1.0, t_max=2.0, noise_scale=0,
            clip=1.0, cached=answers,
        )  # fmt: skip

    value, gradient = jax.value_and_grad(call)(jnp.zeros((1, 4)))
    if score == 0:  # the target is (3/16, 1/2, 1/16, 1/4)
        p = np.array([3 / 16, 1 / 2, 1 / 16, 1 / 4])
        entropy = -(0.25 * np.log(0.125) + 0.5 * np.log(0.5) + 0.25 * np.log(0.25))
        np.testing.assert_allclose(value, np.log(4) - entropy, rtol=1e-5)
        np.testing.assert_allclose(gradient, [0.25 - p], atol=1e-6)
    else:  # at temperature 2 it is ∝ √p, the tail 2 √⅛ as one outcome, of which the student has ½
        p = np.sqrt([0.5, 0.25, 4 * 0.125])
        p /= p.sum()
        expected = np.sum(p * np.log(p / np.array([0.25, 0.25, 0.5])))
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        theirs = np.array([p[2] / 2, p[0], p[2] / 2, p[1]])
        np.testing.assert_allclose(gradient, [0.25 - theirs], atol=1e-6)


def test_its_gradients_are_its_differences(batch):
    for scale in (0, 0.5):
        call = functools.partial(loss, batch=batch, answers=cached(batch), noise_scale=scale)
        check_grads(call, (batch["student"],), order=1, modes=["rev"], atol=3e-2, rtol=3e-2)


def test_tokens_of_weight_zero_give_nothing_whatever_they_hold(batch):
    classes, log_probs, tails, drawn = cached(batch)
    dead = batch["weights"] == 0
    spoilt = (
        jnp.where(dead[..., None], 60_000, classes).astype(jnp.uint16),
        jnp.where(dead[..., None], jnp.nan, log_probs),
        jnp.where(dead[..., None], jnp.nan, tails),
        jnp.where(dead[..., None], 60_000, drawn).astype(jnp.uint16),
    )
    found = with_gradients(batch, answers=spoilt)
    assert_same(found, with_gradients(batch, answers=cached(batch)), 1e-6)
    assert not np.asarray(found[1][0])[dead].any()


def test_noise_is_that_of_the_teachers_targets(batch):
    """The same noise per class; the tail moves as if its classes shared its mass equally."""
    scale, answers = 0.5, cached(batch)
    classes, log_probs, tails, _ = answers
    heats = token_temperatures(batch["scores"], **HEATS)
    rest = coarse.tail_at(tails[..., :3], heats, V - K)
    stored = jnp.broadcast_to((heats * (rest - np.log(V - K)))[..., None], (B, L, V))
    stored = jnp.put_along_axis(stored, classes, log_probs, axis=-1, inplace=False)
    noise = {"noise_scale": jnp.where(batch["scores"] > 0, scale, 0.0), "clip": 2.0}
    target = soft_targets(KEY, stored, heats, noise_ids=batch["ids"], **noise)
    public = batch["scores"][..., None] == 0
    target = jnp.where(public, jax.nn.log_softmax(logits(batch["teacher"])), target)
    found = loss(batch["student"], batch, answers=answers, noise_scale=scale)
    np.testing.assert_allclose(found, by_hand(batch["student"], batch, target, answers), 1e-4)


def test_finished_targets_get_neither_temperature_nor_noise(batch):
    classes, log_probs, tails, drawn = cached(batch)
    finished = (classes, log_probs, tails[..., jnp.array([0, 3])], drawn)
    found = loss(batch["student"], batch, answers=finished, noise_scale=0.5)
    expected = loss(batch["student"], batch, answers=cached(batch), heats={**HEATS, "t_max": 1.0})
    np.testing.assert_allclose(found, expected, 1e-6)


def test_classes_without_a_tail_are_all_that_a_release_gives(batch):
    """Two released classes, padded with class 0, which may be one of them."""
    rng = np.random.default_rng(1)
    classes = np.stack([rng.permutation(V)[:2] for _ in range(B * L)]).reshape(B, L, 2)
    classes[0, 0] = 3, 0
    values = np.log(np.stack([np.full((B, L), 0.3), np.full((B, L), 0.7)], -1)).astype(np.float32)
    padded = (
        np.pad(classes, ((0, 0), (0, 0), (0, 2))),
        np.pad(values, ((0, 0), (0, 0), (0, 2)), constant_values=-np.inf),
        np.stack([np.full((B, L), -np.inf), np.zeros((B, L))], -1).astype(np.float32),
        np.zeros((B, L, 16), int),
    )
    found = with_gradients(batch, answers=tuple(map(jnp.asarray, padded)))
    instead = {"released": (jnp.asarray(classes), jnp.asarray(values))}
    assert_same(found, with_gradients(batch, **instead))


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_between_known_temperatures_the_tail_is_near(spread):
    """Within 0.03 nats of what its logits give; equal shares would miss by 0.7."""
    rng = np.random.default_rng(0)
    given = jnp.asarray(rng.normal(scale=spread, size=(50, 2000)), jnp.float32)
    found = coarse.answers(given, 64, jnp.zeros(50))
    rest = np.sort(np.asarray(jax.nn.log_softmax(given), np.float64))[:, :-64]
    for heat, within in ((1, 2e-5), (1.25, 0.03), (2, 2e-5), (3, 0.01), (4, 2e-5), (16, 0.01)):
        exact = np.log(np.exp(rest / heat).sum(-1))
        near = coarse.tail_at(found["tails"][:, :3], jnp.full(50, float(heat)), 2000 - 64)
        np.testing.assert_allclose(near, exact, atol=within, rtol=0)


def test_a_small_tail_keeps_its_digits():
    given = jnp.concatenate([jnp.array([[40.0, 39.0]]), jnp.zeros((1, 100))], axis=-1)
    found = coarse.answers(given, 2, jnp.array([0.99]))
    tail = found["tails"][0, 0]
    exact = np.log(100) - np.log(np.exp(40) + np.exp(39) + 100)
    np.testing.assert_allclose(tail, exact, rtol=1e-6)
    assert len(set(found["drawn"][0].tolist())) == 16 and found["drawn"].min() >= 2


@pytest.mark.parametrize(
    "change",
    [
        {"answers": None, "teacher": None},
        {"variant": "anchored"},
        {"shape": True},
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(batch, change):
    answers = cached(batch)
    if "shape" in change:
        answers = (answers[0], answers[1][:, :3], *answers[2:])
    if "teacher" in change:
        batch, answers = {**batch, "teacher": (None, None)}, None
    settings = {"variant": change["variant"]} if "variant" in change else {}
    with pytest.raises(ValueError, match="cached"):
        loss(batch["student"], batch, answers=answers, **settings)
