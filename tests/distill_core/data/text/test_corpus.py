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


@pytest.mark.parametrize("name", ["wikitext", "text", "text:", "tsv:", "records:x", "records:", ""])
def test_an_unknown_kind_is_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match="^dataset: .*records, text:PATH, tsv:PATH"):
        load_corpus(name)


@pytest.mark.parametrize("kind", ["text", "tsv"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "existing"), (b"\n\n", "empty"), (b"0\tgood\n1\tna\xefve\n", "line 2 .*byte 5")]
    + [(b"0\ta\n1\tb\n" * num, "20 lines") for num in (1, 9)],
)
def test_a_single_file_is_refused_by_what_is_wrong_with_it(tmp_path, kind, content, reason):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=f"^dataset: .*{reason}"):
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
