"""Which lines a model was trained on, by its loss; and what chance would show."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from distill_core.config import InputError
from swingdistill import private_text
from swingdistill.attacks import membership
from swingdistill.attacks.membership import LEAST, line_scores, pooled, roc


def test_a_model_that_knows_its_lines_tells_them_and_another_does_not(models, hp, texts):
    found = membership.membership(models["learnt"], hp, texts, models["fresh"])
    for name in membership.SCORES:
        canaries, text = found["canaries"]["20"][name], found["text"][name]
        assert (canaries["members"], canaries["hits"]) == (2, 2)
        assert canaries["tpr"] == 1.0 and canaries["p_value"] < 1e-3 and canaries["auc"] > 0.99
        assert (text["members"], text["non_members"]) == (13, 120)
        assert text["tpr"] > 0.5 and text["p_value"] < 1e-6 and text["auc"] > 0.9
    alone = membership.membership(models["learnt"], hp, texts)
    assert alone["canaries"]["20"]["mean"]["hits"] == 2
    nothing = membership.membership(models["fresh"], hp, texts)
    assert nothing["canaries"]["20"]["mean"]["hits"] == 0
    assert nothing["text"]["mean"]["p_value"] > 0.01


def test_losses_are_those_of_the_line_alone(models, hp):
    loaded = models["fresh"]
    examples = [private_text.Example(text) for text in ("the cat sat .", "a dog ran on the mat .")]
    found = membership.line_losses(loaded, hp, examples, batch_size=1)
    for example, losses in zip(examples, found, strict=True):
        ids = loaded.tokenizer.encode(example.text)
        tokens = np.zeros((1, hp.length), np.int32)
        tokens[0, : len(ids) + 1] = [loaded.tokenizer.bos_id, *ids]
        logits = np.asarray(loaded.apply(loaded.variables, tokens), np.float64)[0]
        labels = [*ids, loaded.tokenizer.eos_id]
        expected = [np.log(np.exp(z).sum()) - z[k] for z, k in zip(logits, labels, strict=False)]
        np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_a_line_scores_by_all_of_its_tokens_or_by_the_worst_fifth():
    found = line_scores([np.array([3.0, 1.0, 2.0]), np.arange(10.0)])
    assert found["mean"].tolist() == [2.0, 4.5]
    assert found["min_k"].tolist() == [1.0, 0.5]


def test_the_rate_is_at_a_threshold_of_the_non_members_alone():
    others = np.arange(999.0)  # the tenth highest is 989
    found = roc(np.array([989.0, 989.5, 1000.0, 0.0]), others)
    assert (found["hits"], found["tpr"], found["chance"]) == (2, 0.5, 0.01)
    below = np.array([989, 990, 999, 0]) + np.array([0.5, 0, 0, 0.5])
    assert found["auc"] == pytest.approx(below.mean() / 999)
    assert found["hull_tpr"] >= 0.5 and found["hull_auc"] >= found["auc"]
    assert found["interval"][0] < 0.5 < found["interval"][1]
    assert roc(np.full(3, 1.0), np.full(200, 1.0))["hits"] == 0, "ties tell nothing"


def test_the_p_value_is_exact_where_members_are_like_non_members():
    """Against orders drawn at random, of 4 members and 99 others, whose highest is the bar."""
    num, total = 4, LEAST + 4
    # By hand: none above the highest of 99 with probability 99/103, as the highest is another.
    none = LEAST / total
    rng = np.random.default_rng(0)
    p_at_least_one = roc(np.array([200.0, 0, 0, 0]), np.arange(float(LEAST)))["p_value"]
    assert p_at_least_one == pytest.approx(1 - none)
    scores = np.arange(float(total))
    hits = []
    for _ in range(4000):
        order = rng.permutation(scores)
        hits.append(int(np.sum(order[:num] > order[num:].max())))
    for count in (1, 2):
        values = np.concatenate([np.full(count, 1000.0), np.zeros(num - count)])
        p = roc(values, np.arange(float(LEAST)))["p_value"]
        seen = int(np.sum(np.array(hits) >= count))
        assert stats.binomtest(seen, len(hits), p).pvalue > 0.01


def test_models_with_secrets_of_their_own_are_judged_together():
    others = np.arange(999.0)
    one, two = roc(np.array([2000.0, 0.0]), others), roc(np.array([0.0, 0.0]), others)
    both = pooled([one, two])
    assert both["tpr"] == 0.25
    assert both["p_value"] == pytest.approx(1 - (1 - one["p_value"]) ** 2)
    assert pooled([one])["p_value"] == one["p_value"]


@pytest.mark.parametrize(
    ("members", "others"),
    [([], range(LEAST)), ([1.0], range(LEAST - 1)), ([math.nan], range(LEAST))],
)
def test_no_rate_comes_of_too_few_values_or_of_nan(members, others):
    with pytest.raises(ValueError, match="scores"):
        roc(np.array(members), np.array(others, float))


def test_without_canaries_or_enough_lines_there_is_nothing_to_tell(models, hp, texts):
    few = dataclasses.replace(texts, test=texts.test[: LEAST - 1], canaries=())
    assert membership.membership(models["fresh"], hp, few) == {"canaries": None, "text": None}


def test_secrets_too_short_for_a_threshold_are_refused(hp):
    with pytest.raises(InputError) as error:
        membership.other_lines(dataclasses.replace(hp, canary_digits=2))
    assert error.value.field == "canary_digits"
