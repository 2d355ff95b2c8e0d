"""Asking a model for the ranks of secrets."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swingdistill.canaries import estimators
from swingdistill.canaries.estimators import (
    classifier_exposure,
    exact_exposure,
    extrapolated_exposure,
    line_log_perplexities,
    log_perplexities,
    rank,
    sampled_exposure,
)
from swingdistill.canaries.exposure import exposure
from swingdistill.canaries.secrets import Candidates, Lines, Space

V, BOS = 12, 11
SYMBOLS = np.array([[3, 1, 7], [3, 1, 7], [2, 4, 6], [3, 1, 7]])  # [D, A], one place apart
SECRETS = ["0210", "1111", "2002", "0211"]


def _network(seed=0):
    """A causal network of a few numbers: every position sees all before it, in order."""
    rng = np.random.default_rng(seed)
    embedding, out = (rng.normal(size=(V, 8)).astype(np.float32) for _ in range(2))

    def logits_fn(tokens, embedding=embedding, out=out, xp=np):
        place = xp.arange(1, tokens.shape[1] + 1, dtype=np.float32)[None, :, None]
        hidden = xp.tanh(xp.cumsum(embedding[tokens] * xp.sin(place), axis=1))
        return 3 * hidden @ out.T  # [B, L, V]

    return logits_fn


def _candidates(prefix=(5, 8), symbols=SYMBOLS, suffix=(9,)):
    return Candidates(np.array(prefix, np.int32), symbols, np.array(suffix, np.int32))


def _brute_force(logits_fn, prefix):
    """Each candidate as one whole sequence: digits -> −ln p."""
    values = {}
    for digits in itertools.product(range(3), repeat=4):
        ids = [*prefix, *(SYMBOLS[place][digit] for place, digit in enumerate(digits))]
        logits = np.asarray(logits_fn(np.array([ids], np.int32)), np.float64)[0]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        start = len(prefix)
        values["".join(map(str, digits))] = -sum(
            log_probs[t - 1, ids[t]] for t in range(start, start + 4)
        )
    return values


@pytest.mark.parametrize("batch_size", [1, 7, 1000])  # 7 leaves a batch to be filled up
@pytest.mark.parametrize("prefix", [(5, 8), (BOS, 5, 8), (BOS,)])
def test_exact_agrees_with_brute_force(prefix, batch_size):
    logits_fn, candidates = _network(), _candidates(prefix)
    truth = _brute_force(logits_fn, prefix)
    found = log_perplexities(logits_fn, np.arange(81), candidates, batch_size=batch_size)
    np.testing.assert_allclose(found, list(truth.values()), rtol=1e-5)
    bits = exact_exposure(logits_fn, SECRETS, candidates, batch_size=batch_size)
    for secret, found in zip(SECRETS, bits, strict=True):
        rivals = [truth[other] for other in truth if other not in SECRETS]
        rank = 1 + sum(rival < truth[secret] for rival in rivals)
        np.testing.assert_allclose(found, math.log2(78) - math.log2(rank), atol=1e-9)


def _jitted_last_token(logits_fn):
    rng = np.random.default_rng(0)  # the weights of _network()
    weights = {k: jnp.asarray(rng.normal(size=(V, 8)), jnp.float32) for k in ("embedding", "out")}
    return jax.jit(lambda tokens: logits_fn(tokens, xp=jnp, **weights)[:, -1])


@pytest.mark.parametrize(
    "adapt",
    [
        lambda logits_fn: lambda tokens: logits_fn(tokens)[:, -1],
        lambda logits_fn: lambda tokens: logits_fn(tokens).astype(np.float64),
        lambda logits_fn: lambda tokens: jnp.asarray(logits_fn(tokens)),
        _jitted_last_token,
    ],
    ids=["last token", "float64", "jax", "jitted, last token"],
)
def test_any_function_that_returns_logits_will_do(adapt):
    logits_fn, candidates = _network(), _candidates()
    expected = exact_exposure(logits_fn, SECRETS, candidates)
    found = exact_exposure(adapt(logits_fn), SECRETS, candidates)
    np.testing.assert_array_equal(found, expected)


def test_candidates_that_tie_rank_behind_the_secret():
    bits = exact_exposure(lambda tokens: np.zeros((len(tokens), V)), SECRETS, _candidates())
    np.testing.assert_allclose(bits, math.log2(78))


def test_every_prefix_is_computed_once():
    seen = []

    def logits_fn(tokens):
        seen.extend(map(tuple, tokens))
        return np.zeros((*tokens.shape, V))

    exact_exposure(logits_fn, SECRETS, _candidates(), batch_size=27)
    assert len(seen) == len(set(seen)) == 1 + 3 + 9 + 27


def test_all_numbers_of_six_digits():
    # A network that knows nothing but two secrets, digit by digit; digit d is token d.
    learnt = ["281265", "031337"]

    def logits_fn(tokens):
        logits = np.zeros((len(tokens), V), np.float32)
        for secret in learnt:
            so_far = np.array([*map(int, secret)])[: tokens.shape[1] - 1]
            knows = np.all(tokens[:, 1:] == so_far[None, :], axis=1)
            logits[knows, int(secret[tokens.shape[1] - 1])] = 6.0
        return logits

    digits = np.tile(np.arange(10), (6, 1))
    candidates = _candidates([BOS], digits)
    secrets = [*learnt, *(f"{i:06d}" for i in range(500_000, 500_022))]
    bits = exact_exposure(logits_fn, secrets, candidates)
    np.testing.assert_allclose(bits[:2], math.log2(10**6 - 23))
    assert bits[2:].max() < bits[0] - 10


def test_a_sample_of_everything_is_exact():
    logits_fn, candidates = _network(), _candidates()
    exact = exact_exposure(logits_fn, SECRETS, candidates)
    found = sampled_exposure(logits_fn, SECRETS, candidates, num_samples=1000)
    np.testing.assert_allclose(found, exact, atol=1e-12)
    few = sampled_exposure(logits_fn, SECRETS, candidates, num_samples=7)
    assert np.all(few <= 3.0)  # log₂(7 + 1)
    one, same, other = (
        sampled_exposure(logits_fn, SECRETS, candidates, num_samples=20, seed=seed)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)


def test_a_sample_is_random_different_and_without_secrets():
    digits = np.tile(np.arange(10), (12, 1))
    candidates = _candidates([BOS], digits)  # too many to go through
    seen = []

    def logits_fn(tokens):
        if tokens.shape[1] == 12:
            seen.append(tokens)
        return np.zeros((len(tokens), V))

    secrets = ["000000000000", "281265281265"]
    sampled_exposure(logits_fn, secrets, candidates, num_samples=500, seed=1)
    rows = np.unique(np.concatenate(seen), axis=0)
    assert len(rows) == 502
    first = np.sort(rows[:, 1])
    assert all(30 <= np.sum(first == digit) <= 75 for digit in range(1, 10))


@pytest.mark.parametrize("most", [0, 10**7], ids=["one by one", "from all"])
def test_a_sample_has_no_candidate_twice(most, monkeypatch):
    monkeypatch.setattr(estimators, "MAX_EXACT", most)
    candidates, calls = _candidates(), []

    def loss_fn(tokens, labels):
        calls.append({tuple(row) for row in tokens})
        return np.zeros(len(tokens))

    classifier_exposure(loss_fn, SECRETS, [0] * 4, candidates, num_samples=38)
    (asked,) = calls
    secrets = {tuple(row) for row in candidates.tokens(candidates.index(SECRETS))}
    assert secrets < asked and len(asked - secrets) == 38


def test_extrapolation_from_a_sample_is_near_the_exact_rank():
    # Six digits of independent log-probabilities: their sum is close to normal.
    rng = np.random.default_rng(5)
    table = rng.normal(size=(6, V)).astype(np.float32)
    candidates = _candidates([BOS], np.tile(np.arange(10), (6, 1)))

    def logits_fn(tokens):
        return np.broadcast_to(table[tokens.shape[1] - 1], (len(tokens), V))

    secrets = ["123456", "908172", "".join(str(np.argmax(row[:10])) for row in table)]
    exact = exact_exposure(logits_fn, secrets, candidates)
    assert exact[2] == math.log2(10**6 - 2)
    found = extrapolated_exposure(logits_fn, secrets, candidates, num_samples=5000)
    np.testing.assert_allclose(found[:2], exact[:2], atol=0.3)
    assert found[2] > math.log2(5001)  # the ceiling of the sample


def test_a_classifier_is_ranked_by_the_label_of_the_canary():
    candidates = _candidates([5], np.tile(np.arange(10), (3, 1)), suffix=[9])
    learnt = {1: (5, 2, 8, 1, 9), 0: (5, 3, 3, 3, 9)}

    def loss_fn(tokens, labels):
        assert tokens.shape[1] == 5
        knows = [tuple(row) == learnt[label] for row, label in zip(tokens, labels, strict=True)]
        noise = np.random.default_rng(0).random(len(tokens))
        return 10.0 * labels + np.where(knows, 0.0, 1.0 + noise)  # one label is harder

    bits = classifier_exposure(loss_fn, ["281", "333"], [1, 0], candidates, num_samples=300)
    np.testing.assert_allclose(bits, math.log2(301))
    swapped = classifier_exposure(loss_fn, ["281", "333"], [0, 1], candidates, num_samples=300)
    assert np.all(swapped < math.log2(301) - 0.5)


def test_exact_is_the_definition_and_ranks_no_secret_behind_another():
    logits_fn, candidates = _network(3), _candidates()
    values = log_perplexities(logits_fn, np.arange(81), candidates)
    planted = candidates.index(SECRETS)
    others = np.delete(values, planted)
    np.testing.assert_allclose(
        exact_exposure(logits_fn, SECRETS, candidates), exposure(values[planted], others)
    )
    best = [np.base_repr(i, 3).zfill(4) for i in np.argsort(values)[:5]]
    np.testing.assert_allclose(exact_exposure(logits_fn, best, candidates), math.log2(77))


EVERYTHING = ["".join(map(str, d)) for d in itertools.product(range(3), repeat=4)]


def _digits(num):
    return _candidates([BOS], np.tile(np.arange(10), (num, 1)))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda fn: exact_exposure(fn, EVERYTHING, _candidates()), "81 candidates"),
        (lambda fn: exact_exposure(fn, [], _candidates()), "81 candidates"),
        (lambda fn: exact_exposure(fn, ["0" * 8], _digits(8)), "estimator sampled"),
        (lambda fn: exact_exposure(fn, SECRETS, _candidates(prefix=())), "context"),
        (lambda fn: sampled_exposure(fn, SECRETS, _candidates(), num_samples=0), "^num_samples: "),
        (lambda fn: extrapolated_exposure(fn, ["123456"], _digits(6), num_samples=10), "5000"),
        (lambda fn: extrapolated_exposure(fn, ["12"], _digits(2)), "99 other .* exact"),
        # A model that diverged is none that forgot.
        (lambda fn: exact_exposure(_returns(np.nan, V), SECRETS, _candidates()), "^logits: .* NaN"),
        *[
            (lambda fn, s=shape: exact_exposure(_returns(0, *s), SECRETS, _candidates()), "B, L, V")
            for shape in ((V, V, V), (1, 1, V, 1), (99, V))
        ],
    ],
)
def test_what_cannot_be_ranked_is_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call(_network())


def _returns(value, *shape):
    return lambda tokens: np.full((len(tokens), *shape) if shape == (V,) else shape, value)


MERGED = {"28": 3, "12": 7, "65": 8, "00": 9}  # two digits, one token; others are V − 2


def _merging(text):
    """Digits to tokens, some pairs to one; what is no digit to one token."""
    ids, place = [], 0
    while place < len(text):
        pair = text[place : place + 2]
        ids.append(MERGED.get(pair, int(text[place]) % 3 if text[place].isdigit() else 10))
        place += 2 if pair in MERGED else 1
    return ids


def _lines(digits=3, encode=None, **fields):
    # Every candidate has tokens of its own: digits 0, 3, 6 and 9 would share one.
    own = encode or (lambda text: [*_merging(text), *(12 + int(c) for c in text if c.isdigit())])
    return Lines(own, "x{}.", Space(digits), (BOS,), **fields)


def _table_line_fn(seed=0, vocab=30, calls=None):
    """A model of bigrams and of places, as a function of lines."""
    rng = np.random.default_rng(seed)
    table, places = rng.normal(size=(vocab, vocab)), rng.normal(size=(64, vocab))

    def line_fn(tokens, weights):
        if calls is not None:
            calls.append((tokens, weights))
        logits = table[tokens[:, :-1]] + places[: tokens.shape[1] - 1]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        each = np.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]
        return -np.sum(weights[:, 1:] * each, axis=1)

    return line_fn


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_lines_of_any_length_are_ranked_by_all_their_tokens(batch_size):
    lines, line_fn = _lines(), _table_line_fn()
    rows = lines.rows(range(1000))
    assert len({len(row) for row in rows}) > 1
    alone = [line_fn(row[None], np.ones((1, len(row))))[0] for row in rows]
    if batch_size == 1:
        rows, alone = rows[::100], alone[::100]
    found = line_log_perplexities(line_fn, rows, batch_size=batch_size)
    # What all begin with cancels.
    np.testing.assert_allclose(found - found[0], np.array(alone) - alone[0], atol=1e-9)
    if batch_size == 1000:
        bits = exact_exposure(line_fn, ["281", "007"], lines)
        others = np.delete(alone, [281, 7])
        np.testing.assert_allclose(bits, exposure(np.array(alone)[[281, 7]], others))


def test_lines_come_in_few_shapes_and_what_does_not_count_has_no_weight():
    calls = []
    rows = [np.array([BOS, 5, *[7] * n, n]) for n in range(30)]
    line_log_perplexities(_table_line_fn(calls=calls, vocab=40), rows)
    assert sorted({tokens.shape[1] for tokens, _ in calls}) == [8, 16, 24, 32]
    assert all(not weights[:, :2].any() for _, weights in calls)
    total = sum(weights.sum() for _, weights in calls)
    assert total == sum(len(row) - 2 for row in rows)


def test_a_line_that_another_begins_with_is_no_error():
    rows = [np.array([BOS, 5]), np.array([BOS, 5, 6])]
    short, long = line_log_perplexities(_table_line_fn(), rows)
    assert short == 0 < long


def test_a_model_that_diverged_has_no_lines():
    with pytest.raises(ValueError, match="NaN"):
        line_log_perplexities(lambda tokens, weights: np.full(len(tokens), np.nan), [np.arange(4)])


def test_whole_lines_rank_numbers_as_digits_do():
    """The same causal network, asked digit by digit and by lines."""
    logits_fn, candidates = _network(), _candidates()
    encode = {c: dict(zip("012", row, strict=True)) for c, row in enumerate(SYMBOLS)}
    texts = ["".join(map(str, d)) for d in itertools.product(range(3), repeat=4)]

    def line_fn(tokens, weights):
        logits = np.asarray(logits_fn(tokens[:, :-1]), np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        each = np.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]
        return -np.sum(weights[:, 1:] * each, axis=1)

    lines = Lines(
        lambda text: [encode[place][digit] for place, digit in enumerate(text)],
        "{}",
        Space(entries=tuple(texts)),
        (5, 8),
    )
    np.testing.assert_allclose(
        exact_exposure(line_fn, SECRETS, lines), exact_exposure(logits_fn, SECRETS, candidates)
    )


def test_a_memorised_line_of_merged_digits_is_found():
    """A table that gives one line nearly all probability, and digits their share of the rest."""
    planted = np.array([BOS, *_lines().encode("x281.")])
    table = 3 + np.random.default_rng(0).random(30)

    def line_fn(tokens, weights):
        length = min(tokens.shape[1], len(planted))
        same = np.logical_and.accumulate(tokens[:, :length] == planted[:length], axis=1)
        knows = np.pad(same, ((0, 0), (0, tokens.shape[1] - length)))
        return np.sum(weights * np.where(knows, 0.01, table[tokens]), axis=1)

    bits = exact_exposure(line_fn, ["281", "643"], _lines())
    np.testing.assert_allclose(bits[0], math.log2(999))
    assert bits[1] < 8
    ranks = rank(line_fn, ["281", "643"], _lines(), estimator="sampled", num_samples=99)
    low, high = ranks.bounds()
    np.testing.assert_allclose(ranks.bits[0], math.log2(100))
    assert low[0] < ranks.bits[0] < high[0] == math.log2(999)
    assert low[1] <= bits[1] <= high[1]


def test_by_default_many_lines_are_sampled_and_few_are_all_asked():
    line_fn = _table_line_fn()
    assert rank(line_fn, ["281"], _lines()).asked == 999
    many = rank(line_fn, ["281281"], _lines(6), num_samples=300)
    assert (many.asked, many.others) == (300, 10**6 - 1)
    assert rank(_network(), SECRETS, _candidates(), num_samples=3).asked == 77


def test_extrapolated_exposure_keeps_the_ranks_that_p_values_are_of():
    table = np.random.default_rng(5).normal(size=(12, 40))

    def line_fn(tokens, weights):
        each = table[np.arange(tokens.shape[1]) % 12, tokens]
        return np.sum(weights * each, axis=1)

    spelt = _lines(6, encode=lambda text: [12 + int(c) if c.isdigit() else 1 for c in text])
    how = {"num_samples": 5000, "seed": 1}
    sampled = rank(line_fn, ["281265"], spelt, estimator="sampled", **how)
    fitted = rank(line_fn, ["281265"], spelt, estimator="extrapolated", **how)
    np.testing.assert_array_equal(fitted.ahead, sampled.ahead)
    assert fitted.bits != sampled.bits and abs(fitted.bits - sampled.bits) < 0.5


def test_a_classifiers_lines_may_have_any_length():
    lines, shapes = _lines(ending=(9,)), set()

    def loss_fn(tokens, labels):
        shapes.add(tokens.shape[1])
        assert np.all(tokens[:, -1] == 9), "nothing is padded"
        return np.where(tokens[:, 2] == 3, 0.0, 1.0 + tokens.sum(axis=1) / 1e3)

    bits = classifier_exposure(loss_fn, ["281", "653"], [1, 0], lines, num_samples=200)
    assert len(shapes) > 1
    assert bits[0] == math.log2(201) > bits[1]
