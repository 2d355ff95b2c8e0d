"""Text by name: `load_corpus("records")`, `"text:PATH"`, `"tsv:PATH"`, `"jsonl:PATH"`.

Small text is held in memory. Text beyond a size stays in its files, which are read anew wherever
its lines are needed (`Streamed`).
"""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from distill_core.config import InputError
from distill_core.data import split_name
from distill_core.data.text import files, lines, records
from distill_core.data.text.lines import Span
from distill_core.runtime import paths, strict_json

KINDS = {"records": None, "text": "PATH", "tsv": "PATH", "jsonl": "PATH"}
NUM_RECORDS = (12_000, 1_000, 2_000)  # train, validation, test
_FILES = {"train": ("train",), "validation": ("valid", "dev"), "test": ("test",)}
_WORDS = "train, valid, dev or test"
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
    """Lines for training, validation and testing; `classes` is () without labels.

    Text in files has a `digest`, of their content.
    """

    name: str
    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    classes: tuple[str, ...] = ()
    digest: str = ""

    def fingerprint(self) -> str:
        """SHA-256 of everything known about the lines; kept in `private/` alone, as `Dataset`'s."""
        if self.digest:
            return self.digest
        sha = hashlib.sha256(strict_json.encode(self.classes).encode())
        for split in (self.train, self.validation, self.test):
            for line in split:
                known = [line.text, line.spans, sorted(line.fields.items()), line.label]
                sha.update(f"{strict_json.encode(known)}\n".encode())
            sha.update(b"\n")
        return sha.hexdigest()


class InFiles(Sequence[Example]):
    """Lines that stay in files: each pass over them reads the files anew."""

    @property
    def content(self) -> list[Any]:
        """What decides the lines, as JSON."""
        raise NotImplementedError

    @property
    def kinds(self) -> set[str]:
        """Those of the lines' private spans."""
        raise NotImplementedError

    @property
    def size(self) -> float:
        """Bytes, about."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Streamed(InFiles):
    """The lines of files, one after another.

    Attributes:
      kind, classes: as for `lines.stream`.
      known: the files in order, and what is in them.
      span: which of all their lines count.
    """

    kind: str
    known: tuple[files.File, ...]
    classes: tuple[str, ...]
    span: range

    @property
    def content(self) -> list[Any]:
        """What decides the lines, as JSON."""
        digests = [file.digest for file in self.known]
        return [self.kind, digests, self.classes, self.span.start, self.span.stop]

    @property
    def kinds(self) -> set[str]:
        """Those of the private spans in the files."""
        return {kind for file in self.known for kind in file.summary.kinds}

    @property
    def size(self) -> float:
        """Bytes, about: the files', if all of their lines are of one length."""
        total = sum(file.summary.count for file in self.known)
        return sum(files.size(file.path) for file in self.known) * len(self.span) / total

    def __len__(self) -> int:
        return len(self.span)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return dataclasses.replace(self, span=self.span[index])
        return next(iter(self[index : index + 1 or None]))

    def __iter__(self) -> Iterator[Example]:
        first = 0
        for file in self.known:
            count = file.summary.count
            begin, end = max(self.span.start - first, 0), min(self.span.stop - first, count)
            if begin < end:
                name = f"{self.kind}:{file.path}"
                file.check_unchanged(name)
                items = lines.stream(self.kind, file.path, classes=self.classes)
                yield from _examples(name, itertools.islice(items, begin, end), self.classes)
                file.check_unchanged(name)
            first += count


def held(examples: Sequence[Example], memory: int) -> Sequence[Example]:
    """A text in memory if it has at most so many bytes, else as it is."""
    if isinstance(examples, InFiles) and examples.size > memory:
        return examples
    return tuple(examples)


def span_kinds(examples: Sequence[Example]) -> set[str]:
    """The kinds of the private spans of a text."""
    if isinstance(examples, InFiles):
        return examples.kinds
    return {span.kind for example in examples for span in example.spans}


