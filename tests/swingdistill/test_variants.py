"""Anchored and mixed targets, and the classes that a formal budget releases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swingdistill import soft_targets, token_temperatures
from swingdistill.variants import anchored_targets, reference_mix, released_entries

V = 6
KEY = jax.random.key(0)
IDS = jnp.arange(4, dtype=jnp.uint32)


def draw():
    return np.random.default_rng(1).normal(scale=3, size=(2, 4, V)).astype(np.float32)


def log_softmax(z):
    return jax.nn.log_softmax(jnp.asarray(z), axis=-1)


def anchored(teacher, reference, temperatures, noise_scale=0, clip=5.0, t_min=1.0):
    noise = {"noise_scale": noise_scale, "clip": clip, "noise_ids": IDS}
    return anchored_targets(KEY, teacher, reference, temperatures, t_min=t_min, **noise)


def test_an_anchored_target_moves_from_the_teacher_to_the_reference_as_it_heats():
    teacher, reference = draw()
    heats = jnp.array([2.0, 3.0, 8.0, 1e6])
    found = jax.jit(lambda *a: anchored(*a, t_min=2.0))(teacher, reference, heats)
    expected = log_softmax(reference / 2.0 + (teacher - reference) / heats[:, None])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[0], log_softmax(teacher[0] / 2.0), rtol=1e-6)
    np.testing.assert_allclose(found[3], log_softmax(reference[3] / 2.0), atol=1e-4)


def test_an_anchored_target_is_exactly_plain_where_nothing_is_private():
    teacher, reference = draw()
    reference[:, 2] = -np.inf
    scores = jnp.array([0.0, 0.0, 0.5, 1.0])
    heats = token_temperatures(scores, t_min=2.0, t_max=9.0)
    noise = jnp.where(scores > 0, 0.1, 0.0)
    found = anchored(teacher, reference, heats, noise, t_min=2.0)
    np.testing.assert_array_equal(found[:2], log_softmax(teacher[:2] / 2.0))
    np.testing.assert_array_equal(found[2:, 2], -np.inf)
    assert np.isfinite(np.delete(found, 2, axis=-1)).all()


def test_an_anchored_target_clips_and_noises_what_depends_on_the_teacher_alone():
    teacher, reference = draw()
    found = anchored(teacher, reference, 2.0, 1e-6, clip=0.5)
    difference = teacher - reference
    difference = np.clip(difference - difference.mean(-1, keepdims=True), -0.5, 0.5)
    np.testing.assert_allclose(found, log_softmax(reference + difference / 2), atol=1e-4)
    loud = anchored(reference, reference, 2.0, 1.0)
    same = soft_targets(KEY, jnp.zeros((4, V)), 2.0, noise_scale=1.0, clip=5.0, noise_ids=IDS)
    np.testing.assert_allclose(loud, log_softmax(reference + same), atol=1e-5)


def test_a_mixed_target_keeps_less_of_the_teacher_the_higher_the_score():
    teacher, reference = draw()
    scores = jnp.array([0.0, 0.5, 1.0, 1.0])
    mix = jax.jit(lambda w: reference_mix(
        log_softmax(teacher), reference, scores, teacher_weight=w, temperature=2.0
    ))  # fmt: skip
    kept = np.array([1.0, 0.6, 0.2, 0.2])[:, None]
    p, p_ref = np.exp(log_softmax(teacher)), np.exp(log_softmax(reference / 2.0))
    np.testing.assert_allclose(np.exp(mix(0.2)), kept * p + (1 - kept) * p_ref, atol=1e-6)
    np.testing.assert_array_equal(mix(0.2)[0], log_softmax(teacher)[0])
    np.testing.assert_allclose(mix(0.0)[2:], log_softmax(reference / 2.0)[2:], atol=1e-6)


def test_a_mixed_target_stays_finite_where_one_side_excludes_a_class():
    teacher, reference = draw()
    target = log_softmax(np.where(np.arange(V) < 2, -np.inf, teacher))
    found = reference_mix(target, reference, 1.0, teacher_weight=0.5, temperature=1.0)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.exp(found).sum(-1), 1.0, rtol=1e-5)


def test_neither_network_gets_a_gradient():
    teacher, reference = draw()

    def total(teacher, reference):
        mixed = reference_mix(
            log_softmax(teacher), reference, 0.5, teacher_weight=0.5, temperature=1.0
        )
        return jnp.sum(anchored(teacher, reference, 2.0, 1.0) + mixed)

    for gradient in jax.grad(total, (0, 1))(teacher, reference):
        np.testing.assert_array_equal(gradient, 0)


def test_exactly_k_classes_are_released_and_the_reference_alone_picks_them():
    teacher, reference = draw()
    reference[0] = 0.0  # all tied
    found = np.asarray(jax.jit(released_entries, static_argnums=2)(teacher, reference, 3))
    released = np.isfinite(found)
    np.testing.assert_array_equal(released.sum(-1), 3)
    np.testing.assert_array_equal(found[released], teacher[released])
    for row in range(1, 4):
        assert set(np.flatnonzero(released[row])) == set(np.argsort(reference[row])[-3:])
    other = released_entries(-10 * teacher, reference, 3)
    np.testing.assert_array_equal(np.isfinite(other), released)


@pytest.mark.parametrize("entries", [0, V + 1])
def test_a_number_of_entries_outside_the_vocabulary_is_refused(entries):
    with pytest.raises(ValueError, match="^entries: "):
        released_entries(*draw(), entries)
