"""Text by name: `load_corpus("records")`, `"text:PATH"`, `"tsv:PATH"`, `"jsonl:PATH"`."""

import dataclasses
import hashlib
from collections.abc import Mapping

from distill_core.config import InputError
from distill_core.data import split_name
from distill_core.data.text import lines, records
from distill_core.data.text.lines import Span
from distill_core.runtime import paths, strict_json

KINDS = {"records": None, "text": "PATH", "tsv": "PATH", "jsonl": "PATH"}
NUM_RECORDS = (12_000, 1_000, 2_000)  # train, validation, test
_FILES = {"train": ("train",), "validation": ("valid", "dev"), "test": ("test",)}
_HELD_OUT = 20  # one in so many lines of a single file is held out for validation, and for test


@dataclasses.dataclass(frozen=True)
class Example:
    """One text and what is known about it.

    Attributes:
      text: a line or a document.
      spans: its private stretches; () where unknown.
      fields: what the line was made from, by name.
      label: index into the corpus's classes; None without classes.
    """

    text: str
    spans: tuple[Span, ...] = ()
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    label: int | None = None


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Lines for training, validation and testing; `classes` is () without labels."""

    name: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    classes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """SHA-256 of everything known about the lines; kept in `private/` alone, as `Dataset`'s."""
        sha = hashlib.sha256(strict_json.encode(self.classes).encode())
        for split in (self.train, self.validation, self.test):
            for line in split:
                known = [line.text, line.spans, sorted(line.fields.items()), line.label]
                sha.update(f"{strict_json.encode(known)}\n".encode())
            sha.update(b"\n")
        return sha.hexdigest()


def load_corpus(name: str, *, spans: str | None = None) -> Corpus:
    """Loads text into memory.

    Args:
      name: `records` (generated, embedded, private spans known), `text:PATH` (one document or
        sentence per line), `tsv:PATH` (a label, a tab, a text) or `jsonl:PATH` (objects with text,
        label and private spans). PATH is a directory with one file each that has `train`, `valid`
        or `dev`, and `test` in its name, as WikiText and SST-2 are distributed; or a single file,
        whose last tenth is held out.
      spans: for `text:PATH`, the path of its private spans (`lines.read_spans`): those of the
        directory's training file, or of the single file with what is held out.

    Raises:
      InputError: on `dataset`: no such kind, or text that is missing, empty, unreadable or too
        short to be split; on `spans`.
    """
    kind, path = split_name(name, KINDS)
    if spans is not None and kind != "text":
        raise InputError("spans", spans, f"belongs to text:PATH, not to {name}")
    if kind == "records":
        return _records()
    classes, splits = None, {}
    for split, file in _files(name, path).items():
        if kind == "text":
            found = lines.read_lines(file)
            if spans is not None and split == "train":
                found = found._replace(spans=lines.read_spans(spans, found))
        else:
            read = lines.read_labelled if kind == "tsv" else lines.read_json
            found = read(file, classes=classes)
        classes = found.classes
        splits[split] = _examples(found)
    if "validation" not in splits:
        splits = _split(name, splits["train"])
    return Corpus(name, **splits, classes=classes or ())


def _records() -> Corpus:
    examples = tuple(
        Example(
            record.text,
            tuple(Span(start, end, kind=kind) for start, end, kind in record.spans),
            record.fields,
            records.LABELS.index(record.label),
        )
        for record in records.generate_records(sum(NUM_RECORDS), seed=0)
    )
    first, second = NUM_RECORDS[0], NUM_RECORDS[0] + NUM_RECORDS[1]
    return Corpus(
        "records", examples[:first], examples[first:second], examples[second:], records.LABELS
    )


def _files(name: str, path: str) -> dict[str, str]:
    """Split -> file; {"train": path} for a single file."""
    folder = paths.expand("dataset", path, given=name)
    if not folder.is_dir():
        return {"train": str(folder)}
    found = {}
    for split, words in _FILES.items():
        here = [p for p in folder.iterdir() if p.is_file() and any(w in p.name for w in words)]
        if len(here) != 1:
            allowed = (
                f"a directory must hold one file with {' or '.join(words)} in its name; this one "
                f"has {len(here)}"
            )
            raise InputError("dataset", name, allowed)
        found[split] = str(here[0])
    return found


def _examples(found: lines.Lines) -> tuple[Example, ...]:
    if found.labels is None:
        return tuple(map(Example, found.texts, found.spans))
    return tuple(
        Example(text, spans, {"label": found.classes[label]}, int(label))
        for text, spans, label in zip(found.texts, found.spans, found.labels, strict=True)
    )


def _split(name: str, examples: tuple[Example, ...]) -> dict[str, tuple[Example, ...]]:
    held = len(examples) // _HELD_OUT
    if not held:
        allowed = f"must have at least {_HELD_OUT} lines, to hold some out; it has {len(examples)}"
        raise InputError("dataset", name, allowed)
    return {
        "train": examples[: -2 * held],
        "validation": examples[-2 * held : -held],
        "test": examples[-held:],
    }
