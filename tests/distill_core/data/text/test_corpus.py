"""Text by name: which lines are for what, and what is refused."""

import gzip
import json

import pytest

from distill_core.config import InputError
from distill_core.data.text import corpus, records
from distill_core.data.text.corpus import load_corpus
from distill_core.data.text.lines import Span

WIKITEXT = ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")
SST2 = ("train.tsv", "dev.tsv", "test.tsv")


def write(folder, names, *contents):
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def texts(examples):
    return [example.text for example in examples]


@pytest.mark.parametrize("names", [WIKITEXT, SST2], ids=["valid", "dev"])
def test_a_directory_holds_a_file_for_each_split(tmp_path, names):
    write(tmp_path, names, "one\ntwo\n", " three \n\n", "four\n")
    (tmp_path / "README").write_text("about")
    (tmp_path / "train").mkdir()
    found = load_corpus(f"text:{tmp_path}")
    splits = [texts(split) for split in (found.train, found.validation, found.test)]
    assert splits == [["one", "two"], ["three"], ["four"]]
    assert (found.name, found.classes) == (f"text:{tmp_path}", ())
    assert found.train[0] == corpus.Example("one")


def test_labels_mean_the_same_in_all_files(tmp_path):
    """The training file's classes count, also where another file has only some of them."""
    write(tmp_path, SST2, "bad\tx\ngood\ty\nmeh\tz\n", "meh\tv\ngood\tu\n", "good\tw\nmeh\tt\n")
    found = load_corpus(f"tsv:{tmp_path}")
    assert found.classes == ("bad", "good", "meh")
    assert [example.label for example in found.train] == [0, 1, 2]
    assert [example.label for example in found.validation] == [2, 1]
    assert found.test[0] == corpus.Example("w", fields={"label": "good"}, label=1)


@pytest.mark.parametrize(("num", "held"), [(20, 1), (59, 2), (60, 3)])
@pytest.mark.parametrize("kind", ["text", "tsv"])
def test_of_a_single_file_the_last_tenth_is_held_out(tmp_path, monkeypatch, kind, num, held):
    monkeypatch.setenv("HOME", str(tmp_path))
    lines, label = [f"line {i}" for i in range(num)], "{}\t" if kind == "tsv" else ""
    (tmp_path / "a").write_text(
        "\n".join(label.format(i % 2) + line for i, line in enumerate(lines))
    )
    found = load_corpus(f"{kind}:~/a")
    assert texts(found.train) == lines[: num - 2 * held]
    assert texts(found.validation) == lines[num - 2 * held : num - held]
    assert texts(found.test) == lines[num - held :]
    if kind == "tsv":
        assert (found.classes, found.test[-1].label) == (("0", "1"), (num - 1) % 2)


@pytest.mark.parametrize(
    "name", ["wikitext", "text", "text:", "tsv:", "jsonl", "records:x", "records:", ""]
)
def test_an_unknown_kind_is_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match="^dataset: .*records, text:PATH, tsv:PATH, jsonl:PATH"):
        load_corpus(name)


@pytest.mark.parametrize("num", [1, 9])
def test_a_single_file_that_is_too_short_to_be_split_is_refused(tmp_path, num):
    (tmp_path / "a.txt").write_text("0\ta\n1\tb\n" * num)
    for kind in ("text", "tsv"):
        with pytest.raises(InputError, match="^dataset: .*20 lines"):
            load_corpus(f"{kind}:{tmp_path}/a.txt")


@pytest.mark.parametrize(("place", "content"), [(1, ""), (2, b"\xff")])
def test_what_is_wrong_with_one_file_of_a_directory_names_that_file(tmp_path, place, content):
    contents = ["one", "two", "three"]
    contents[place] = content
    write(tmp_path, WIKITEXT, *contents)
    with pytest.raises(InputError, match=f"^dataset: got 'text:{tmp_path}/{WIKITEXT[place]}'"):
        load_corpus(f"text:{tmp_path}")


