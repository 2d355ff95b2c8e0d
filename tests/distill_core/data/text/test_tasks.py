"""Examples as rows of tokens: what each task predicts, and where values of labels go."""

import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.data.text import tasks as text_tasks
from distill_core.data.text import tokenizers
from distill_core.data.text.corpus import Example

ANN = Example("call Ann at 55 now", ((5, 8), (12, 14)), {"name": "Ann", "day": "Monday"}, label=3)
PROMPT = "day : Monday ; name : Ann => "
KINDS = {"words": tokenizers.train_words, "byte pairs": tokenizers.train_byte_pairs}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param]([PROMPT + ANN.text, "one two ."] * 3, vocab_size=300)


@pytest.fixture(scope="module")
def words():
    return tokenizers.train_words([PROMPT + ANN.text, "one two ."] * 3, vocab_size=300)


def pieces(line):
    """What of the text each label covers; '' for labels that are not in it."""
    return [line.text[start:end] for start, end in line.offsets]


def stretches(line):
    return [line.text[start:end] for start, end in line.spans]


def test_language_predicts_every_token_and_the_end(tokenizer):
    line = text_tasks.encode(ANN, tokenizer, "language")
    np.testing.assert_array_equal(line.ids, tokenizer.encode(ANN.text))
    np.testing.assert_array_equal(line.weights, np.ones(len(line.ids) + 1))
    assert (line.text, line.spans) == (ANN.text, ANN.spans)
    assert pieces(line)[-1] == "" and "".join(pieces(line)) == ANN.text.replace(" ", "")
    assert line.weights.dtype == np.float32 and line.ids.dtype == np.int32


def test_generation_predicts_the_sentence_alone_after_its_fields(tokenizer):
    line = text_tasks.encode(ANN, tokenizer, "generation")
    assert line.text == PROMPT + ANN.text
    np.testing.assert_array_equal(line.ids, tokenizer.encode(line.text))
    weighted = [piece for piece, weight in zip(pieces(line), line.weights, strict=True) if weight]
    assert "".join(weighted) == ANN.text.replace(" ", "")
    assert (line.weights[-1], pieces(line)[-1]) == (1, "")
    assert set(line.weights) == {0, 1}
    assert stretches(line) == ["Ann", "55"]
    assert line.spans[0][0] == len(PROMPT) + 5, "not the name in the fields"


def test_classification_predicts_one_digit_alone(tokenizer):
    line = text_tasks.encode(ANN, tokenizer, "classification")
    text = tokenizer.encode(ANN.text)
    three = int(tokenizer.encode("3")[0])
    np.testing.assert_array_equal(line.ids, [*text, tokenizer.eos_id, three])
    labels = [*line.ids, tokenizer.eos_id]
    assert [labels[i] for i in np.flatnonzero(line.weights)] == [three]
    assert line.weights.sum() == 1 and len(line.weights) == len(labels) == len(line.offsets)
    assert pieces(line)[-3:] == ["", "", ""]
    assert stretches(line) == ["Ann", "55"]


def test_a_line_without_fields_is_generated_from_nothing(words):
    line = text_tasks.encode(Example("one two ."), words, "generation")
    assert line.text == " => one two ."
    np.testing.assert_array_equal(line.weights, [0, 0, 1, 1, 1, 1])


def test_the_prompt_depends_on_the_fields_and_not_on_their_order():
    swapped = Example("", fields={"name": "Ann", "day": "Monday"})
    assert text_tasks.prompt(ANN) == text_tasks.prompt(swapped) == PROMPT


def test_a_class_is_one_digit_so_that_there_are_ten(tokenizer):
    found = [text_tasks.class_token(tokenizer, label) for label in range(10)]
    assert len({*found, tokenizer.unk_id}) == 11
    with pytest.raises(InputError, match="^task: .*10"):
        text_tasks.class_token(tokenizer, 10)
    with pytest.raises(InputError, match="^task: .*label"):
        text_tasks.encode(Example("one"), tokenizer, "classification")


def lines_of(words, task="language"):
    made = [ANN, Example("one", label=0), Example("two two two two", label=1)]
    return [text_tasks.encode(example, words, task) for example in made]


@pytest.mark.parametrize(("length", "cut"), [(4, True), (10, False), (23, False)])
def test_values_of_labels_are_put_where_the_labels_are(words, length, cut):
    lines = lines_of(words)
    arrays, fill = text_tasks.to_rows(lines, words, length, cut=cut)
    labels = [np.append(line.ids, words.eos_id) for line in lines]
    filled = fill([ids * 10.0 + 1 for ids in labels])
    live = arrays["segments"] >= 0
    np.testing.assert_array_equal(filled[live], arrays["labels"][live] * 10.0 + 1)
    np.testing.assert_array_equal(filled[~live], 0)
    assert np.sum(live) == sum(map(len, labels))
    assert (filled.dtype, filled.shape[1]) == (np.float32, length)
    starts = arrays["tokens"] == words.bos_id
    assert arrays["segments"][starts].tolist() == [0, 1, 2]


@pytest.mark.parametrize("task", text_tasks.TASKS)
def test_the_weights_of_rows_are_those_of_lines(words, task):
    lines = lines_of(words, task)
    arrays, _ = text_tasks.to_rows(lines, words, 40, cut=False)
    for i, line in enumerate(lines):
        here = arrays["segments"] == i
        np.testing.assert_array_equal(arrays["weights"][here], line.weights)
        np.testing.assert_array_equal(arrays["tokens"][here], [words.bos_id, *line.ids])
    np.testing.assert_array_equal(arrays["weights"][arrays["segments"] < 0], 0)
    assert arrays["weights"].dtype == np.float32
    if task == "classification":
        assert arrays["weights"].sum() == len(lines)


def test_a_line_that_must_not_be_cut_is_refused_where_it_is_too_long(words):
    lines = lines_of(words)
    needed = len(lines[0].ids) + 1
    text_tasks.to_rows(lines, words, needed, cut=False)
    with pytest.raises(InputError, match=f"^length: .*call Ann .* {needed} "):
        text_tasks.to_rows(lines, words, needed - 1, cut=False)
    with pytest.raises(InputError, match="^dataset: "):
        text_tasks.to_rows([], words, needed, cut=False)
    arrays, _ = text_tasks.to_rows(lines, words, needed - 1, cut=True)
    assert set(arrays["segments"].ravel()) >= {0, 1, 2}
