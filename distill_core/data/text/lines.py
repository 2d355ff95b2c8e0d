"""Text files of a user's own: `text:PATH` and `tsv:PATH`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from distill_core.config import InputError
from distill_core.data.images.dataset import in_order
from distill_core.runtime import paths


class LabelledText(NamedTuple):
    """Texts with labels int32 [N] that index `classes`."""

    texts: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]


def read_lines(path: str) -> tuple[str, ...]:
    r"""Reads `text:PATH`: UTF-8, one document or sentence per line.

    Lines end with "\n" or "\r\n"; surrounding spaces and blank lines are dropped. WikiText's
    `.tokens` files are read as they are: a heading is a line, `<unk>` stays.
    """
    name = f"text:{path}"
    lines = tuple(line.strip() for _, line in _read("dataset", name, path))
    if not lines:
        raise InputError("dataset", name, "must hold text, and is empty")
    return lines


def read_labelled(path: str, *, classes: Sequence[str] | None = None) -> LabelledText:
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
    if classes is None:
        classes = in_order(found)
    if len(classes) < 2:
        raise InputError("dataset", name, f"needs at least 2 labels, and has only {classes[0]!r}")
    index = {label: i for i, label in enumerate(classes)}
    for (number, _), label in zip(rows, given, strict=True):
        if label not in index:
            allowed = f"line {number} has the label {label!r}; known: {', '.join(classes)}"
            raise InputError("dataset", name, allowed)
    labels = np.array([index[label] for label in given], np.int32)
    return LabelledText(tuple(texts), labels, tuple(classes))


def read_numbered(field: str, path: str) -> list[tuple[int, str]]:
    """(number from 1, text) of each line of a UTF-8 file that is not blank; errors name `field`."""
    return _read(field, path, path)


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
