"""Text files of a user's own."""

import functools
import types

import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.data.text import lines as lines_lib
from distill_core.data.text.lines import Span, stream, with_spans


def read(kind, path, classes=None):
    """What a corpus reads of one file of training text, or with `classes` of another file."""
    items = list(stream(kind, path, classes=classes))
    known, name = lines_lib.summary(kind, path, items, classes), f"{kind}:{path}"
    found = types.SimpleNamespace(classes=(), labels=None)
    found.numbers, found.texts, _, found.spans = zip(*items, strict=True)
    if known.labels:
        found.classes = classes or lines_lib.classes_of(name, known.labels)
        found.labels = np.array([*map(lines_lib.index_in(name, found.classes), items)], np.int32)
    return found


read_lines, read_labelled, read_json = (
    functools.partial(read, kind) for kind in ("text", "tsv", "jsonl")
)


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
    found = read_lines(write(content))
    assert found.texts == lines
    assert (found.classes, found.labels, found.spans) == ((), None, ((),) * len(lines))


@pytest.mark.parametrize("kind", ["text", "tsv", "jsonl"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "existing"),
        ("", "empty"),
        ("\n \n", "empty|line 2"),
        (b'{"text": "good"}\n\n\t\tna\xefve\n', "line 3 .*byte 5|line 1 has 1"),
    ],
)
def test_a_file_that_is_missing_or_empty_or_in_another_encoding_is_refused(
    kind, content, reason, write, tmp_path
):
    read = {"text": read_lines, "tsv": read_labelled, "jsonl": read_json}[kind]
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


def test_lines_are_numbered_as_in_the_file(write):
    assert read_lines(write("\n one\n\n\ntwo")).numbers == (2, 5)
    assert read_labelled(write("label\ttext\n\n0\ta\n1\tb")).numbers == (3, 4)
    assert read_json(write('\n{"text": "one"}\r\n\n{"text": "two"}')).numbers == (2, 4)


def test_json_lines_hold_texts_as_they_are_with_labels_and_spans(write):
    found = read_json(
        write(
            """
{"text": " Ann,\\nor \\ud83d\\ude00\u2028b ", "label": "ham", "spans": [[1, 4]], "id": 7}
{"label": 3, "text": "call 5", "meta": {"spans": 1}}
{"text": "two", "label": "ham", "spans": [[1, 2, 1, "last"], [0, 1, 0.25]]}
{"text": "none", "label": "ham", "spans": null}
"""
        )
    )
    assert found.texts == (" Ann,\nor \U0001f600\u2028b ", "call 5", "two", "none")
    assert (found.classes, found.labels.tolist()) == (("3", "ham"), [1, 0, 1, 1])
    assert found.labels.dtype == np.int32
    first, second = Span(0, 1, 0.25), Span(1, 2, 1.0, "last")
    assert found.spans == ((Span(1, 4, 1.0, ""),), (), (first, second), ())
    assert all(isinstance(span.score, float) for spans in found.spans for span in spans)


def test_labels_of_json_lines_are_those_of_the_train_file(write):
    path = write('{"text": "a", "label": 10}\n{"text": "b", "label": 9}')
    assert read_json(path).classes == ("9", "10")
    assert read_json(path, classes=("10", "8", "9")).labels.tolist() == [0, 2]
    for classes, named in ((("9", "8"), "line 1 .*'10'; known: 9, 8"), ((), "line 1 has a label")):
        with pytest.raises(InputError, match=f"^dataset: .*{named}"):
            read_json(path, classes=classes)
    path = write('{"text": "a", "label": null}')
    assert (read_json(path).classes, read_json(path, classes=()).labels) == ((), None)
    with pytest.raises(InputError, match="line 1 has no label, unlike the train file"):
        read_json(path, classes=("8", "9"))


OVERLAPPING = "[[0, 3, 0.5], [4, 9, 1], [5, 6, 1], [8, 9, 0.5]]"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("text", "is not a JSON object"),
        ('["a text"]', "is not a JSON object"),
        ('{"text": "a"', "is not a JSON object"),
        ("[" * 100_000, "is not a JSON object"),
        ('{"txet": "a"}', "lacks `text`"),
        ('{"text": 5}', "lacks `text`"),
        ('{"text": " "}', "lacks `text`"),
        ('{"text": "a \\ud83d"}', "surrogate"),
        ('{"text": "a", "label": 1.5}', "a label that is no"),
        ('{"text": "a", "label": true}', "a label that is no"),
        ('{"text": "a", "label": ""}', "a label that is no"),
        ('{"text": "a", "label": 3}', "has a label, unlike line 1"),
    ],
)
def test_a_json_line_that_is_none_is_refused_by_its_number(line, named, write):
    with pytest.raises(InputError, match=f"^dataset: got 'jsonl:.*; line 3 .*{named}"):
        read_json(write(f'{{"text": "fine"}}\n\n{line}\n'))