@pytest.mark.parametrize(
    ("names", "words", "count"),
    [
        (WIKITEXT[1:], "train", 0),
        (WIKITEXT[:1] + WIKITEXT[2:], "valid or dev", 0),
        (WIKITEXT[:2], "test", 0),
        ((*WIKITEXT, "dev.txt"), "valid or dev", 2),
        ((*WIKITEXT, "train.txt"), "train", 2),
    ],
)
def test_a_directory_without_one_file_for_each_split_is_refused(tmp_path, names, words, count):
    write(tmp_path, names, *["one"] * len(names))
    with pytest.raises(InputError, match=f"^dataset: .*{words} .*has {count}"):
        load_corpus(f"text:{tmp_path}")


def test_records_are_generated_in_three_parts():
    found = load_corpus("records")
    splits = (found.train, found.validation, found.test)
    assert tuple(map(len, splits)) == corpus.NUM_RECORDS
    made = records.generate_records(sum(corpus.NUM_RECORDS), seed=0)
    assert found.classes == records.LABELS
    for example, record in zip(sum(splits, ()), made, strict=True):
        assert (example.text, example.fields) == (record.text, record.fields)
        assert found.classes[example.label] == record.label
        known = tuple((start, end, 1.0, kind) for start, end, kind in record.spans)
        assert example.spans == known
    assert {span.kind for example in found.train for span in example.spans} == {*records.PRIVATE}


def json_lines(*items):
    return "\n".join(map(json.dumps, items))


def test_json_lines_are_split_as_other_text_is(tmp_path):
    items = [{"text": f"call {i}", "label": i % 2, "spans": [[5, 6]]} for i in range(40)]
    (tmp_path / "a.jsonl").write_text(json_lines(*items))
    found = load_corpus(f"jsonl:{tmp_path}/a.jsonl")
    assert [len(split) for split in (found.train, found.validation, found.test)] == [36, 2, 2]
    assert found.classes == ("0", "1")
    assert found.test[1] == corpus.Example("call 39", (Span(5, 6),), {"label": "1"}, 1)
    names = ("train.jsonl", "validation.jsonl", "test.jsonl")
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder, names, *(json_lines({"text": f"{name}\n"}) for name in names))
    found = load_corpus(f"jsonl:{folder}")
    splits = [texts(split) for split in (found.train, found.validation, found.test)]
    assert (splits, found.classes) == ([[f"{name}\n"] for name in names], ())


def test_spans_beside_text_are_of_the_training_file_or_of_the_single_one(tmp_path):
    spans = tmp_path / "spans.jsonl"
    spans.write_text(json_lines({"line": 40, "spans": [[0, 1]]}, {"line": 1, "spans": [[1, 2]]}))
    (tmp_path / "a.txt").write_text("\n".join(f"line {i}" for i in range(40)))
    found = load_corpus(f"text:{tmp_path}/a.txt", spans=str(spans))
    assert [e.text for e in found.train + found.test if e.spans] == ["line 0", "line 39"]
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder, WIKITEXT, "one\ntwo", "three", "four")
    spans.write_text(json_lines({"line": 1, "spans": [[1, 2, 0.5, "name"]]}))
    found = load_corpus(f"text:{folder}", spans=str(spans))
    assert found.train == (corpus.Example("one", (Span(1, 2, 0.5, "name"),)), corpus.Example("two"))
    assert (found.validation, found.test) == ((corpus.Example("three"),), (corpus.Example("four"),))
    for name in ("records", f"jsonl:{folder}", f"tsv:{folder}"):
        with pytest.raises(InputError, match="^spans: .*text:PATH"):
            load_corpus(name, spans=str(spans))


@pytest.fixture
def spans_beside(tmp_path):
    """`spans_beside(names, *contents)`: a text in three files and, by `load`, with such spans."""
    (tmp_path / "text").mkdir()
    write(tmp_path / "text", WIKITEXT, "one\ntwo", "three", "four")

    def load(names, *contents):
        (tmp_path / "spans").mkdir()
        write(tmp_path / "spans", names, *contents)
        found = load_corpus(f"text:{tmp_path}/text", spans=f"{tmp_path}/spans")
        return [[e.spans for e in split] for split in (found.train, found.validation, found.test)]

    return load


