"""Examples as rows of tokens: what each task predicts, and where values of labels go."""

import types

import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.data.text import tasks as text_tasks
from distill_core.data.text import tokenizers
from distill_core.data.text.corpus import Example
from distill_core.data.text.lines import Span

SPANS = (Span(5, 8, 0.5, "name"), Span(12, 14))
ANN = Example("call Ann at 55 now", SPANS, {"name": "Ann", "day": "Monday"}, label=3)
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
    return [line.text[span.start : span.end] for span in line.spans]


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
    assert line.spans[0].start == len(PROMPT) + 5, "not the name in the fields"
    assert [span[2:] for span in line.spans] == [span[2:] for span in SPANS]


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


def test_the_prompt_is_of_the_sorted_fields(words):
    swapped = Example("", fields={"name": "Ann", "day": "Monday"})
    assert text_tasks.prompt(ANN) == text_tasks.prompt(swapped) == PROMPT
    line = text_tasks.encode(Example("one two ."), words, "generation")
    assert line.text == " => one two ."
    np.testing.assert_array_equal(line.weights, [0, 0, 1, 1, 1, 1])


def test_a_class_is_one_digit_so_that_there_are_ten(tokenizer):
    found = [text_tasks.class_token(tokenizer, label) for label in range(10)]
    assert len({*found, tokenizer.unk_id}) == 11
    with pytest.raises(InputError, match="^task: .*10"):
        text_tasks.class_token(tokenizer, 10)
    with pytest.raises(InputError, match="^task: .*label"):
        text_tasks.encode(Example("one"), tokenizer, "classification")


IDS = [np.array(ids, np.int32) for ids in ([1, 2, 3], [4], [], [5, 6, 7, 8, 9])]
SPECIAL = types.SimpleNamespace(bos_id=100, eos_id=101, pad_id=102)


def packed(ids, length, lay=text_tasks.to_rows) -> types.SimpleNamespace:
    """Rows of lines of these ids."""
    lines = [
        text_tasks.Line("", (), each, np.ones(len(each) + 1, np.float32), np.zeros(0))
        for each in ids
    ]
    arrays, fill = lay(lines, SPECIAL, length)
    assert {arrays[name].dtype for name in ("tokens", "labels", "segments")} == {np.dtype("int32")}
    return types.SimpleNamespace(**arrays, fill=fill)


def test_packed_lines_follow_one_another():
    rows = packed(IDS, 4)
    np.testing.assert_array_equal(
        rows.tokens, [[100, 1, 2, 3], [100, 4, 100, 100], [5, 6, 7, 8], [9, 102, 102, 102]]
    )
    np.testing.assert_array_equal(
        rows.labels, [[1, 2, 3, 101], [4, 101, 101, 5], [6, 7, 8, 9], [101, 102, 102, 102]]
    )
    np.testing.assert_array_equal(
        rows.segments, [[0, 0, 0, 0], [1, 1, 2, 3], [3, 3, 3, 3], [3, -1, -1, -1]]
    )


def test_a_row_is_padded_where_the_next_line_would_be_cut():
    rows = packed(IDS, 7)
    np.testing.assert_array_equal(rows.segments, [[0, 0, 0, 0, 1, 1, 2], [3, 3, 3, 3, 3, 3, -1]])
    rows = packed(IDS, 6)
    np.testing.assert_array_equal(rows.segments, [[0, 0, 0, 0, 1, 1], [2] + [-1] * 5, [3] * 6])
    np.testing.assert_array_equal(rows.tokens[1], [100] + [102] * 5)
    np.testing.assert_array_equal(rows.labels[1], [101] + [102] * 5)


def test_a_row_of_one_line_loses_the_lines_end():
    rows = packed(IDS, 3, text_tasks.line_rows)
    np.testing.assert_array_equal(
        rows.tokens, [[100, 1, 2], [100, 4, 102], [100, 102, 102], [100, 5, 6]]
    )
    np.testing.assert_array_equal(
        rows.labels, [[1, 2, 3], [4, 101, 102], [101, 102, 102], [5, 6, 7]]
    )
    np.testing.assert_array_equal(rows.segments, [[0] * 3, [1, 1, -1], [2, -1, -1], [3] * 3])
    values = rows.fill([np.append(ids, -1.0) for ids in IDS])
    np.testing.assert_array_equal(values, [[1, 2, 3], [4, -1, 0], [-1, 0, 0], [5, 6, 7]])


@pytest.mark.parametrize("length", [3, 9, 10, 31])
def test_a_line_that_fits_into_a_row_is_never_cut_and_looks_as_it_does_alone(length):
    rng = np.random.default_rng(length)
    ids = [rng.integers(0, 90, size).astype(np.int32) for size in rng.integers(0, 12, 60)]
    rows = packed(ids, length)
    for i, line in enumerate(ids):
        here = rows.segments == i
        np.testing.assert_array_equal(rows.tokens[here], [100, *line])
        np.testing.assert_array_equal(rows.labels[here], [*line, 101])
        assert (len(set(np.nonzero(here)[0])) == 1) == (len(line) < length)
    # No more padding than that needs: before each gap stands a line that the next does not fit to.
    padded = rows.segments < 0
    gaps = np.flatnonzero(padded[:-1, -1])
    assert len(gaps) and not padded[-1].all()
    for row in gaps:
        assert np.sum(padded[row]) < len(ids[rows.segments[row + 1, 0]]) + 1 <= length