def load_corpus(
    name: str, *, spans: str | None = None, memory: int | None = None, cache: str | None = None
) -> Corpus:
    """Loads text, or finds out what is in its files.

    Args:
      name: `records` (generated, embedded, private spans known), `text:PATH` (one document or
        sentence per line), `tsv:PATH` (a label, a tab, a text) or `jsonl:PATH` (objects with text,
        label and private spans). PATH is a single file, whose last tenth is held out, or a
        directory with files that have `train`, `valid` or `dev`, and `test` in their names, as
        WikiText and SST-2 are distributed, or with directories of such names. Several files of a
        split follow one another by name; they may be packed with gzip.
      spans: for `text:PATH`, the path of its private spans (`lines.with_spans`): a file with those
        of the directory's training file, or of the single file with what is held out; or a
        directory with files of spans, named as those of the text (`_spans_files`).
      memory: bytes of text up to which a split is held in memory, else its lines stay in the files;
        None: all is held.
      cache: where to remember what is in such files, see `files.look_at`.

    Raises:
      InputError: on `dataset`: no such kind, or text that is missing, empty, unreadable or too
        short to be split; on `spans`.
    """
    kind, path = split_name(name, KINDS)
    if spans is not None and kind != "text":
        raise InputError("spans", spans, f"belongs to text:PATH, not to {name}")
    if kind == "records":
        return _records()
    found = _files(name, path)
    size = sum(files.size(each) for several in found.values() for each in several)
    if memory is not None and size > memory:
        if spans is not None:
            allowed = "is for text in memory: take jsonl:PATH, or a higher text_memory"
            raise InputError("spans", spans, allowed)
        return _streamed(name, kind, found, memory, files.folder(cache))
    return _in_memory(name, kind, found, spans)


def _in_memory(name: str, kind: str, found: Mapping[str, list[str]], spans: str | None) -> Corpus:
    beside = {} if spans is None else _spans_files(spans, found, split_name(name, KINDS)[1])
    classes: tuple[str, ...] | None = None
    splits: dict[str, Sequence[Example]] = {}
    for split, several in found.items():
        items, labels = [], classes
        for file in several:
            each = list(lines.stream(kind, file, classes=labels))
            summary = lines.summary(kind, file, each, labels)
            labels = labels or tuple(summary.labels)
            items.append(lines.with_spans(beside[file], each, file) if file in beside else each)
        if classes is None:
            given = [item.label for each in items for item in each if item.label is not None]
            classes = lines.classes_of(name if len(several) > 1 else f"{kind}:{several[0]}", given)
        splits[split] = tuple(
            example
            for file, each in zip(several, items, strict=True)
            for example in _examples(f"{kind}:{file}", each, classes)
        )
    if "validation" not in splits:
        splits = _split(name, splits["train"])
    train, validation = splits["train"], splits["validation"]
    return Corpus(name, train, validation, splits["test"], classes=classes or ())


def _streamed(
    name: str, kind: str, found: Mapping[str, list[str]], memory: int, cache: epath.Path
) -> Corpus:
    classes: tuple[str, ...] | None = None
    known: dict[str, tuple[files.File, ...]] = {}
    for split, several in found.items():
        each, labels = [], classes
        for file in several:
            each.append(files.look_at(kind, file, labels, cache))
            labels = labels or tuple(each[-1].summary.labels)
        if classes is None:
            given = {label for file in each for label in file.summary.labels}
            classes = lines.classes_of(name if len(several) > 1 else f"{kind}:{several[0]}", given)
        known[split] = tuple(each)
    splits: dict[str, Sequence[Example]] = {
        split: Streamed(kind, each, classes or (), range(sum(f.summary.count for f in each)))
        for split, each in known.items()
    }
    if "validation" not in splits:
        splits = _split(name, splits["train"])
    splits = {split: held(each, memory) for split, each in splits.items()}
    content = {split: [file.digest for file in each] for split, each in known.items()}
    digest = hashlib.sha256(strict_json.encode([kind, content]).encode()).hexdigest()
    three = (splits["train"], splits["validation"], splits["test"])
    return Corpus(name, *three, classes=classes or (), digest=digest)


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


