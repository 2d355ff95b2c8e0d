"""Text by name: which lines are for what, and what is refused."""

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


def test_a_fingerprint_tells_spans_scores_and_kinds_apart(tmp_path):
    found = set()
    for span in ([0, 1], [0, 2], [0, 2, 0.5], [0, 2, 0.5, "name"]):
        (tmp_path / "a.jsonl").write_text(json_lines(*[{"text": "one", "spans": [span]}] * 20))
        found.add(load_corpus(f"jsonl:{tmp_path}/a.jsonl").fingerprint())
    assert len(found) == 4
