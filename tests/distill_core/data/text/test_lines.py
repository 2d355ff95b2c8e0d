"""Text files of a user's own, and rows of tokens."""

import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.data.text.lines import pack, read_labelled, read_lines

SPECIAL = {"bos_id": 100, "eos_id": 101, "pad_id": 102}
IDS = [np.array(ids, np.int32) for ids in ([1, 2, 3], [4], [], [5, 6, 7, 8, 9])]


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "a.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def _refused(kind, read, path, **more):
    with pytest.raises(InputError) as error:
        read(path, **more)
    message = str(error.value)
    assert message.startswith(f"dataset: got '{kind}:{path}'; ")
    assert "\n" not in message
    return message


def test_one_document_a_line(write):
    path = write("one line\n\n  \n two , <unk> \r\nthree")
    text = read_lines(path)
    assert text.lines == ("one line", "two , <unk>", "three")
    assert text.name == f"text:{path}"
    assert len(text) == 3


def test_wikitext_is_read_as_it_is(write):
    text = read_lines(write(" \n = Homarus = \n \n A <unk> of 0 @.@ 7 – 2 kg . \n"))
    assert text.lines == ("= Homarus =", "A <unk> of 0 @.@ 7 – 2 kg .")


def test_only_a_newline_ends_a_line(write):
    line = "a\u2028b\x0bc\x85d\re"
    assert read_lines(write(f"{line}\r\nf")).lines == (line, "f")


def test_a_byte_order_mark_is_no_text(write):
    assert read_lines(write(b"\xef\xbb\xbfa\nb")).lines == ("a", "b")


def test_text_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("a")
    assert read_lines("~/a.txt").lines == ("a",)


KINDS = {"text": read_lines, "tsv": read_labelled}


@pytest.mark.parametrize("kind", KINDS)
def test_refuses_a_missing_file(kind, tmp_path):
    for path in (tmp_path / "a.txt", tmp_path, ""):
        assert "must be an existing text file" in _refused(kind, KINDS[kind], path)


@pytest.mark.parametrize(
    ("kind", "content"),
    [("text", ""), ("text", "\n \n"), ("tsv", ""), ("tsv", "\n\n"), ("tsv", "label\ttext\n")],
)
def test_refuses_an_empty_file(kind, content, write):
    assert "is empty" in _refused(kind, KINDS[kind], write(content))


@pytest.mark.parametrize("kind", KINDS)
def test_refuses_other_encodings_and_says_where(kind, write):
    path = write(b"a\tgood\n\nb\tna\xefve\n")
    assert "line 3 is not (byte 5 of it)" in _refused(kind, KINDS[kind], path)


@pytest.mark.parametrize(
    "content",
    [
        "label\tsentence\r\n0\tbad film .\r\n1\tgood \"film\" .\r\n\r\n0\t'' dull\r\n",
        "sentence\tLabel\nbad film .\t0\ngood \"film\" .\t1\n'' dull\t0\n",
        "0\tbad film .\n1\tgood \"film\" .\n0\t'' dull",
    ],
    ids=["label first", "label last", "no header"],
)
def test_labels_and_texts(content, write):
    data = read_labelled(write(content))
    assert data.texts == ("bad film .", 'good "film" .', "'' dull")
    np.testing.assert_array_equal(data.labels, [0, 1, 0])
    assert data.labels.dtype == np.int32
    assert data.classes == ("0", "1")
    assert len(data) == 3


def test_labels_may_be_words_or_numbers(write):
    assert read_labelled(write("spam\tx\nham\ty")).classes == ("ham", "spam")
    numbers = "\n".join(f"{label}\tx" for label in [*range(11)] * 2)
    assert read_labelled(write(numbers)).classes == tuple(map(str, range(11)))


def test_a_header_lets_the_first_label_occur_once(write):
    data = read_labelled(write("label\ttext\nrare\ta\nham\tb\nham\tc\n"))
    assert (data.classes, data.texts[0]) == (("ham", "rare"), "a")
    data = read_labelled(write("rare\ta\nham\tb\nham\tc\n"), classes=("rare", "ham"))
    assert len(data) == 3


def test_the_classes_of_the_train_file_count(write):
    path = write("b\tx\nc\ty")
    np.testing.assert_array_equal(read_labelled(path, classes=("a", "b", "c")).labels, [1, 2])
    message = _refused("tsv", read_labelled, path, classes=("a", "b"))
    assert "line 2 has the label 'c'; known: a, b" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0\ta\n1\n", "line 2 has 1"),
        ("0\ta\n\n1\tb\tc\n", "line 3 has 3"),
        ("just text\nand more\n", "line 1 has 1"),
        ("label\n0\n", "line 2 has 1"),
        ("id\ttext\tlabel\n0\ta\t1\n", "line 2 has 3"),
        ("0\ta\n\tb\n", "line 2 lacks its label or its text"),
        ("0\ta\n0\tb\n", "needs at least 2 labels, and has only '0'"),
        (
            "category\ttext\nham\ta\nspam\tb\nham\tc\n",
            "label of line 1, 'category', occurs nowhere",
        ),
        ("\nv1\tv2\n1\ta\n0\tb\n1\tc\n", "the label of line 2, 'v1', occurs nowhere else: if the"),
        ("labels\ttext\n1\ta\n0\tb\n1\tc\n", "if it is an example, put a header label<TAB>text"),
        ("\n".join(f"text {i}\t{i % 2}" for i in range(30)), "has no label column: the first has"),
    ],
)
def test_refuses_what_is_no_labelled_text(content, message, write):
    assert message in _refused("tsv", read_labelled, write(content))


