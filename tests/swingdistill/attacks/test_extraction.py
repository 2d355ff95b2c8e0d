"""What a model says by itself, given what stands before a secret."""

import dataclasses

import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.data.text.corpus import Example
from distill_core.data.text.lines import Span
from distill_core.data.text.tokenizers import train_words
from swingdistill import private_text
from swingdistill.attacks import evaluation, extraction, planted
from swingdistill.attacks.extraction import Secret


def test_a_model_that_knows_its_text_says_its_secrets_and_another_does_not(models, hp, texts):
    found = {
        name: evaluation.extract(loaded, hp, texts, num_continuations=20)
        for name, loaded in models.items()
    }
    learnt, fresh = found["learnt"], found["fresh"]
    # Both canaries have one prefix, after which one number is the likeliest.
    assert learnt["canaries"] == {"20": {"secrets": 2, "greedy": 1, "sampled": 2}}
    assert learnt["private"] == {"secrets": 1, "greedy": 1, "sampled": 1}
    assert fresh["canaries"] == {"20": {"secrets": 2, "greedy": 0, "sampled": 0}}
    assert fresh["private"] == {"secrets": 1, "greedy": 0, "sampled": 0}
    chance = learnt["chance"]
    assert chance == pytest.approx({"greedy": 1e-3, "sampled": 1 - 0.999**40}, rel=1e-9)


def test_a_reference_is_asked_the_same(models, hp, texts):
    asked = (hp, texts, models["fresh"])
    counts = evaluation.extract(models["learnt"], *asked)["canaries"]["20"]
    reference = {"reference_greedy": 0, "reference_sampled": None}
    assert counts == {"secrets": 2, "greedy": 1, "sampled": None, **reference}


def test_a_continuation_counts_if_it_begins_with_the_secret(models, monkeypatch):
    """Of a tokenizer that writes spaces between digits; what follows does not count."""
    loaded = models["learnt"]
    ids = loaded.tokenizer.encode
    said = {3: ids("4071"), 4: ids("4072")}  # by length of the prompt

    def generate(network, variables, prompts, lengths, **how):
        return np.stack([said[n] for n in lengths])

    monkeypatch.setattr(extraction, "generate", generate)
    prompts = {n: np.array([loaded.tokenizer.bos_id, *range(5, 4 + n)], np.int32) for n in said}
    secrets = [
        Secret(prompts[n], text, ids("4071")) for n in said for text in ("407", "4072", "071")
    ]
    greedy, drawn = extraction.extracted(loaded, secrets, 16, num_continuations=2)
    assert greedy.tolist() == drawn.tolist() == [True, False, False, True, True, False]


@pytest.fixture(scope="module")
def tokenizer():
    words = "my id is : call me Ann or Bob at home now 0 1 2 3 4 5 6 7 8 9 ."
    return train_words([words] * 2, vocab_size=60)


def asked(hp, tokenizer, *examples):
    found, left_out = extraction.private_secrets(hp, tokenizer, examples)
    return [(tokenizer.decode(secret.prompt), secret.text) for secret in found], left_out


def span_of(text, stretch):
    start = text.index(stretch)
    return Example(text, (Span(start, start + len(stretch)),))


def test_private_spans_are_asked_once_with_what_stands_before_them(hp, tokenizer):
    lines = [span_of("call Ann or Bob", "Bob"), span_of("call me at 555", "555")]
    found, left_out = asked(hp, tokenizer, *lines, lines[0])
    assert (found, left_out) == ([("call Ann or", "Bob"), ("call me at", "555")], 0)
    whole, _ = extraction.private_secrets(hp, tokenizer, lines)
    assert [len(secret.ids) for secret in whole] == [1, 3]
    assert all(secret.prompt[0] == tokenizer.bos_id for secret in whole)


def test_spans_that_show_nothing_are_left_out(hp, tokenizer):
    nothing_before = span_of("Ann is at home", "Ann")
    copied = Example("Ann or 12 : 12", (Span(12, 14),))
    unknown = span_of("call Zyxomatic now", "Zyxomatic")
    long = span_of("id : 123456789", "123456789")  # of 16 tokens in a row
    assert asked(hp, tokenizer, nothing_before, copied, unknown, long) == ([], 2)


def test_where_no_spans_are_known_the_rules_find_them_and_canaries_are_none(hp, tokenizer):
    canary = span_of("my id is 281", "281")
    found, left_out = asked(hp, tokenizer, canary, Example("call 01234 now"), Example("at 7 ."))
    assert (found, left_out) == ([("call", "01234")], 0)
    expressions = dataclasses.replace(hp, expressions=("Bob at",))
    found, _ = asked(expressions, tokenizer, Example("Ann or Bob at home"))
    assert found == [("Ann or", "Bob at")]


def test_of_many_spans_some_are_asked(hp, tokenizer, monkeypatch):
    monkeypatch.setattr(extraction, "MOST_SPANS", 5)
    lines = [span_of(f"call {n} Ann", "Ann") for n in range(10)]
    found, _ = asked(hp, tokenizer, *lines)
    assert [before for before, _ in found] == [f"call {n}" for n in range(0, 10, 2)]


def test_in_generation_the_fields_stand_before_the_line(hp, tokenizer):
    generation = dataclasses.replace(hp, task="generation", length=24)
    line = dataclasses.replace(span_of("call me at 555", "555"), fields={"id": "Bob"})
    secrets, _ = extraction.private_secrets(generation, tokenizer, [line])
    assert tokenizer.decode(secrets[0].prompt).startswith("id : Bob")
    assert extraction.private_secrets(
        generation, tokenizer, [dataclasses.replace(line, fields={"id": "555"})]
    ) == ([], 0), "copied from the fields"


def test_a_secret_of_more_tokens_than_a_row_is_refused(hp, tokenizer):
    with pytest.raises(InputError) as error:
        extraction.canary_secrets(dataclasses.replace(hp, length=3), tokenizer)
    assert error.value.field == "tokenizer"


def test_lines_never_planted_are_neither_secrets_nor_decoys(hp, texts):
    others = planted.others(hp, texts.canaries, 5000)
    assert len(set(others)) == len(others) > 900
    assert planted.left_out([Example(line) for line in others], hp) == []
    decoys = dataclasses.replace(hp, transfer_set="decoy")
    assert not {canary.line for canary in texts.canaries} & set(others)
    assert not {example.text for example in private_text.load(decoys).train} & set(others)
    unlike = Example("her code is 407")
    assert planted.left_out([unlike], hp) == [unlike]


def test_a_list_of_candidates_is_read_once_for_all_lines(hp, tmp_path, monkeypatch):
    (tmp_path / "names.txt").write_text("ann\nbob\n")
    listed = dataclasses.replace(hp, canary_candidates=str(tmp_path / "names.txt"))
    original, calls = private_text.space, []
    monkeypatch.setattr(private_text, "space", lambda hp: calls.append(hp) or original(hp))
    before, _, after = hp.canary_format.partition("{}")
    examples = [Example(before + name + after) for name in ("ann", "eve", "bob", "ann")]
    assert planted.left_out(examples, listed) == [examples[1]]
    assert len(calls) == 1
