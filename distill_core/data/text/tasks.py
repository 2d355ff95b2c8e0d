"""Examples of text as rows of tokens; whatever the task, the network predicts the next token.

| task | a line | its loss |
|---|---|---|
| `language` | the text | every token |
| `generation` | `field : value ; … =>` and the text | the text |
| `classification` | the text, `<eos>`, and the number of its class | that number |
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from distill_core.config import InputError
from distill_core.data.text.corpus import Example
from distill_core.data.text.lines import Span
from distill_core.data.text.tokenizers import Tokenizer

TASKS = ("language", "generation", "classification")
FIELDS = {"tokens": np.int32, "labels": np.int32, "segments": np.int32, "weights": np.float32}
_ARROW = " => "
_CHUNK = 2**18  # tokens that are laid out at a time


class Line(NamedTuple):
    """One example as n tokens; the labels to predict are these and `<eos>`.

    Attributes:
      text: what the offsets refer to.
      spans: its private stretches.
      ids: int32 [n].
      weights: float32 [n + 1], weights of the loss at each label.
      offsets: int32 [n + 1, 2], the characters of each label; (0, 0) where not in the text.
    """

    text: str
    spans: tuple[Span, ...]
    ids: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray


def encode(example: Example, tokenizer: Tokenizer, task: str) -> Line:
    """One example as the task's line; see the table above."""
    if task == "classification":
        return _labelled(example, tokenizer)
    before = prompt(example) if task == "generation" else ""
    whole = before + example.text
    spans = tuple(
        span._replace(start=span.start + len(before), end=span.end + len(before))
        for span in example.spans
    )
    ids, offsets = tokenizer.encode_with_offsets(whole)
    weights = np.append(offsets[:, 1] > len(before), True).astype(np.float32)
    return Line(whole, spans, ids, weights, np.pad(offsets, ((0, 1), (0, 0))))


def prompt(example: Example) -> str:
    """The fields, which precede the text in `generation`.

    >>> prompt(Example("My name is Ann.", fields={"name": "Ann", "day": "Monday"}))
    'day : Monday ; name : Ann => '
    """
    fields = " ; ".join(f"{name} : {example.fields[name]}" for name in sorted(example.fields))
    return fields + _ARROW


def class_token(tokenizer: Tokenizer, label: int) -> int:
    """The token that stands for a class: its number, one digit."""
    ids = tokenizer.encode(str(label))
    if len(ids) != 1 or label > 9:
        raise InputError("task", "classification", f"takes at most 10 classes, not class {label}")
    return int(ids[0])


def shorten(lines: Sequence[Line], length: int, task: str) -> tuple[list[Line], int]:
    """Lines that fit rows of `length` positions, and how many did not; our choice of what is lost.

    In `classification` a text loses its beginning: its class is asked for at the end. In
    `generation` it loses its end, with `<eos>`, and keeps its fields. In `language` a line stays
    as it is: `to_rows` continues it in the next row.

    Raises:
      InputError: on `length`, if no token of a text would be left.
    """
    found = [shortened(line, length, task) for line in lines]
    return found, sum(new is not line for new, line in zip(found, lines, strict=True))


def shortened(line: Line, length: int, task: str) -> Line:
    """A line that fits a row, the same one if it does already; see `shorten`."""
    surplus = len(line.weights) - length
    if task == "language" or surplus <= 0:
        return line
    at_end = task == "classification"
    needed = 4 if at_end else int(np.argmax(line.weights > 0)) + 2
    if length < needed:
        allowed = f"the line {line.text[:40]!r}… needs {needed} positions, even if it is cut"
        raise InputError("length", length, allowed)
    kept = slice(surplus, None) if at_end else slice(length - 1)
    ids, weights, offsets = line.ids[kept], line.weights[kept], line.offsets[kept]
    if not at_end:  # the position after the last token predicts nothing: the text goes on
        weights, offsets = np.append(weights, np.float32(0)), np.pad(offsets, ((0, 1), (0, 0)))
    return line._replace(ids=ids, weights=weights, offsets=offsets)


def to_rows(lines: Sequence[Line], tokenizer: Tokenizer, length: int):
    """Packs lines into rows of one length, padding rather than cutting a line that fits a row.

    A line of n tokens takes n + 1 positions: inputs `<bos>` x₁ … xₙ, labels x₁ … xₙ `<eos>`. One
    that is longer than a row continues in the next, from the token where it was cut: every label is
    asked for exactly once. No label asks for a token of the next line, but a network that attends
    over a whole row sees the lines before; the segments tell them apart.

    Args:
      lines: from `encode`; of other tasks than `language`, from `shorten`.
      tokenizer: the one that encoded them.
      length: L.

    Returns:
      {"tokens", "labels", "segments": int32 [N, L], "weights": float32 [N, L]}, where `segments` is
      the number of the line at each position, −1 where padded; and `fill`:
      `fill(values of each line's labels, float [n + 1] each) -> float32 [N, L]`, 0 where padded.

    Raises:
      InputError: on `dataset` without lines.
    """
    return _laid_out(lines, tokenizer, length, apart=False)


