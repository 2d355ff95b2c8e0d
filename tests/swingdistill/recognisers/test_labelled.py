"""The labelled sentences, and the recognisers on the half of them that they were not made with."""

import pytest

from distill_core.data.text.lines import Span
from swingdistill.recognisers.find import KINDS, find
from swingdistill.recognisers.labelled import SPLITS, Labelled, labelled
from swingdistill.recognisers.quality import ALL, quality


@pytest.fixture(scope="module")
def test_set():
    return labelled(each=8)


def test_the_set_is_of_many_kinds_and_forms_half_private_and_the_same_for_a_seed(test_set):
    private = [each for each in test_set if each.kind]
    assert {each.kind for each in private} == set(KINDS)
    assert len({(each.kind, each.form) for each in private}) > 80
    assert 0.45 < len(private) / len(test_set) < 0.55
    assert all(each.text[each.start : each.end].strip() for each in private)
    assert labelled(each=8) == test_set != labelled(each=8, seed=1)


def test_the_splits_share_no_sentence_of_a_telephone_number():
    around = [
        {e.text[: e.start] + e.text[e.end :] for e in labelled(split) if e.kind == "telephone"}
        for split in SPLITS
    ]
    assert not around[0] & around[1]


def test_recall_and_precision_on_held_out_forms(test_set):
    found = quality(test_set, find)
    assert found[ALL]["precision"] >= 0.95
    for kind in KINDS:
        assert found[kind]["recall"] >= (0.9 if kind == "telephone" else 0.98), kind
    forms = quality(test_set, find, by_form=True)
    countries = [name for name in forms if name.startswith("telephone: ") and forms[name]["num"]]
    assert len({name.split(",")[0] for name in countries}) >= 15
    assert min(forms[name]["recall"] for name in countries) >= 0.75  # 6 of 8


def test_quality_of_a_hand_made_example():
    examples = [
        Labelled("call 12-34", "form", "telephone", 5, 10),
        Labelled("card 99", "form", "card", 5, 7),
        Labelled("nothing 7", "public"),
    ]
    calls = {
        "call 12-34": [Span(5, 7, 1.0, "digits"), Span(8, 10, 1.0, "digits")],
        "card 99": [Span(0, 6, 1.0, "card")],
        "nothing 7": [Span(8, 9, 1.0, "digits")],
    }
    found = quality(examples, calls.get)
    # All digits of the telephone number are found, as something else; half of the card, within
    # what is mostly a word; and a number that is not private.
    assert found["telephone"] == {"recall": 1, "named": 0, "precision": None, "num": 1}
    assert found["card"] == {"recall": 0, "named": 1, "precision": 0, "num": 1}
    assert found["digits"] == {"recall": None, "named": None, "precision": 2 / 3, "num": 0}
    assert found[ALL] == {"recall": 0.5, "named": 0.5, "precision": 0.5, "num": 2}