def span_of(line, end):
    return json_lines({"line": line, "spans": [[0, end]]})


def test_a_directory_of_spans_has_those_of_every_split(spans_beside):
    names = ("train.jsonl", "dev.jsonl", "test.jsonl", "README.md")
    found = spans_beside(names, span_of(2, 1), span_of(1, 2), span_of(1, 3), "about")
    assert found == [[(), (Span(0, 1),)], [(Span(0, 2),)], [(Span(0, 3),)]]


def test_a_split_may_have_no_spans(spans_beside):
    assert spans_beside(("test",), span_of(1, 3)) == [[(), ()], [()], [(Span(0, 3),)]]


@pytest.mark.parametrize(
    ("names", "contents", "says"),
    [
        (("a.test",), (span_of(1, 5),), r"a.test'; line 1 has a span, number 1, outside it"),
        (("valid",), (json_lines({"line": 1, "spans": [], "text": "four"}),),
         r"valid'; line 1 has another text than line 1 of .*/wiki.valid.tokens$"),
        (("train", "tset"), ("", ""), "tset'; must have train, valid, dev or test in its name"),
        ((), (), "spans'; has no file with train, valid, dev or test in its name"),
        (("test-1.a", "test-2.a"), ("", ""), "for each test file of text; test-1 lacks text"),
    ],
)  # fmt: skip
def test_spans_in_a_directory_that_fit_no_text_are_refused(spans_beside, names, contents, says):
    with pytest.raises(InputError, match=f"^spans: got '.*{says}") as caught:
        spans_beside(names, *contents)
    assert "\n" not in str(caught.value)


def test_several_files_of_spans_have_the_names_of_their_text(tmp_path):
    for name in ("text/train", "text/valid", "text/test", "spans/train"):
        (tmp_path / name).mkdir(parents=True)
    packed(tmp_path / "text" / "train" / "a.txt.gz", "one")
    write(tmp_path / "text", ("train/b.c.txt", "valid/a.txt", "test/a.txt"), "two", "three", "four")
    write(tmp_path / "spans", ("train/a.jsonl",), span_of(1, 1))
    name, spans = f"text:{tmp_path}/text", f"{tmp_path}/spans"
    with pytest.raises(InputError, match="each train file of text; train/b.c lacks spans"):
        load_corpus(name, spans=spans)
    with pytest.raises(InputError, match="one file of training text; several need a directory"):
        load_corpus(name, spans=f"{spans}/train/a.jsonl")
    packed(tmp_path / "spans" / "train" / "b.c.jsonl.gz", span_of(1, 2))
    found = load_corpus(name, spans=spans).train
    assert [(e.text, e.spans) for e in found] == [("one", (Span(0, 1),)), ("two", (Span(0, 2),))]


def test_a_single_file_of_text_takes_a_file_of_spans(tmp_path):
    (tmp_path / "a.txt").write_text("one\n" * 40)
    with pytest.raises(InputError, match="^spans: got '.*'; must be an existing text file"):
        load_corpus(f"text:{tmp_path}/a.txt", spans=str(tmp_path))


def test_a_fingerprint_tells_spans_scores_and_kinds_apart(tmp_path):
    found = set()
    for span in ([0, 1], [0, 2], [0, 2, 0.5], [0, 2, 0.5, "name"]):
        (tmp_path / "a.jsonl").write_text(json_lines(*[{"text": "one", "spans": [span]}] * 20))
        found.add(load_corpus(f"jsonl:{tmp_path}/a.jsonl").fingerprint())
    assert len(found) == 4


def packed(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(content.encode()))
    return path