def test_packed_lines_follow_one_another():
    rows = pack(IDS, 4, **SPECIAL)
    np.testing.assert_array_equal(
        rows.tokens, [[100, 1, 2, 3], [100, 4, 100, 100], [5, 6, 7, 8], [9, 102, 102, 102]]
    )
    np.testing.assert_array_equal(
        rows.labels, [[1, 2, 3, 101], [4, 101, 101, 5], [6, 7, 8, 9], [101, 102, 102, 102]]
    )
    np.testing.assert_array_equal(
        rows.lines, [[0, 0, 0, 0], [1, 1, 2, 3], [3, 3, 3, 3], [3, -1, -1, -1]]
    )
    np.testing.assert_array_equal(rows.mask, rows.lines >= 0)
    assert {rows.tokens.dtype, rows.labels.dtype, rows.lines.dtype} == {np.dtype(np.int32)}
    assert rows.mask.dtype == bool
    assert len(rows) == 4


def test_a_row_is_padded_where_the_next_line_would_be_cut():
    rows = pack(IDS, 7, **SPECIAL)
    np.testing.assert_array_equal(rows.lines, [[0, 0, 0, 0, 1, 1, 2], [3, 3, 3, 3, 3, 3, -1]])
    rows = pack(IDS, 6, **SPECIAL)
    np.testing.assert_array_equal(rows.lines, [[0, 0, 0, 0, 1, 1], [2] + [-1] * 5, [3] * 6])
    np.testing.assert_array_equal(rows.tokens[1], [100] + [102] * 5)
    np.testing.assert_array_equal(rows.labels[1], [101] + [102] * 5)


@pytest.mark.parametrize("length", [3, 9, 10, 31])
def test_a_line_that_fits_into_a_row_is_never_cut_and_looks_as_it_does_alone(length):
    rng = np.random.default_rng(length)
    ids = [rng.integers(0, 90, size).astype(np.int32) for size in rng.integers(0, 12, 60)]
    packed = pack(ids, length, **SPECIAL)
    for i, line in enumerate(ids):
        places = np.argwhere(packed.lines == i)
        if len(line) + 1 > length:
            assert len(set(places[:, 0])) > 1, "a longer line goes on in the next row"
            continue
        assert len(set(places[:, 0])) == 1
        alone = pack([line], length, **SPECIAL)
        for one, other in ((packed.tokens, alone.tokens), (packed.labels, alone.labels)):
            np.testing.assert_array_equal(one[packed.lines == i], other[alone.lines == 0])
    if length < 12:
        assert max(map(len, ids)) >= length, "some do not fit"
    # No more padding than that needs: before each gap stands a line that the next does not fit to.
    gaps = [row for row in range(len(packed) - 1) if not packed.mask[row, -1]]
    assert gaps
    for row in gaps:
        needed = len(ids[packed.lines[row + 1, 0]]) + 1
        assert np.sum(~packed.mask[row]) < needed <= length


@pytest.mark.parametrize("length", [1, 2, 5, 6, 12, 100])
def test_labels_are_what_the_logits_at_the_same_place_predict(length):
    rows = pack(IDS, length, **SPECIAL)
    tokens, labels = rows.tokens[rows.mask], rows.labels[rows.mask]
    inside = labels[:-1] != 101
    np.testing.assert_array_equal(labels[:-1][inside], tokens[1:][inside])
    np.testing.assert_array_equal(labels[labels != 101], np.concatenate(IDS))
    assert np.sum(tokens == 100) == np.sum(labels == 101) == len(IDS)
    assert rows.mask[-1].any(), "no row of padding alone"


def test_values_of_tokens_find_their_labels():
    rows = pack(IDS, 6, **SPECIAL)
    values = np.zeros(rows.mask.shape)
    values[rows.mask] = np.concatenate([[*(ids * 10.0), -1.0] for ids in IDS])
    expected = np.where(rows.labels == 101, -1.0, rows.labels * 10.0)
    np.testing.assert_array_equal(values, np.where(rows.mask, expected, 0.0))


def test_refuses_no_rows():
    with pytest.raises(InputError, match="length: got 0"):
        pack(IDS, 0, **SPECIAL)
    with pytest.raises(InputError, match="ids: got"):
        pack([], 5, **SPECIAL)