WRONG_SPANS = [
    ('"name"', "no list"),
    ("{}", "no list"),
    ("[0, 3]", "span, number 1, that is no"),
    ("[[0]]", "span, number 1, that is no"),
    ('[[0, 3, 1, "name", 5]]', "number 1, that is no"),
    ("[[0, 10]]", "end ≤ 9"),
    ("[[-1, 3]]", "0 ≤ start"),
    ("[[3, 3]]", "start < end"),
    ("[[0, 1], [0, 3.0]]", "number 2, outside it: needs integers"),
    ("[[false, true]]", "needs integers"),
    ("[[0, 3, 1.01]]", "score"),
    ("[[0, 3, NaN]]", "score"),
    ('[[0, 3, "high"]]', "score"),
    ("[[0, 3, true]]", "score"),
    ("[[0, 3, 1, 5]]", "kind"),
    (OVERLAPPING, "4 to 9 and 8 to 9"),
]


@pytest.mark.parametrize(("spans", "named"), WRONG_SPANS)
def test_spans_outside_the_text_or_at_odds_with_one_another_are_refused(spans, named, write):
    path = write(f'{{"text": "fine"}}\n{{"text": "Ann, 9 am", "spans": {spans}}}')
    with pytest.raises(InputError, match=f"^dataset: got 'jsonl:.*; line 2 has .*{named}"):
        read_json(path)


def test_spans_of_one_score_may_overlap(write):
    path = write('{"text": "Ann Lee", "spans": [[4, 7, 0.5], [0, 7, 0.5, "name"], [0, 7, 0.5]]}')
    assert read_json(path).spans == ((Span(0, 7, 0.5), Span(0, 7, 0.5, "name"), Span(4, 7, 0.5)),)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"text": "a", "label": 1}\n{"text": "b"}', "line 2 has no label, unlike line 1"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": "1"}', "only '1'"),
    ],
)
def test_labels_are_on_all_json_lines_and_differ(content, named, write):
    with pytest.raises(InputError, match=f"^dataset: .*{named}"):
        read_json(write(content))


@pytest.fixture
def spans_of(tmp_path):
    """`spans_of(content)`: what a file of spans says of three lines."""
    (tmp_path / "text").write_text(" Ann \n\nof 5\r\nnobody")

    def spans_of(content):
        (tmp_path / "spans").write_text(content)
        items = list(stream("text", str(tmp_path / "text")))
        return tuple(item.spans for item in with_spans(str(tmp_path / "spans"), items, "/text"))

    return spans_of


def test_spans_in_a_file_of_their_own_name_the_line_they_are_of(spans_of):
    found = spans_of(
        '{"line": 3, "spans": [[3, 4, 0.75, "age"]], "text": "of 5\\n", "by": "me"}\n'
        '{"line": 1, "spans": [[0, 3]], "text": null}\n'
    )
    assert found == ((Span(0, 3),), (Span(3, 4, 0.75, "age"),), ())
    assert spans_of("") == ((), (), ())


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("0", "line 1 is not a JSON object"),
        ('{"spans": [[0, 3]]}', "line 1 needs `line`"),
        ('{"line": 2, "spans": []}', "line 1 needs `line`"),
        ('{"line": 5, "spans": []}', "line 1 needs `line`"),
        ('{"line": "1", "spans": []}', "line 1 needs `line`"),
        ('{"line": 1, "spans": []}\n\n{"line": 1, "spans": []}', "line 3 has `line` 1, as one"),
        ('{"line": 1}', "line 1 lacks `spans`"),
        ('{"line": 1, "spans": [[0, 4]]}', "line 1 has .*end ≤ 3"),
        (
            '{"line": 1, "spans": [], "text": " Ann"}',
            "line 1 has another text than line 1 of /text",
        ),
    ],
)
def test_spans_that_fit_no_line_are_refused(content, named, spans_of):
    with pytest.raises(InputError, match=f"^spans: got .*/spans'; {named}"):
        spans_of(content)


def test_a_file_of_spans_must_exist(write, tmp_path):
    items = list(stream("text", write("one")))
    with pytest.raises(InputError, match="^spans: got .*no'; must be an existing"):
        with_spans(f"{tmp_path}/no", items, "/text")