def _files(name: str, path: str) -> dict[str, list[str]]:
    """Split -> files; {"train": [path]} for a single file."""
    folder = paths.expand("dataset", path, given=name)
    if not folder.is_dir():
        return {"train": [str(folder)]}
    found = _by_split(folder)
    for split, every in found.items():
        kinds = set(map(_ending, every))
        if len(kinds) != 1:
            allowed = (
                f"a directory must hold files with {' or '.join(_FILES[split])} in their names, "
                f"all with one ending; this one has {len(every)}{' with several' if every else ''}"
            )
            raise InputError("dataset", name, allowed)
    return found


def _by_split(folder: epath.Path) -> dict[str, list[str]]:
    """Split -> files that have, or lie in a directory that has, one of its words in the name."""
    found = {}
    for split, words in _FILES.items():
        here = [p for p in folder.iterdir() if any(w in p.name for w in words)]
        each = (file for p in here for file in ([p] if p.is_file() else _below(p)))
        found[split] = sorted(map(str, each))
    return found


def _spans_files(spans: str, found: Mapping[str, list[str]], path: str) -> dict[str, str]:
    """File of text -> file of its private spans.

    In a directory, files of spans have the words of the splits in their names. A split has none, or
    as many as there are files of text; several have these files' names but for the ending.
    """
    folder = paths.expand("spans", spans)
    if not folder.is_dir() or "validation" not in found:
        if len(found["train"]) > 1:
            allowed = "belongs to one file of training text; several need a directory of spans"
            raise InputError("spans", spans, allowed)
        return {found["train"][0]: spans}
    theirs = _by_split(folder)
    known = {file for each in theirs.values() for file in each}
    if not known:
        raise InputError("spans", spans, f"has no file with {_WORDS} in its name")
    for file in sorted({str(file) for file in _below(folder)} - known):
        if _ending(file) in map(_ending, known):  # one that is misnamed would be missed silently
            raise InputError("spans", file, f"must have {_WORDS} in its name")
    beside = {}
    for split, each in theirs.items():
        of = found[split]
        texts, names = _by_name(of, paths.expand("dataset", path)), _by_name(each, folder)
        if len(of) == len(each) == 1:
            beside[of[0]] = each[0]
        elif each and (apart := sorted(texts.keys() ^ names.keys())):
            lacks = "text" if apart[0] in names else "spans"
            allowed = (
                f"needs a file of spans for each {split} file of text; {apart[0]} lacks {lacks}"
            )
            raise InputError("spans", spans, allowed)
        elif each:
            beside |= {texts[name]: names[name] for name in texts}
    return beside


def _by_name(several: Iterable[str], folder: epath.Path) -> dict[str, str]:
    """Name within the folder but for the ending -> file."""
    names = {file: os.path.relpath(file, folder).removesuffix(".gz") for file in several}
    return {os.path.splitext(name)[0]: file for file, name in names.items()}


def _ending(file: str) -> str:
    return os.path.splitext(file.removesuffix(".gz"))[1]


def _below(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _below(path)
        elif not path.name.startswith("."):
            yield path


def _examples(name: str, items: Iterable[lines.Item], classes: Sequence[str]) -> Iterator[Example]:
    index = lines.index_in(name, classes)
    for item in items:
        if item.label is None:
            yield Example(item.text, item.spans)
        else:
            yield Example(item.text, item.spans, {"label": item.label}, index(item))


def _split(name: str, examples: Sequence[Example]) -> dict[str, Sequence[Example]]:
    held = len(examples) // _HELD_OUT
    if not held:
        allowed = f"must have at least {_HELD_OUT} lines, to hold some out; it has {len(examples)}"
        raise InputError("dataset", name, allowed)
    return {
        "train": examples[: -2 * held],
        "validation": examples[-2 * held : -held],
        "test": examples[-held:],
    }
