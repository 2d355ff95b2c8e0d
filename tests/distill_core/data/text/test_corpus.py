"""Text by name: which lines are for what, and what is refused."""

import pytest

from distill_core.config import InputError
from distill_core.data.text import corpus, records
from distill_core.data.text.corpus import load_corpus

WIKITEXT = ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")
SST2 = ("train.tsv", "dev.tsv", "test.tsv")


def write(folder, names, *contents):
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def texts(examples):
    return [example.text for example in examples]


def refused(name):
    with pytest.raises(InputError) as error:
        load_corpus(name)
    assert error.value.field == "dataset"
    assert error.value.given == name or name.partition(":")[2] in str(error.value.given)
    return str(error.value)


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
def test_of_a_single_file_the_last_tenth_is_held_out(tmp_path, num, held):
    lines = [f"line {i}" for i in range(num)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    found = load_corpus(f"text:{tmp_path}/a.txt")
    assert texts(found.train) == lines[: num - 2 * held]
    assert texts(found.validation) == lines[num - 2 * held : num - held]
    assert texts(found.test) == lines[num - held :]


def test_a_single_file_may_have_labels(tmp_path):
    (tmp_path / "a.tsv").write_text("\n".join(f"{i % 2}\tline {i}" for i in range(30)))
    found = load_corpus(f"tsv:{tmp_path}/a.tsv")
    assert [len(split) for split in (found.train, found.validation, found.test)] == [28, 1, 1]
    assert (found.classes, found.test[0].label) == (("0", "1"), 1)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, WIKITEXT, "one", "two", "three")
    assert texts(load_corpus("text:~").test) == ["three"]


@pytest.mark.parametrize("name", ["wikitext", "text", "text:", "tsv:", "records:x", "records:", ""])
def test_an_unknown_kind_is_refused_with_the_known_ones(name):
    assert "must be one of records, text:PATH, tsv:PATH" in refused(name)


@pytest.mark.parametrize("kind", ["text", "tsv"])
def test_a_missing_file_is_refused(tmp_path, kind):
    assert "must be an existing text file" in refused(f"{kind}:{tmp_path}/a.txt")


@pytest.mark.parametrize("kind", ["text", "tsv"])
def test_an_empty_file_is_refused(tmp_path, kind):
    (tmp_path / "a.txt").write_text("\n \n")
    assert "is empty" in refused(f"{kind}:{tmp_path}/a.txt")


def test_another_encoding_is_refused_with_its_place(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\nna\xefve\n")
    assert "must be UTF-8; line 2 is not (byte 3 of it)" in refused(f"text:{tmp_path}/a.txt")


def test_what_is_wrong_with_one_file_of_a_directory_names_that_file(tmp_path):
    write(tmp_path, WIKITEXT, "one", "", b"\xff")
    assert f"text:{tmp_path}/wiki.valid.tokens'; must hold text" in refused(f"text:{tmp_path}")
    (tmp_path / "wiki.valid.tokens").write_text("two")
    assert f"text:{tmp_path}/wiki.test.tokens'; must be UTF-8" in refused(f"text:{tmp_path}")


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
    message = refused(f"text:{tmp_path}")
    assert f"must hold one file with {words} in its name; this one has {count}" in message


@pytest.mark.parametrize("num", [1, 19])
def test_a_file_that_is_too_short_to_be_split_is_refused(tmp_path, num):
    (tmp_path / "a.txt").write_text("line\n" * num)
    message = refused(f"text:{tmp_path}/a.txt")
    assert f"must have at least 20 lines, to hold some out; it has {num}" in message


@pytest.fixture(scope="module")
def generated():
    return load_corpus("records")


def test_records_are_generated_in_three_parts(generated):
    sizes = tuple(len(s) for s in (generated.train, generated.validation, generated.test))
    assert sizes == corpus.NUM_RECORDS
    made = records.generate_records(sum(sizes), seed=0)
    everything = generated.train + generated.validation + generated.test
    assert texts(everything) == [record.text for record in made]
    assert generated.classes == records.LABELS
    assert all(generated.classes[e.label] == r.label for e, r in zip(everything, made, strict=True))


def test_the_private_spans_of_a_record_are_what_it_was_made_from(generated):
    some = generated.test[:300]
    for example in some:
        private = {example.text[start:end] for start, end in example.spans}
        fields = {value for kind, value in example.fields.items() if kind in records.PRIVATE}
        assert private == fields
    assert 30 < sum(not example.spans for example in some) < 100