def line_rows(lines: Sequence[Line], tokenizer: Tokenizer, length: int):
    """One row per line, for differentially private training, which protects rows.

    Args, Returns and Raises as in `to_rows`, but a line that is longer than a row loses its end, in
    `fill` too.
    """
    return _laid_out(lines, tokenizer, length, apart=True)


def chunk_rows(length: int) -> int:
    """How many rows of `length` tokens are laid out, and scored, at a time."""
    return max(1, _CHUNK // length)


def pack(
    lines: Iterable[Mapping[str, np.ndarray]],
    length: int,
    padding: Mapping[str, np.generic],
    *,
    apart: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Lays lines out in rows as they come, see `to_rows`; memory does not grow with their number.

    Args:
      lines: arrays `[n]` by name, of one n; they are laid out alike.
      length: L.
      padding: what stands where no line does, and of which dtype, by the same names.
      apart: whether each line has a row of its own and loses what does not fit.

    Yields:
      arrays [chunk_rows(L), L] by name; the last ones may be shorter.
    """
    size = chunk_rows(length) * length
    chunk, end = _empty(size, padding), 0
    for line in lines:
        needed = len(next(iter(line.values())))
        room = -end % length
        if apart or room < needed <= length:
            end += room
        begin, needed = 0, min(needed, length) if apart else needed
        while begin < needed:
            if end == size:
                yield _in_rows(chunk, end, length)
                chunk, end = _empty(size, padding), 0
            count = min(needed - begin, size - end)
            for name, values in line.items():
                chunk[name][end : end + count] = values[begin : begin + count]
            begin, end = begin + count, end + count
    if end:
        yield _in_rows(chunk, end, length)


def fields_of(number: int, line: Line, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """What `to_rows` lays out of a line of this number."""
    return {
        "tokens": np.append(np.int32(tokenizer.bos_id), line.ids)[: len(line.weights)],
        "labels": np.append(line.ids, np.int32(tokenizer.eos_id))[: len(line.weights)],
        "segments": np.full(len(line.weights), number, np.int32),
        "weights": line.weights,
    }


def padding_of(tokenizer: Tokenizer) -> dict[str, np.generic]:
    """The padding of `fields_of`."""
    values = {"tokens": tokenizer.pad_id, "labels": tokenizer.pad_id, "segments": -1, "weights": 0}
    return {name: kind(values[name]) for name, kind in FIELDS.items()}


def fill(values: Iterable[np.ndarray], length: int, *, apart: bool = False) -> Iterator[np.ndarray]:
    """Values of each line's labels, [n + 1] each, in rows: float32 [chunk_rows(L), L], 0 where
    padded."""
    named = ({"values": value} for value in values)
    for chunk in pack(named, length, {"values": np.float32(0)}, apart=apart):
        yield chunk["values"]


def _empty(size: int, padding: Mapping[str, np.generic]) -> dict[str, np.ndarray]:
    return {name: np.full(size, value) for name, value in padding.items()}


def _in_rows(chunk: Mapping[str, np.ndarray], end: int, length: int) -> dict[str, np.ndarray]:
    count = -(-end // length)
    return {name: values[: count * length].reshape(count, length) for name, values in chunk.items()}


def _laid_out(lines: Sequence[Line], tokenizer: Tokenizer, length: int, *, apart: bool):
    if not lines:
        raise InputError("dataset", "no text", "must hold at least one line")
    each = (fields_of(i, line, tokenizer) for i, line in enumerate(lines))
    chunks = list(pack(each, length, padding_of(tokenizer), apart=apart))
    rows = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in FIELDS}

    def filled(values: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate(list(fill(values, length, apart=apart)))

    return rows, filled


def _labelled(example: Example, tokenizer: Tokenizer) -> Line:
    if example.label is None:
        allowed = "needs labelled text: records, tsv:PATH or jsonl:PATH"
        raise InputError("task", "classification", allowed)
    ids, offsets = tokenizer.encode_with_offsets(example.text)
    answer = [tokenizer.eos_id, class_token(tokenizer, example.label)]
    weights = np.zeros(len(ids) + 3, np.float32)
    weights[-2] = 1.0
    ids = np.concatenate([ids, np.array(answer, np.int32)])
    return Line(example.text, example.spans, ids, weights, np.pad(offsets, ((0, 3), (0, 0))))
