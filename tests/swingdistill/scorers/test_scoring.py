"""Scores of a whole text: at the right labels, from the formulas of `scorers`."""

import dataclasses

import jax
import numpy as np
import pytest

from distill_core import checkpoint
from distill_core.config import InputError, to_json
from distill_core.data.text.corpus import Example
from distill_core.data.text.lines import Span
from swingdistill import private_text
from swingdistill.experiment import scorer_study
from swingdistill.scorers import judges as scorers
from swingdistill.scorers import scoring

TEXT = (
    Example("the cat sat on 555-0147 ."),
    Example("my id is 281265", (Span(9, 15, kind=private_text.CANARY),)),
    Example("old ann ran .", (Span(4, 7, 0.75, "name"),)),
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
    """Two lines share a row, and rows are padded."""
    text = private_text.to_rows(values(), TEXT, tokenizer)
    assert text.rows["tokens"].shape == (3, 16)
    assert text.rows["segments"][1].tolist() == [1] * 10 + [2] * 5 + [-1]
    return text


def score(names, text, public=None, *, quantiles=(0.0, 1.0), expressions=(), **given):
    """`scoring.score`; the text itself stands for public text."""
    recognised = scoring.recognise(names, text, expressions=expressions)
    given = {"models": {}, "quantiles": quantiles, "recognised": recognised, **given}
    return scoring.score(names, text, public or text.rows, **given)


def found(scores, text, tokenizer):
    """The characters of the labels that are called private, in order."""
    return "".join(tokenizer.decode([label]) for label in text.rows["labels"][scores > 0])


def test_the_rules_score_the_labels_of_what_they_find(text, tokenizer):
    scores = score(("rules",), text)["rules"]
    assert found(scores, text, tokenizer).replace("<unk>", "-") == "555-0147281265"
    assert (scores.shape, scores.dtype, set(scores.ravel())) == ((3, 16), np.float32, {0, 1})
    scores = score(("rules",), text, expressions=(r"cat|\d mats",))["rules"]
    assert found(scores, text, tokenizer).replace("<unk>", "?") == "cat555?01472812653?"


def test_a_tally_counts_the_tokens_of_each_kind_and_of_each_expression(text):
    expressions = ("cat|dog", "zebra")
    recognised = scoring.recognise(("rules", "divergence"), text, expressions=expressions)
    assert scoring.tally(recognised, text, expressions) == [
        "rules, tokens found: telephone 8, digits 6; expression 'cat|dog' 2; expression 'zebra' 0"
    ]
    bare = text._replace(lines=text.lines[2:3])
    assert scoring.tally(scoring.recognise(("rules",), bare), bare) == [
        "rules, tokens found: nothing"
    ]
    assert scoring.tally(scoring.recognise(("divergence",), text), text) == []


def test_of_overlapping_stretches_the_highest_confidence_counts(text):
    found = [[Span(0, 7, 0.75, "a"), Span(0, 3, 0.25, "b")], [], [], []]
    scores = score(("presidio",), text, recognised={"presidio": found})["presidio"]
    assert scores[0, :4].tolist() == [0.75, 0.75, 0, 0] and scores.sum() == 1.5


def test_the_oracle_scores_the_labels_of_known_spans(text, tokenizer):
    scores = score(("oracle", "rules"), text)
    assert list(scores) == ["oracle", "rules"]
    assert found(scores["oracle"], text, tokenizer) == "281265<unk>"
    assert set(scores["oracle"].ravel()) == {0, 0.75, 1}
    public = [line._replace(spans=()) for line in text.lines]
    with pytest.raises(InputError, match="^scorers: "):
        score(("oracle",), text._replace(lines=public))


def test_annotated_spans_give_their_scores_and_know_no_canary(text, tokenizer):
    scores = score(("spans", "oracle"), text)
    assert found(scores["spans"], text, tokenizer) == "<unk>"
    assert set(scores["spans"].ravel()) == {0, 0.75}
    canaries_alone = [line if "id" in line.text else line._replace(spans=()) for line in text.lines]
    assert score(("oracle",), text._replace(lines=canaries_alone))["oracle"].any()
    with pytest.raises(InputError, match="^scorers: got 'spans'; "):
        score(("spans",), text._replace(lines=canaries_alone))


def test_a_private_span_stays_private_on_both_sides_of_a_split(values, tokenizer):
    """Whatever row its tokens are in; and a rule's match does, too."""
    texts = [f"{'the cat ' * places}1 2 3 4 5 6 7 8 sat ." for places in range(9)]
    spans = [(Span(start, start + 15, 0.75),) for start in (8 * i for i in range(9))]
    text = private_text.to_rows(values(length=6), list(map(Example, texts, spans)), tokenizer)
    scores = score(("spans", "rules"), text)
    split = 0
    for i in range(9):
        here = text.rows["segments"] == i
        for values_, expected in ((scores["spans"], 0.75), (scores["rules"], 1)):
            private = tokenizer.decode(text.rows["labels"][here][values_[here] == expected])
            assert private == "1 2 3 4 5 6 7 8"
        split += len(set(np.nonzero(here & (scores["spans"] > 0))[0])) > 1
    assert split == 9, "eight digits never fit into a row of six"


def test_what_is_not_trained_is_not_scored(text):
    weights = text.rows["weights"] * (np.arange(16) % 2)
    for name in ("rules", "oracle"):
        whole = score((name,), text)[name]
        half = score((name,), text._replace(rows={**text.rows, "weights": weights}))[name]
        np.testing.assert_array_equal(half, np.where(weights > 0, whole, 0))
        assert half.sum() < whole.sum()


def test_what_a_shortened_text_lost_decides_nothing(values, tokenizer):
    texts = [
        Example("555-0147 " + "the cat " * 9, label=0),
        Example("the cat " * 9 + "12345", label=1),
    ]
    text = private_text.to_rows(values(task="classification"), texts, tokenizer)
    scores = score(("rules",), text, whole_line=True)["rules"]
    assert scores[text.rows["weights"] > 0].tolist() == [0, 1]


def test_where_a_text_decides_for_its_answer_its_highest_score_counts(values, tokenizer):
    texts = [Example(e.text, e.spans, label=i % 2) for i, e in enumerate(TEXT)]
    text = private_text.to_rows(values(task="classification"), texts, tokenizer)
    scores = score(("rules", "oracle"), text, whole_line=True)
    answers = text.rows["weights"] > 0
    assert answers.sum() == 4
    assert scores["rules"][answers].tolist() == [1, 1, 0, 0]
    assert scores["oracle"][answers].tolist() == [0, 1, 0.75, 0]
    for values_ in scores.values():
        assert not values_[~answers].any()
    by_token = score(("rules",), text)["rules"]
    assert not by_token.any(), "the answer itself is no private token"


@pytest.fixture(scope="module")
def logits(models, text):
    """Whole logits of both networks."""
    apply = jax.jit(models["teacher"].network.module().apply)
    return {
        name: apply(model.variables, text.rows["tokens"], text.rows["segments"])
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
    weights = text.rows["weights"].copy()
    weights[0, 3] = 0  # it counts in no neighbour's average
    text = text._replace(rows={**text.rows, "weights": weights})
    vocab = models["teacher"].network.num_classes
    monkeypatch.setattr(scoring, "_ENTRIES", 2 * 16 * vocab)  # two rows at a time
    both = logits["teacher"], logits["reference"]
    values = scoring.measure(name, text.rows, models)
    expected = jax.jit(EXPECTED[name])(*both, text.rows, where=weights > 0)
    np.testing.assert_allclose(values, expected, rtol=2e-5, atol=1e-5)
    assert (values.shape, values.dtype) == ((3, 16), np.float32)
    assert np.ptp(values[weights > 0]) > 0.5
    np.testing.assert_array_equal(values[weights == 0], 0)


@pytest.mark.parametrize("length", [8, 7])
def test_behind_a_split_a_measure_sees_half_a_row_of_what_came_before(
    models, values, tokenizer, length
):
    """Wherever a document goes on; its first row and other lines are measured as ever."""
    words = "the cat sat on 5 mats . old ann ran on the big dog under a tree and 3 cats"
    lines = ["a dog", words, "the mat", "the tree ."]
    text = private_text.to_rows(values(length=length), list(map(Example, lines)), tokenizer)
    found = scoring.measure("surprisal", text.rows, models)
    reference = models["reference"]
    apply = jax.jit(reference.network.module().apply)
    flat = {name: array.ravel() for name, array in text.rows.items()}
    half, places = length // 2, np.arange(flat["tokens"].size)
    begins = np.flatnonzero(flat["tokens"] == tokenizer.bos_id)
    behind = 0
    for place in places[flat["segments"] >= 0]:
        row = place // length * length
        began = begins[begins <= place][-1]
        continued = began < row and place < row + half
        behind += continued
        start = max(began, row - half) if continued else max(began, row)
        window = flat["tokens"][start : place + 1]
        padded = np.zeros((1, 16), np.int32)
        padded[0, : len(window)] = window
        logits = apply(reference.variables, padded)[0, len(window) - 1]
        expected = -jax.nn.log_softmax(logits)[flat["labels"][place]]
        np.testing.assert_allclose(found.ravel()[place], expected, rtol=1e-4, atol=1e-5)
    assert behind >= 5
    pair = ("differential", "divergence")
    assert all(np.isfinite(scoring.measure(name, text.rows, models)).all() for name in pair)


@pytest.mark.parametrize("name", scoring.MEASURES)
def test_a_measure_of_some_rows_at_a_time_is_that_of_all(
    models, values, tokenizer, name, monkeypatch
):
    """Where a document goes on from one chunk to the next, too; and from any chunk on."""
    long = [Example("the cat sat on 5 mats . old ann ran on " * n) for n in (4, 1, 7)]
    text = private_text.to_rows(values(length=8), long, tokenizer)
    whole = scoring.measure(name, text.rows, models)
    monkeypatch.setattr("distill_core.data.text.tasks._CHUNK", 3 * 8)
    chunks = list(scoring.measured(name, text.rows, models))
    assert [len(chunk) for chunk in chunks[:-1]] == [3] * (len(chunks) - 1) and len(chunks) > 3
    np.testing.assert_allclose(np.concatenate(chunks), whole, rtol=1e-4, atol=1e-5)
    later = np.concatenate(list(scoring.measured(name, text.rows, models, start=6)))
    np.testing.assert_array_equal(later, np.concatenate(chunks[2:]))


def test_scores_rise_between_quantiles_of_what_counts_in_public_text(models, values, text):
    hp = values()
    public = private_text.to_rows(hp, private_text.load(hp).validation, models["teacher"].tokenizer)
    measured = scoring.measure("divergence", public.rows, models)[public.rows["weights"] > 0]
    low, high = np.quantile(measured, (0.25, 0.75))
    found = score(("divergence",), text, public.rows, quantiles=(0.25, 0.75), models=models)
    nats = scoring.measure("divergence", text.rows, models)
    expected = np.clip((nats - low) / (high - low), 0, 1) * (text.rows["weights"] > 0)
    np.testing.assert_allclose(found["divergence"], expected, atol=1e-5)
    assert 0 < np.mean(expected > 0) < 1


def test_a_network_that_diverged_is_refused(models, text):
    variables = jax.tree.map(lambda x: x * np.nan, models["teacher"].variables)
    diverged = dataclasses.replace(models["teacher"], variables=variables)
    with pytest.raises(InputError, match="^scorers: "):
        score(("divergence",), text, models={**models, "teacher": diverged})


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


def test_a_study_holds_the_recognisers_recall_and_precision_by_kind(studied):
    found = studied[1]["recognisers"]
    assert {"e-mail", "telephone", "card", "all"} <= set(found)
    assert set(found["all"]) == {"recall", "named", "precision", "num"}


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
