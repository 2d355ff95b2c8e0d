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
        assert example.spans == tuple(span[:2] for span in record.spans)
