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


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("one line\n\n  \n two , <unk> \r\nthree", ("one line", "two , <unk>", "three")),
        (" \n = Homarus = \n \n A <unk> of 0 @.@ 7 – 2 kg . \n",)
        + (("= Homarus =", "A <unk> of 0 @.@ 7 – 2 kg ."),),
        ("a\u2028b\x0bc\x85d\re\r\nf", ("a\u2028b\x0bc\x85d\re", "f")),
        (b"\xef\xbb\xbfa\nb", ("a", "b")),
    ],
    ids=["plain", "WikiText", "only a newline ends a line", "byte order mark"],
)
def test_one_document_a_line(write, content, lines):
    path = write(content)
    text = read_lines(path)
    assert (text.lines, text.name, len(text)) == (lines, f"text:{path}", len(lines))


def test_text_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("a")
    assert read_lines("~/a.txt").lines == ("a",)


@pytest.mark.parametrize("kind", ["text", "tsv"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "existing"),
        ("", "empty"),
        ("\n \n", "empty|line 2"),
        (b"a\tgood\n\nb\tna\xefve\n", "line 3 .*byte 5"),
    ],
)
def test_a_file_that_is_missing_or_empty_or_in_another_encoding_is_refused(
    kind, content, reason, write, tmp_path
):
    read = {"text": read_lines, "tsv": read_labelled}[kind]
    for path in (tmp_path / "b.txt", tmp_path, "") if content is None else (write(content),):
        with pytest.raises(InputError, match=f"^dataset: got '{kind}:{path}'; .*({reason})"):
            read(path)


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
    with pytest.raises(InputError, match="^dataset: .*line 2 .*'c'.* a, b"):
        read_labelled(path, classes=("a", "b"))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("label\ttext\n", "empty"),
        ("0\ta\n1\n", "line 2"),
        ("0\ta\n\n1\tb\tc\n", "line 3"),
        ("just text\nand more\n", "line 1"),
        ("label\n0\n", "line 2"),
        ("id\ttext\tlabel\n0\ta\t1\n", "line 2"),
        ("0\ta\n\tb\n", "line 2"),
        ("0\ta\n0\tb\n", "only '0'"),
        ("category\ttext\nham\ta\nspam\tb\nham\tc\n", "line 1, 'category'"),
        ("\nv1\tv2\n1\ta\n0\tb\n1\tc\n", "line 2, 'v1'"),
        ("labels\ttext\n1\ta\n0\tb\n1\tc\n", "label<TAB>text"),
        ("\n".join(f"text {i}\t{i % 2}" for i in range(30)), "label column"),
    ],
)
def test_refuses_what_is_no_labelled_text(content, named, write):
    with pytest.raises(InputError, match=f"^dataset: .*{named}"):
        read_labelled(write(content))


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


@pytest.mark.parametrize(("field", "ids", "length"), [("length", IDS, 0), ("ids", [], 5)])
def test_refuses_no_rows(field, ids, length):
    with pytest.raises(InputError, match=f"^{field}: "):
        pack(ids, length, **SPECIAL)
