"""Scores of a whole text: at the right labels, from the formulas of `scorers`."""

import dataclasses

import jax
import numpy as np
import pytest

from distill_core import checkpoint
from distill_core.config import InputError, to_json
from distill_core.data.text.corpus import Example
from swingdistill import private_text
from swingdistill.experiment import scorer_study
from swingdistill.scorers import judges as scorers
from swingdistill.scorers import scoring

TEXT = (
    Example("the cat sat on 555-0147 ."),
    Example("my id is 281265", ((9, 15),)),
    Example("old ann ran .", ((4, 7),)),
    Example("the dog sat on 3 mats ."),
)


@pytest.fixture(scope="module")
def models(teacher, reference):
    paths = {"teacher": teacher, "reference": reference}
    return {name: checkpoint.load_model(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def tokenizer(models):
    return models["teacher"].tokenizer


@pytest.fixture(scope="module")
def text(values, tokenizer):
    """(rows, lines, fill); two lines share a row, and rows are padded."""
    rows, lines, fill = private_text.to_rows(values(), TEXT, tokenizer)
    assert rows["tokens"].shape == (3, 16)
    assert rows["segments"][1].tolist() == [1] * 10 + [2] * 5 + [-1]
    return rows, lines, fill


def found(scores, rows, tokenizer):
    """The characters of the labels that are called private, in order."""
    return "".join(tokenizer.decode([label]) for label in rows["labels"][scores > 0])


def test_the_rules_score_the_labels_of_what_they_find(text, tokenizer):
    rows, lines, fill = text
    scores = scoring.score(("rules",), rows, lines, fill)["rules"]
    assert found(scores, rows, tokenizer).replace("<unk>", "-") == "555-0147281265"
    assert (scores.shape, scores.dtype, set(scores.ravel())) == ((3, 16), np.float32, {0, 1})
    scores = scoring.score(("rules",), rows, lines, fill, expressions=(r"cat|\d mats",))["rules"]
    assert found(scores, rows, tokenizer).replace("<unk>", "?") == "cat555?01472812653?"


def test_the_oracle_scores_the_labels_of_known_spans(text, tokenizer):
    rows, lines, fill = text
    scores = scoring.score(("oracle", "rules"), rows, lines, fill)
    assert list(scores) == ["oracle", "rules"]
    assert found(scores["oracle"], rows, tokenizer) == "281265<unk>"
    public = [line._replace(spans=()) for line in lines]
    with pytest.raises(InputError, match="^scorers: "):
        scoring.score(("oracle",), rows, public, fill)


def test_what_is_not_trained_is_not_scored(text):
    rows, lines, fill = text
    weights = rows["weights"] * (np.arange(16) % 2)
    for name in ("rules", "oracle"):
        whole = scoring.score((name,), rows, lines, fill)[name]
        half = scoring.score((name,), {**rows, "weights": weights}, lines, fill)[name]
        np.testing.assert_array_equal(half, np.where(weights > 0, whole, 0))
        assert half.sum() < whole.sum()


def test_where_a_text_decides_for_its_answer_its_highest_score_counts(values, tokenizer):
    texts = [Example(e.text, e.spans, label=i % 2) for i, e in enumerate(TEXT)]
    rows, lines, fill = private_text.to_rows(values(task="classification"), texts, tokenizer)
    scores = scoring.score(("rules", "oracle"), rows, lines, fill, whole_line=True)
    answers = rows["weights"] > 0
    assert answers.sum() == 4
    assert scores["rules"][answers].tolist() == [1, 1, 0, 0]
    assert scores["oracle"][answers].tolist() == [0, 1, 1, 0]
    for values_ in scores.values():
        assert not values_[~answers].any()
    by_token = scoring.score(("rules",), rows, lines, fill)["rules"]
    assert not by_token.any(), "the answer itself is no private token"


@pytest.fixture(scope="module")
def logits(models, text):
    """Whole logits of both networks."""
    rows, _, _ = text
    apply = jax.jit(models["teacher"].network.module().apply)
    return {
        name: apply(model.variables, rows["tokens"], rows["segments"])
        for name, model in models.items()
    }


EXPECTED = {
    "surprisal": lambda t, r, rows, **kw: scorers.surprisal(r, rows["labels"], **kw),
    "differential": lambda t, r, rows, **kw: scorers.differential(t, r, rows["labels"], **kw),
    "divergence": lambda t, r, rows, **kw: scorers.divergence(
        t, r, documents=rows["segments"], **kw
    ),
}


@pytest.mark.parametrize("name", scoring.MEASURES)
def test_a_measure_is_the_scorers_on_whole_logits(models, text, logits, name, monkeypatch):
    rows, _, _ = text
    weights = rows["weights"].copy()
    weights[0, 3] = 0  # it counts in no neighbour's average
    rows = {**rows, "weights": weights}
    vocab = models["teacher"].network.num_classes
    monkeypatch.setattr(scoring, "_ENTRIES", 2 * 16 * vocab)  # two rows at a time
    both = logits["teacher"], logits["reference"]
    values = scoring.measure(name, rows, models["teacher"], models["reference"])
    expected = jax.jit(EXPECTED[name])(*both, rows, where=weights > 0)
    np.testing.assert_allclose(values, expected, rtol=2e-5, atol=1e-5)
    assert (values.shape, values.dtype) == ((3, 16), np.float32)
    assert np.ptp(values[weights > 0]) > 0.5
    np.testing.assert_array_equal(values[weights == 0], 0)
    bounds = (float(np.quantile(expected, 0.3)), float(np.quantile(expected, 0.9)))
    _, lines, fill = text
    scores = scoring.score((name,), rows, lines, fill, bounds={name: bounds}, models=models)[name]
    ramp = np.clip((values - bounds[0]) / (bounds[1] - bounds[0]), 0, 1) * (weights > 0)
    np.testing.assert_allclose(scores, ramp, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("surprisal", "reference"), ("divergence", "reference"), ("differential", "teacher")],
)
def test_a_measure_without_its_network_is_refused(text, models, name, missing):
    with pytest.raises(InputError, match=f"^scorers: got '{name}'; .*{missing}"):
        scoring.measure(name, text[0], **{**models, missing: None})


def test_the_bounds_are_quantiles_of_what_counts_in_public_text(models, values, tokenizer):
    hp = values()
    public = private_text.load(hp).validation
    rows, _, _ = private_text.to_rows(hp, public, tokenizer)
    bounds = scoring.measure_bounds(("rules", "divergence", "oracle"), rows, (0.25, 0.75), **models)
    measured = scoring.measure("divergence", rows, **models)[rows["weights"] > 0]
    assert set(bounds) == {"divergence"}, "text scorers have none"
    assert bounds["divergence"] == pytest.approx(np.quantile(measured, (0.25, 0.75)), rel=1e-5)
    assert scoring.measure_bounds(("rules",), rows, (0.9, 0.1), **models) == {}
    with pytest.raises(InputError, match="quantiles: got"):
        scoring.measure_bounds(("divergence",), rows, (0.9, 0.1), **models)
    nothing = {**rows, "weights": 0 * rows["weights"]}
    with pytest.raises(InputError, match="public_values: got"):
        scoring.measure_bounds(("divergence",), nothing, (0.1, 0.9), **models)


def test_quality_of_a_hand_made_example():
    scores = np.array([[0.9, 0.6, 0.5, 0.2], [0.8, 0.1, 0.7, 0.0]])
    private = np.array([[1, 0, 1, 0], [1, 0, 0, 0]], bool)
    where = np.array([[1, 1, 1, 1], [1, 1, 0, 1]], bool)
    # Called: 0.9, 0.6 and 0.8, of which two are private; the third private one has 0.5.
    # Of 3 · 4 pairs of a private and a public token, one is in the wrong order: 0.5 below 0.6.
    assert scoring.quality(scores, private, where) == pytest.approx(
        {"precision": 2 / 3, "recall": 2 / 3, "auc": 11 / 12}
    )
    every = np.ones((1, 4), bool)  # where there is nothing to divide by
    found = scoring.quality(np.zeros((1, 4)), ~every, every)
    assert all(np.isnan(value) for value in found.values())
    found = scoring.quality(np.ones((1, 4)), every, every)
    assert (found["precision"], found["recall"]) == (1, 1) and np.isnan(found["auc"])


@pytest.fixture(scope="module")
def studied(values, teacher, reference):
    """Of numbers that the rules do not know, but for those of one level, by an expression."""
    hp = values(scorers=("rules",), t_max=8.0, canary_digits=3)
    known = "|".join(c.secret for c in private_text.draw(hp) if c.repetitions == 4)
    hp = dataclasses.replace(hp, expressions=(f"(?<=my id is )(?:{known})",))
    given = {**to_json(hp), "teacher": teacher, "reference": reference}
    return hp, scorer_study.study(given)


def test_a_study_says_how_well_each_scorer_finds_each_levels_secrets(studied):
    _, study = studied
    quality = study["quality"]
    assert list(quality) == ["rules", *scoring.MEASURES, "combined"]
    assert all(list(by_level) == ["1", "4"] for by_level in quality.values())
    assert (
        quality["rules"]
        == quality["combined"]
        == {
            "1": {"precision": None, "recall": 0.0, "auc": 0.5},
            "4": {"precision": 1.0, "recall": 1.0, "auc": 1.0},
        }
    )
    # Nobody trained the networks, and so they know nothing of the secrets.
    assert quality["differential"]["4"]["auc"] < 1


def test_a_studys_samples_show_a_canary_of_every_level_and_ordinary_text(studied):
    hp, study = studied
    titles = [sample["title"] for sample in study["samples"]]
    assert titles[:2] == ["canary, 1 ×", "canary, 4 ×"]
    assert len(titles) > 4 and set(titles[2:]) == {"ordinary text"}
    repetitions = {canary.secret: canary.repetitions for canary in private_text.draw(hp)}
    for sample, level in zip(study["samples"], (1, 4), strict=False):
        words, scores, heats = zip(*sample["tokens"], strict=True)
        assert words[:3] == ("my", "id", "is") and words[6:] == ("<eos>",)
        assert repetitions["".join(words[3:6])] == level
        found = level == 4
        assert scores == (0, 0, 0, found, found, found, 0)
        assert heats == tuple(8 if score else 1 for score in scores)
    for sample in study["samples"][2:]:
        assert {heat for _, _, heat in sample["tokens"]} == {1.0}
