"""Text files of a user's own."""

import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.data.text.lines import read_labelled, read_lines


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
    assert read_lines(write(content)) == lines


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
    assert (data.labels.dtype, data.classes) == (np.int32, ("0", "1"))


def test_classes_are_sorted_or_those_of_the_train_file(write):
    assert read_labelled(write("spam\tx\nham\ty")).classes == ("ham", "spam")
    numbers = "\n".join(f"{label}\tx" for label in [*range(11)] * 2)
    assert read_labelled(write(numbers)).classes == tuple(map(str, range(11)))
    path = write("b\tx\nc\ty")
    np.testing.assert_array_equal(read_labelled(path, classes=("a", "b", "c")).labels, [1, 2])
    with pytest.raises(InputError, match="^dataset: .*line 2 .*'c'.* a, b"):
        read_labelled(path, classes=("a", "b"))


def test_a_header_lets_the_first_label_occur_once(write):
    data = read_labelled(write("label\ttext\nrare\ta\nham\tb\nham\tc\n"))
    assert (data.classes, data.texts[0]) == (("ham", "rare"), "a")
    data = read_labelled(write("rare\ta\nham\tb\nham\tc\n"), classes=("rare", "ham"))
    assert len(data.texts) == 3


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
