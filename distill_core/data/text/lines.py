"""Text of a user's own: `text:PATH`, `tsv:PATH`, and lines of token ids as fixed-length rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill_core.config import InputError
from distill_core.data.images.dataset import in_order
from distill_core.runtime import paths


@dataclass(frozen=True)
class TextLines:
    """Documents or sentences, one a line, none blank; `name` is the user's, for messages."""

    name: str
    lines: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True, eq=False)
class LabelledText:
    """Texts with labels int32 [N] that index `classes`."""

    name: str
    texts: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of fixed length for language modelling.

    Attributes:
      tokens: int32 [N, L], the network's inputs; `<bos>` starts each line.
      labels: int32 [N, L], the token that logits at the same position predict; `<eos>` ends each
        line.
      mask: bool [N, L], False where a row is padded.
      lines: int32 [N, L], which line a position belongs to; −1 where padded.

    Positions where the mask is True are in the order of the text, a line's tokens followed by its
    `<eos>`: values that belong to labels fill in by `values = np.zeros(mask.shape);
    values[mask] = np.concatenate(values_of_lines)`.
    """

    tokens: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    lines: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def read_lines(path: str) -> TextLines:
    """Reads `text:PATH`: UTF-8, one document or sentence a line.

    Lines end with "\\n" or "\\r\\n"; spaces around a line are cut off and blank lines dropped.
    WikiText's `.tokens` files are read as they are: a heading is a line, `<unk>` stays.

    Raises:
      InputError: on `dataset`: no such file, not UTF-8 (says the line), no text in it.
    """
    name = f"text:{path}"
    lines = tuple(line.strip() for _, line in _read(name, path))
    if not lines:
        raise InputError("dataset", name, "must hold text, and is empty")
    return TextLines(name, lines)


def read_labelled(path: str, *, classes: Sequence[str] | None = None) -> LabelledText:
    """Reads `tsv:PATH`: UTF-8, two columns with a tab between, a label and a text.

    The first line may be a header; it is one if one column is called `label`, in any case, and says
    which column that is. Without a header the label comes first, and the first line's label must
    occur again if any label does: else it may be the header's other word for it. Quotes are part of
    the text.

    Args:
      path: the file.
      classes: the labels there are, for example those of the train file; by default the file's
        own, sorted (as numbers if all are).

    Raises:
      InputError: on `dataset`: no such file, not UTF-8, no examples, a line that has not two
        columns, no column that could be a label, a first line that may be a header of other words,
        an empty text, a label that is not in `classes`.
    """
    name = f"tsv:{path}"
    rows = [(number, line.split("\t")) for number, line in _read(name, path)]
    column, headed = 0, False
    if rows:
        header = [cell.strip().lower() for cell in rows[0][1]]
        if headed := header.count("label") == 1:
            column = header.index("label")
            rows = rows[1:]
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
    return LabelledText(name, tuple(texts), labels, tuple(classes))


def pack(
    ids: Sequence[np.ndarray], length: int, *, bos_id: int, eos_id: int, pad_id: int
) -> TokenRows:
    """Lines one after another; a line that fits into a row is never cut.

    A line of n tokens takes n + 1 positions: inputs `<bos>` x₁ … xₙ, labels x₁ … xₙ `<eos>`. No
    label asks for a token of the next line, but a network that attends over a whole row sees the
    lines before; `TokenRows.lines` tells them apart. A row is padded where the next line would have
    to be cut. Longer lines begin where they come, are cut, and go on in the next row.

    Args:
      ids: token ids of each line, int [n].
      length: L, of a row.
      bos_id, eos_id, pad_id: the special tokens.

    Raises:
      InputError: on `length`, if it is less than 1; on `ids`, if there are no lines.
    """
    _check(ids, length)
    starts, end = [], 0
    for line in ids:
        room, needed = -end % length, len(line) + 1
        starts.append(end + room if room < needed <= length else end)
        end = starts[-1] + needed
    return _rows(ids, starts, -(-end // length), length, bos_id, eos_id, pad_id)


def _rows(ids, starts, num_rows: int, length: int, bos_id, eos_id, pad_id) -> TokenRows:
    """Each line written at its place in the flat text."""
    tokens = np.full(num_rows * length, pad_id, np.int32)
    labels = np.full(num_rows * length, pad_id, np.int32)
    lines = np.full(num_rows * length, -1, np.int32)
    for i, (start, line) in enumerate(zip(starts, ids, strict=True)):
        end = start + len(line)
        tokens[start] = bos_id
        tokens[start + 1 : end + 1] = line
        labels[start:end] = line
        labels[end] = eos_id
        lines[start : end + 1] = i
    shape = (num_rows, length)
    return TokenRows(
        tokens.reshape(shape),
        labels.reshape(shape),
        (lines >= 0).reshape(shape),
        lines.reshape(shape),
    )


def _check(ids, length: int):
    if length < 1:
        raise InputError("length", length, "must be at least 1")
    if not len(ids):
        raise InputError("ids", [], "must hold at least one line")


def _read(name: str, path: str) -> list[tuple[int, str]]:
    """(number from 1, text) of each line that is not blank."""
    file = paths.expand("dataset", path, given=name)
    if not path or not file.is_file():
        raise InputError("dataset", name, "must be an existing text file")
    lines = []
    # Bytes are split before decoding: str.splitlines would also split at U+2028 and the like.
    for number, line in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            allowed = f"must be UTF-8; line {number} is not (byte {error.start + 1} of it)"
            raise InputError("dataset", name, allowed) from None
        if text.strip():
            lines.append((number, text))
    return lines
