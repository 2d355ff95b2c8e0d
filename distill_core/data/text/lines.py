"""Text files of a user's own: `text:PATH`, `tsv:PATH`, `jsonl:PATH`, and private spans of text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

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


class Lines(NamedTuple):
    """N texts of a file, and what it says of each.

    Attributes:
      numbers: the line that each is on, from 1.
      texts: the texts.
      classes: () without labels.
      labels: int32 [N], index into `classes`; None without.
      spans: what is private of each.
    """

    numbers: tuple[int, ...]
    texts: tuple[str, ...]
    classes: tuple[str, ...]
    labels: np.ndarray | None
    spans: tuple[tuple[Span, ...], ...]


def read_lines(path: str) -> Lines:
    r"""Reads `text:PATH`: UTF-8, one document or sentence per line.

    Lines end with "\n" or "\r\n"; surrounding spaces and blank lines are dropped. WikiText's
    `.tokens` files are read as they are: a heading is a line, `<unk>` stays.
    """
    name = f"text:{path}"
    numbered = _read("dataset", name, path)
    if not numbered:
        raise InputError("dataset", name, "must hold text, and is empty")
    numbers, texts = zip(*((number, line.strip()) for number, line in numbered), strict=True)
    return Lines(numbers, texts, (), None, ((),) * len(texts))


def read_labelled(path: str, *, classes: Sequence[str] | None = None) -> Lines:
    """Reads `tsv:PATH`: UTF-8, a label and a text, separated by a tab.

    The first line is a header if one of its columns is called `label`, in any case. Without a
    header the label comes first, and the first line's label must occur again if any label does:
    otherwise the line may be a header in other words. Quotes are part of the text. `classes` are
    the labels allowed, such as those of the train file; by default the file's own, sorted (as
    numbers if all are).
    """
    name = f"tsv:{path}"
    rows = [(number, line.split("\t")) for number, line in _read("dataset", name, path)]
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    headed = header.count("label") == 1
    column = header.index("label") if headed else 0
    rows = rows[headed:]
    if not rows:
        raise InputError("dataset", name, "must hold labelled text, and is empty")
    texts, given = [], []
    for number, cells in rows:
        cells = [cell.strip() for cell in cells]
        if len(cells) != 2 or column > 1:
            allowed = f"must have two columns, label<TAB>text; line {number} has {len(cells)}"
            raise InputError("dataset", name, allowed)
        if not all(cells):
            raise InputError("dataset", name, f"line {number} lacks its label or its text")
        given.append(cells[column])
        texts.append(cells[1 - column])
    found = set(given)
    if len(found) > max(10, len(given) // 2):
        allowed = (
            f"has no label column: the {'second' if column else 'first'} has {len(found):,} "
            f"different values in {len(given):,} lines; put the label first, or name it `label` "
            "in a header"
        )
        raise InputError("dataset", name, allowed)
    alone = given.count(given[0]) == 1 and len(found) < len(given)
    if not headed and alone and given[0] not in (classes or ()):
        allowed = (
            f"the label of line {rows[0][0]}, {given[0]!r}, occurs nowhere else: if the line is a "
            "header, call the label's column `label`; if it is an example, put a header "
            "label<TAB>text before it"
        )
        raise InputError("dataset", name, allowed)
    numbers = tuple(number for number, _ in rows)
    classes, labels = _labels(name, numbers, given, classes)
    return Lines(numbers, tuple(texts), classes, labels, ((),) * len(texts))


def read_json(path: str, *, classes: Sequence[str] | None = None) -> Lines:
    """Reads `jsonl:PATH`: UTF-8, one JSON object per line; blank lines are dropped.

    | field | what |
    |---|---|
    | `text` | a non-empty string, kept as it is, line breaks too |
    | `label` | a string or an integer; on all lines or on none |
    | `spans` | `[[start, end], …]`, each with a score and a kind if wanted; see `Span` |

    Spans may overlap if their scores are equal. Other fields are ignored; null stands for a field
    that is not there. `classes` are as in `read_labelled`, () for a train file without labels.
    """
    name = f"jsonl:{path}"
    numbers, texts, given, spans = [], [], [], []
    for number, line in _read("dataset", name, path):
        try:
            found = _object(line)
            texts.append(_text(found))
            given.append(_label(found))
            spans.append(_spans(found, len(texts[-1])))
            labelled = bool(classes) if classes is not None else given[0] is not None
            if labelled != (given[-1] is not None):
                other = f"line {numbers[0]}" if classes is None else "the train file"
                raise ValueError(f"has {'no' if labelled else 'a'} label, unlike {other}")
        except ValueError as error:
            raise InputError("dataset", name, f"line {number} {error}") from None
        numbers.append(number)
    if not numbers:
        raise InputError("dataset", name, "must hold text, and is empty")
    if given[0] is None:
        return Lines(tuple(numbers), tuple(texts), (), None, tuple(spans))
    classes, labels = _labels(name, numbers, given, classes)
    return Lines(tuple(numbers), tuple(texts), classes, labels, tuple(spans))


def read_spans(path: str, lines: Lines) -> tuple[tuple[Span, ...], ...]:
    """Reads private spans that lie in a file of their own: of each of `lines`, () where none.

    UTF-8, one JSON object per line: `line`, the number of a line in the text's file, from 1;
    `spans` as in `read_json`, in characters of the text without surrounding spaces; and, if given,
    `text`, which must be that text. Other fields are ignored.

    Raises:
      InputError: on `spans`.
    """
    place = {number: i for i, number in enumerate(lines.numbers)}
    found: dict[int, tuple[Span, ...]] = {}
    for number, line in _read("spans", path, path):
        try:
            item = _object(line)
            which = item.get("line")
            if type(which) is not int or which not in place:
                raise ValueError("needs `line`, the number of a line with text")
            if which in found:
                raise ValueError(f"has `line` {which}, as one before it")
            if "spans" not in item:
                raise ValueError("lacks `spans`, a list")
            text = lines.texts[place[which]]
            if item.get("text") is not None and _text(item).rstrip() != text:
                raise ValueError(f"has another text than line {which} of the training file")
            found[which] = _spans(item, len(text))
        except ValueError as error:
            raise InputError("spans", path, f"line {number} {error}") from None
    return tuple(found.get(number, ()) for number in lines.numbers)


def _labels(
    name: str, numbers: Sequence[int], given: Sequence[str], classes: Sequence[str] | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """(classes, labels that index them) of the lines with these numbers."""
    if classes is None:
        classes = in_order(set(given))
    if len(classes) < 2:
        raise InputError("dataset", name, f"needs at least 2 labels, and has only {classes[0]!r}")
    index = {label: i for i, label in enumerate(classes)}
    for number, label in zip(numbers, given, strict=True):
        if label not in index:
            allowed = f"line {number} has the label {label!r}; known: {', '.join(classes)}"
            raise InputError("dataset", name, allowed)
    return tuple(classes), np.array([index[label] for label in given], np.int32)


def read_numbered(field: str, path: str) -> list[tuple[int, str]]:
    """(number from 1, text) of each line of a UTF-8 file that is not blank; errors name `field`."""
    return _read(field, path, path)


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


def _read(field: str, name: str, path: str) -> list[tuple[int, str]]:
    """(number from 1, text) of each line that is not blank."""
    file = paths.expand(field, path, given=name)
    if not path or not file.is_file():
        raise InputError(field, name, "must be an existing text file")
    lines = []
    # Bytes are split before decoding: str.splitlines would also split at U+2028 and the like.
    for number, line in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            allowed = f"must be UTF-8; line {number} is not (byte {error.start + 1} of it)"
            raise InputError(field, name, allowed) from None
        if text.strip():
            lines.append((number, text))
    return lines
