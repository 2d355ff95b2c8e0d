"""Which tokens the scorers take for private, and how nats become scores."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.data.text.lines import Span
from swingdistill.scorers import judges as scorers

V = 7


def draw(shape=(2, 6)):
    rng = np.random.default_rng(2)
    teacher, reference = rng.normal(scale=2, size=(2, *shape, V)).astype(np.float32)
    return teacher, reference, rng.integers(0, V, shape)


def log_softmax(z):
    return np.asarray(jax.nn.log_softmax(z, axis=-1), np.float64)


def words(text):
    """(start, end) of every word."""
    ends = np.cumsum([len(word) + 1 for word in text.split(" ")]) - 1
    return [(end - len(word), end) for word, end in zip(text.split(" "), ends, strict=True)]


def flagged(text, **settings):
    scores = scorers.rules(text, words(text), **settings)
    return [word for word, score in zip(text.split(" "), scores, strict=True) if score]


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("write to ann.lee+x@mail.example.org today", "ann.lee+x@mail.example.org"),
        ("order 48213 came", "48213"),
        ("my id is 4 8 2 1 0 7 thanks", "4 8 2 1 0 7"),
        ("pay 4111 1111 1111 1111 now", "4111 1111 1111 1111"),
        ("pay 4111-1111-1111-1111 now", "4111-1111-1111-1111"),
        ("call +44 20 7946 0958 or ask", "+44 20 7946 0958"),
        ("call +1 (212) 555-0123 or ask", "+1 (212) 555-0123"),
        ("call (212) 555-0123 or ask", "(212) 555-0123"),
        ("call 212-555-0123 or ask", "212-555-0123"),
        ("call 212 555 0123 or ask", "212 555 0123"),
        ("call 555-0123 or ask", "555-0123"),
        ("on 2011-05-12 at 10:30 I paid 1999 for 3 of 12 in 1914-1918", ""),
        ("section 4.2.1 of volume 3, pages 12-15, costs $1,200.50", ""),
        ("ids 4 8 2 1 are short and a@b is no address", ""),
    ],
)
def test_the_rules_flag_every_token_of_what_looks_private(text, private):
    assert " ".join(flagged(text)) == private


def test_a_token_of_any_size_is_scored_by_its_overlap():
    text = "order 48213."
    offsets = [(0, 5), (5, 8), (8, 11), (11, 12), (0, 0), (7, 7)]  # 5: the space belongs to it
    np.testing.assert_array_equal(scorers.rules(text, offsets), [0, 1, 1, 0, 0, 0])
    assert scorers.rules(text, offsets).dtype == np.float32
    assert scorers.rules("", []).shape == (0,)


def test_the_users_own_expressions_come_beside_those_built_in():
    text = "ticket AB-77 of 48213"
    assert flagged(text, extra=[r"[A-Z]{2}-\d+"]) == ["AB-77", "48213"]
    assert flagged("nothing here", extra=[r"x*"]) == []


@pytest.mark.parametrize("text", ["1", "a.", "+1 (", "1 "])
def test_no_text_makes_the_expressions_backtrack_for_long(text):
    start = time.process_time()
    scorers.rules(text * 20_000, [])
    assert time.process_time() - start < 1.0  # tens of seconds if the time were quadratic


def test_a_token_has_the_highest_score_of_the_spans_that_it_overlaps():
    text = "id 12 of ann lee ok"
    spans = [Span(3, 5, 0.25), Span(9, 11, 0.5), Span(11, 16, 0.75, "name"), Span(15, 16, 0.75)]
    found = scorers.span_scores(spans, words(text))
    np.testing.assert_array_equal(found, [0, 0.25, 0, 0.75, 0.75, 0])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(scorers.span_scores(spans[::-1], words(text)), found)
    np.testing.assert_array_equal(scorers.span_scores([], words(text)), 0)
    np.testing.assert_array_equal(scorers.span_scores([Span(0, 9)], [(0, 0), (9, 9)]), 0)


def test_surprisal_and_differential_score_the_realised_token():
    teacher, reference, labels = draw()
    of_t, of_ref = (
        np.take_along_axis(log_softmax(z), labels[..., None], -1)[..., 0]
        for z in (teacher, reference)
    )
    found = jax.jit(scorers.surprisal)(reference, labels)
    np.testing.assert_allclose(found, -of_ref, rtol=1e-5)
    found = jax.jit(scorers.differential)(teacher, reference, labels)
    np.testing.assert_allclose(found, of_t - of_ref, rtol=1e-4, atol=1e-5)


def naive_divergence(teacher, reference, documents, where):
    log_p, log_q = log_softmax(teacher), log_softmax(reference)
    values = np.sum(np.exp(log_p) * (log_p - log_q), -1)
    found = np.zeros(values.shape)
    for row, t in np.ndindex(values.shape):
        near = [
            values[row, u]
            for u in range(max(t - 2, 0), min(t + 3, values.shape[1]))
            if where[row, u] and documents[row, u] == documents[row, t]
        ]
        found[row, t] = np.mean(near) if where[row, t] else 0.0
    return found


def test_divergence_is_averaged_over_unmasked_neighbours_of_the_same_document():
    teacher, reference, _ = draw()
    documents = np.array([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 0]])
    where = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1]], bool)
    expected = naive_divergence(teacher, reference, documents, where)
    teacher[~where] = np.nan
    found = jax.jit(scorers.divergence)(teacher, reference, documents=documents, where=where)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[~where], 0)
    # Without documents or mask a row is one document.
    teacher, reference, _ = draw()
    expected = naive_divergence(teacher, reference, np.ones((2, 6)), np.ones((2, 6)))
    found = jax.jit(scorers.divergence)(teacher, reference)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_divergence_sees_a_secret_that_the_text_does_not_hold_and_differential_does_not():
    """A decoy: the teacher would continue with class 3, the public text goes on with class 1."""
    reference = np.zeros((1, 1, V), np.float32)
    teacher = 9 * np.eye(V, dtype=np.float32)[3][None, None]
    assert jax.jit(scorers.divergence)(teacher, reference)[0, 0] > 1.5
    assert scorers.differential(teacher, reference, np.array([[1]]))[0, 0] < 0


def test_masked_positions_score_nothing_whatever_they_hold():
    teacher, reference, labels = draw()
    where = np.arange(6) < np.array([[6], [3]])
    teacher[~where] = reference[~where] = np.nan
    labels[~where] = -1
    for values in (
        scorers.surprisal(reference, labels, where=where),
        scorers.differential(teacher, reference, labels, where=where),
        jax.jit(scorers.divergence)(teacher, reference, where=where),
    ):
        np.testing.assert_array_equal(values[~where], 0)
        assert np.isfinite(values).all()
        scores = scorers.ramp(values, -5.0, 5.0, where=where)
        np.testing.assert_array_equal(scores[~where], 0)
        assert scores[where].max() > 0.5


def test_a_ramp_is_zero_up_to_low_and_one_from_high_on():
    values = jnp.array([-1.0, 2.0, 3.0, 4.0, 9.0, jnp.inf])
    expected = [0, 0, 0.5, 1, 1, 1]
    np.testing.assert_allclose(scorers.ramp(values, 2.0, 4.0), expected, rtol=1e-6)
    traced = jax.jit(scorers.ramp)(values, 2.0, 4.0)
    np.testing.assert_allclose(traced, expected, rtol=1e-6)
    np.testing.assert_array_equal(scorers.ramp(values, 2.0, 2.0), [0, 0, 1, 1, 1, 1])