@pytest.mark.parametrize("memory", [None, 0], ids=["in memory", "streamed"])
def test_a_split_may_have_many_files_packed_or_in_directories(tmp_path, memory):
    folder = tmp_path / "text"
    folder.mkdir()
    packed(folder / "train-00002.jsonl.gz", json_lines({"text": "three", "label": 2}))
    items = [{"text": "one", "label": 1, "spans": [[0, 3]]}, {"text": "two", "label": 10}]
    packed(folder / "train-00001.jsonl.gz", json_lines(*items))
    packed(folder / "valid" / "b.jsonl.gz", json_lines({"text": "five", "label": 1}))
    packed(folder / "valid" / "a.jsonl.gz", json_lines({"text": "four", "label": 10}))
    packed(folder / "test.jsonl.gz", json_lines({"text": "six", "label": 2}))
    found = load_corpus(f"jsonl:{folder}", memory=memory, cache=str(tmp_path / "cache"))
    assert isinstance(found.train, corpus.InFiles) == (memory == 0)
    assert found.classes == ("1", "2", "10")
    splits = [list(split) for split in (found.train, found.validation, found.test)]
    assert [texts(split) for split in splits] == [
        ["one", "two", "three"],
        ["four", "five"],
        ["six"],
    ]
    assert [example.label for split in splits for example in split] == [0, 2, 1, 2, 0, 1]
    assert splits[0][0].spans == (Span(0, 3),) and corpus.span_kinds(found.train) == {""}


@pytest.mark.parametrize("kind", ["text", "tsv", "jsonl"])
def test_text_that_stays_in_its_file_is_that_in_memory(tmp_path, kind):
    make = {
        "text": "line {}".format,
        "tsv": lambda i: f"{i % 3}\tline {i}",
        "jsonl": lambda i: json.dumps({"text": f"line {i}", "label": i % 3, "spans": [[0, 1]]}),
    }[kind]
    (tmp_path / "a").write_text("\n".join(make(i) for i in range(100)))
    name = f"{kind}:{tmp_path}/a"
    whole, found = load_corpus(name), load_corpus(name, memory=0, cache=str(tmp_path / "cache"))
    assert isinstance(found.train, corpus.InFiles)
    assert found.classes == whole.classes
    for split in ("train", "validation", "test"):
        ours, theirs = getattr(whole, split), getattr(found, split)
        assert (tuple(theirs), len(theirs)) == (ours, len(ours))
        assert (tuple(theirs[1:3]), theirs[2], theirs[-1]) == (ours[1:3], ours[2], ours[-1])
    middle = len(whole.train) // 2
    assert tuple(found.train[middle:][:5]) == whole.train[middle : middle + 5]


def test_what_is_wrong_with_streamed_text_is_said_as_of_other_text(tmp_path):
    how = {"memory": 0, "cache": str(tmp_path / "cache")}
    path = tmp_path / "a.jsonl"
    for content, named in (
        ('{"text": "one"}\n{"text": 1}', "line 2 lacks `text`"),
        ("", "empty"),
        (json_lines(*[{"text": "one"}] * 19), "20 lines"),
    ):
        path.write_text(content + " ")
        with pytest.raises(InputError, match=f"^dataset: got 'jsonl:{path}'; .*{named}"):
            load_corpus(f"jsonl:{path}", **how)
    for name, content in (("a.txt.gz", b"no archive"), ("b.txt.gz", gzip.compress(b"x" * 99)[:-9])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="^dataset: .*cannot be unpacked"):
            load_corpus(f"text:{tmp_path}/{name}", **how)
    (tmp_path / "a.txt").write_text("one\n" * 40)
    with pytest.raises(InputError, match="^spans: .*text_memory"):
        load_corpus(f"text:{tmp_path}/a.txt", spans=str(path), **how)
    with pytest.raises(InputError, match="^text_cache: "):
        load_corpus(f"text:{tmp_path}/a.txt", memory=0, cache=str(tmp_path / "a.txt"))


def test_a_split_that_is_small_enough_is_held_in_memory(tmp_path):
    write(tmp_path, SST2, "0\tone\n1\ttwo\n" * 40, "0\tone\n1\ttwo\n", "0\tone\n1\ttwo\n")
    found = load_corpus(f"tsv:{tmp_path}", memory=100, cache=str(tmp_path / "cache"))
    assert [isinstance(split, tuple) for split in (found.train, found.test)] == [False, True]
    assert isinstance(corpus.held(found.train[:4], 100), tuple)
    assert corpus.held(found.train, 100) is found.train
