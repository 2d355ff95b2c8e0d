"""Text files of a user's own: `text:PATH`, `tsv:PATH`, `jsonl:PATH`, and private spans of text."""

import collections
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from distill_core.config import InputError
from distill_core.data.images.dataset import in_order
from distill_core.runtime import paths


class Span(NamedTuple):
    """A private stretch of a text, as generated or as a recogniser or an annotator wrote it.

    Attributes:
      start, end: in characters (Unicode code points), [start, end).
      score: how surely it is private, in [0, 1].
      kind: what it is, such as "phone".
    """

    start: int
    end: int
    score: float = 1.0
    kind: str = ""


class Item(NamedTuple):
    """One text of a file.

    Attributes:
      number: the line that it is on, from 1.
      text: the text.
      label: as it is written; None without labels.
      spans: what is private of it.
    """

    number: int
    text: str
    label: str | None = None
    spans: tuple[Span, ...] = ()


class Summary(NamedTuple):
    """What is known of a file once all of it was read.

    Attributes:
      count: N.
      labels: how often each label occurs; {} without labels.
      kinds: those of its private spans, sorted.
    """

    count: int
    labels: Mapping[str, int]
    kinds: tuple[str, ...]


def stream(kind: str, path: str, *, classes: Sequence[str] | None = None) -> Iterator[Item]:
    r"""The texts of a UTF-8 file, one at a time; blank lines are dropped.

    Lines end with "\n" or "\r\n". A file whose name ends in `.gz` is unpacked while it is read.

    | kind | a line |
    |---|---|
    | `text` | a document or sentence; surrounding spaces are dropped, WikiText's marks stay |
    | `tsv` | a label, a tab and a text; quotes are part of the text |
    | `jsonl` | a JSON object with the fields below; others are ignored, null is none |

    The first line of `tsv` is a header if one of its columns is called `label`, in any case.
    Without a header the label comes first.

    | field | what |
    |---|---|
    | `text` | a non-empty string, kept as it is, line breaks too |
    | `label` | a string or an integer; on all lines or on none |
    | `spans` | `[[start, end], …]`, each with a score and a kind if wanted; see `Span` |

    Spans may overlap if their scores are equal.

    Args:
      kind: of the table.
      path: the file.
      classes: those of the training text, () if it has none; None for the training text itself.

    Raises:
      InputError: on `dataset`, at the first line that is wrong.
    """
    if kind == "text":
        name = f"text:{path}"
        return (Item(number, line.strip()) for number, line in _read("dataset", name, path))
    return _labelled(path) if kind == "tsv" else _objects(path, classes)


def summary(kind: str, path: str, items: Iterable[Item], classes: Sequence[str] | None) -> Summary:
    """Reads the texts of a file to the end; arguments as for `stream`.

    The first line's label of a `tsv` without a header must occur again if any label does, or be
    among the `classes`: otherwise the line may be a header in other words.

    Raises:
      InputError: on `dataset`: there is no text, or a column that holds no labels.
    """
    name, first, count = f"{kind}:{path}", None, 0
    labels: collections.Counter[str] = collections.Counter()
    kinds: set[str] = set()
    for item in items:
        first, count = first or item, count + 1
        labels.update([] if item.label is None else [item.label])
        kinds.update(span.kind for span in item.spans)
    if first is None:
        what = "labelled text" if kind == "tsv" else "text"
        raise InputError("dataset", name, f"must hold {what}, and is empty")
    if kind == "tsv":
        _check_column(name, path, first, labels, classes)
    return Summary(count, dict(labels), tuple(sorted(kinds)))


def classes_of(name: str, labels: Iterable[str]) -> tuple[str, ...]:
    """The classes of a training text: its labels, sorted, as numbers if all are; () without."""
    classes = in_order(set(labels))
    if len(classes) == 1:
        raise InputError("dataset", name, f"needs at least 2 labels, and has only {classes[0]!r}")
    return tuple(classes)


def index_in(name: str, classes: Sequence[str]) -> Callable[[Item], int]:
    """A function from an item to the index of its label among the classes.

    It raises InputError on `dataset` if the label is none of them.
    """
    places = {label: i for i, label in enumerate(classes)}

    def index(item: Item) -> int:
        if item.label not in places:
            allowed = f"line {item.number} has the label {item.label!r}; known: "
            raise InputError("dataset", name, allowed + ", ".join(classes))
        return places[item.label]

    return index


def _labelled(path: str) -> Iterator[Item]:
    name, column = f"tsv:{path}", 0
    for i, (number, line) in enumerate(_read("dataset", name, path)):
        cells = [cell.strip() for cell in line.split("\t")]
        if i == 0 and (header := [cell.lower() for cell in cells]).count("label") == 1:
            column = header.index("label")
            continue
        if len(cells) != 2 or column > 1:
            allowed = f"must have two columns, label<TAB>text; line {number} has {len(cells)}"
            raise InputError("dataset", name, allowed)
        if not all(cells):
            raise InputError("dataset", name, f"line {number} lacks its label or its text")
        yield Item(number, cells[1 - column], cells[column])