def lines_of(words, task="language"):
    made = [ANN, Example("one", label=0), Example("two two two two", label=1)]
    return [text_tasks.encode(example, words, task) for example in made]


@pytest.mark.parametrize("length", [2, 4, 10, 23])
def test_values_of_labels_are_put_where_the_labels_are(words, length):
    lines = lines_of(words)
    arrays, fill = text_tasks.to_rows(lines, words, length)
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
    arrays, _ = text_tasks.to_rows(lines, words, 40)
    for i, line in enumerate(lines):
        here = arrays["segments"] == i
        np.testing.assert_array_equal(arrays["weights"][here], line.weights)
        np.testing.assert_array_equal(arrays["tokens"][here], [words.bos_id, *line.ids])
    np.testing.assert_array_equal(arrays["weights"][arrays["segments"] < 0], 0)
    assert arrays["weights"].dtype == np.float32
    if task == "classification":
        assert arrays["weights"].sum() == len(lines)


def test_there_is_no_row_without_a_line(words):
    for lay in (text_tasks.to_rows, text_tasks.line_rows):
        with pytest.raises(InputError, match="^dataset: "):
            lay([], words, 8)


@pytest.mark.parametrize("length", [2, 5, 64])
def test_a_document_of_any_length_is_in_rows_whose_labels_are_its_tokens_once(tokenizer, length):
    texts = ["one two", "call Ann at 55 now .\n" * 40, "two", "Ann " * 100]
    lines = [text_tasks.encode(Example(text), tokenizer, "language") for text in texts]
    assert text_tasks.shorten(lines, length, "language") == (lines, 0)
    rows, _ = text_tasks.to_rows(lines, tokenizer, length)
    assert len(rows["tokens"]) > 3
    for i, line in enumerate(lines):
        here = rows["segments"] == i
        np.testing.assert_array_equal(rows["labels"][here], [*line.ids, tokenizer.eos_id])
        np.testing.assert_array_equal(rows["tokens"][here], [tokenizer.bos_id, *line.ids])
        assert rows["weights"][here].all()
    # Only what fits into a row has to wait for the next.
    padded = np.flatnonzero(rows["segments"].ravel() < 0)
    assert len(padded) < 2 * length * len(texts)


def test_a_text_to_classify_that_is_too_long_loses_its_beginning(tokenizer):
    line = text_tasks.encode(ANN, tokenizer, "classification")
    length = len(line.weights) - 2
    (short,), count = text_tasks.shorten([line], length, "classification")
    assert count == 1 and len(short.weights) == length
    np.testing.assert_array_equal(short.ids, line.ids[2:])
    assert pieces(short) == pieces(line)[2:] and (short.text, short.spans) == (ANN.text, SPANS)
    rows, _ = text_tasks.to_rows([short], tokenizer, length)
    three = int(tokenizer.encode("3")[0])
    np.testing.assert_array_equal(rows["tokens"], [[tokenizer.bos_id, *line.ids[2:]]])
    assert rows["labels"][rows["weights"] > 0].tolist() == [three]


def test_a_text_to_generate_that_is_too_long_loses_its_end(tokenizer):
    line = text_tasks.encode(ANN, tokenizer, "generation")
    length = len(line.weights) - 2
    (short,), count = text_tasks.shorten([line], length, "generation")
    assert count == 1 and len(short.weights) == len(short.offsets) == length
    rows, _ = text_tasks.to_rows([short], tokenizer, length)
    np.testing.assert_array_equal(rows["tokens"], [[tokenizer.bos_id, *line.ids[: length - 1]]])
    asked = rows["labels"][rows["weights"] > 0]
    expected = line.ids[: length - 1][line.weights[: length - 1] > 0]
    np.testing.assert_array_equal(asked, expected)
    assert tokenizer.eos_id not in asked, "the text goes on"


@pytest.mark.parametrize("task", text_tasks.TASKS)
def test_lines_that_fit_are_not_shortened(words, task):
    lines = lines_of(words, task)
    longest = max(len(line.weights) for line in lines)
    assert text_tasks.shorten(lines, longest, task) == (lines, 0)
    if task != "language":
        found, count = text_tasks.shorten(lines, longest - 1, task)
        assert count == 1 and found[1:] == lines[1:]


@pytest.mark.parametrize(("task", "needed"), [("classification", 4), ("generation", 11)])
def test_a_length_that_leaves_no_token_of_a_text_is_refused(words, task, needed):
    line = text_tasks.encode(ANN, words, task)
    (short,), _ = text_tasks.shorten([line], needed, task)
    assert "now" in pieces(short) if task == "classification" else pieces(short)[-2] == "call"
    with pytest.raises(InputError, match=f"^length: .*{needed} positions"):
        text_tasks.shorten([line], needed - 1, task)