def _check_column(
    name: str,
    path: str,
    first: Item,
    labels: Mapping[str, int],
    classes: Sequence[str] | None,
):
    """Refuses what is no label column, or a header in other words."""
    number, line = next(iter(_read("dataset", name, path)))
    header, headed = line.lower().split("\t"), number != first.number
    count, first_label = sum(labels.values()), str(first.label)
    if len(labels) > max(10, count // 2):
        second = headed and header[0].strip() != "label"
        allowed = (
            f"has no label column: the {'second' if second else 'first'} has {len(labels):,} "
            f"different values in {count:,} lines; put the label first, or name it `label` "
            "in a header"
        )
        raise InputError("dataset", name, allowed)
    alone = labels[first_label] == 1 and len(labels) < count
    if not headed and alone and first_label not in (classes or ()):
        allowed = (
            f"the label of line {number}, {first_label!r}, occurs nowhere else: if the line is a "
            "header, call the label's column `label`; if it is an example, put a header "
            "label<TAB>text before it"
        )
        raise InputError("dataset", name, allowed)


def _objects(path: str, classes: Sequence[str] | None) -> Iterator[Item]:
    name, first = f"jsonl:{path}", None
    labelled = None if classes is None else bool(classes)
    for number, line in _read("dataset", name, path):
        try:
            found = _object(line)
            text = _text(found)
            item = Item(number, text, _label(found), _spans(found, len(text)))
            first = first or item
            expected = first.label is not None if labelled is None else labelled
            if expected != (item.label is not None):
                other = f"line {first.number}" if labelled is None else "the train file"
                raise ValueError(f"has {'no' if expected else 'a'} label, unlike {other}")
        except ValueError as error:
            raise InputError("dataset", name, f"line {number} {error}") from None
        yield item


def with_spans(path: str, items: Sequence[Item], of: str) -> list[Item]:
    """The texts of the file `of` with their private spans, which lie in a file of their own.

    UTF-8, one JSON object per line: `line`, the number of a line in the text's file, from 1;
    `spans` as in `stream`, in characters of the text without surrounding spaces; and, if given,
    `text`, which must be that text. Other fields are ignored.

    Raises:
      InputError: on `spans`.
    """
    texts = {item.number: item.text for item in items}
    found: dict[int, tuple[Span, ...]] = {}
    for number, line in _read("spans", path, path):
        try:
            given = _object(line)
            which = given.get("line")
            if type(which) is not int or which not in texts:
                raise ValueError("needs `line`, the number of a line with text")
            if which in found:
                raise ValueError(f"has `line` {which}, as one before it")
            if "spans" not in given:
                raise ValueError("lacks `spans`, a list")
            text = texts[which]
            if given.get("text") is not None and _text(given).rstrip() != text:
                raise ValueError(f"has another text than line {which} of {of}")
            found[which] = _spans(given, len(text))
        except ValueError as error:
            raise InputError("spans", path, f"line {number} {error}") from None
    return [item._replace(spans=found.get(item.number, ())) for item in items]


def read_numbered(field: str, path: str) -> list[tuple[int, str]]:
    """(number from 1, text) of each line of a UTF-8 file that is not blank; errors name `field`."""
    return list(_read(field, path, path))


# These raise ValueError with a clause that follows "line N".


def _object(line: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object")
    return found


def _text(found: Mapping[str, Any]) -> str:
    text = found.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("lacks `text`, a non-empty string")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("has half of a surrogate pair in its text") from None
    return text


def _label(found: Mapping[str, Any]) -> str | None:
    label = found.get("label")
    if label is None:
        return None
    if not (type(label) is int or (isinstance(label, str) and label.strip())):
        raise ValueError("has a label that is no integer and no non-empty string")
    return str(label)


def _spans(found: Mapping[str, Any], length: int) -> tuple[Span, ...]:
    """In order."""
    given, spans = found.get("spans"), []
    if not isinstance(given, list | None):
        raise ValueError("has `spans` that are no list of [start, end, score, kind]")
    items: list[Any] = given or []
    for number, each in enumerate(items, 1):
        # By its number: what stands in it may be private.
        if not isinstance(each, list) or not 2 <= len(each) <= 4:
            raise ValueError(f"has a span, number {number}, that is no [start, end, score, kind]")
        span = Span(*each)
        whole = type(span.start) is int and type(span.end) is int
        if not (whole and 0 <= span.start < span.end <= length):
            needed = f"needs integers 0 ≤ start < end ≤ {length}, of the text"
            raise ValueError(f"has a span, number {number}, outside it: {needed}")
        if type(span.score) not in (int, float) or not 0 <= span.score <= 1:
            raise ValueError(f"has a span, number {number}, whose score is no number in [0, 1]")
        if not isinstance(span.kind, str):
            raise ValueError(f"has a span, number {number}, whose kind is no string")
        spans.append(span._replace(score=float(span.score)))
    spans.sort()
    last = Span(0, 0)  # the one that reaches furthest
    for span in spans:
        if span.start < last.end and span.score != last.score:
            both = f"{last.start} to {last.end} and {span.start} to {span.end}"
            raise ValueError(f"has overlapping spans of different scores, {both}")
        last = max(last, span, key=lambda each: each.end)
    return tuple(spans)


def _read(field: str, name: str, path: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line that is not blank."""
    file = paths.expand(field, path, given=name)
    if not path or not file.is_file():
        raise InputError(field, name, "must be an existing text file")
    # Bytes are split before decoding: str.splitlines would also split at U+2028 and the like.
    for number, line in enumerate(_byte_lines(field, name, file), 1):
        try:
            text = line.removesuffix(b"\n").decode("utf-8")
        except UnicodeDecodeError as error:
            allowed = f"must be UTF-8; line {number} is not (byte {error.start + 1} of it)"
            raise InputError(field, name, allowed) from None
        if text.strip():
            yield number, text


def _byte_lines(field: str, name: str, file: Any) -> Iterator[bytes]:
    with file.open("rb") as packed:
        lines = gzip.GzipFile(fileobj=packed) if file.name.endswith(".gz") else packed
        try:
            for i, line in enumerate(lines):
                yield line if i else line.removeprefix(b"\xef\xbb\xbf")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(field, name, f"cannot be unpacked ({error})") from None
