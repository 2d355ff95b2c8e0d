"""Examples of text as rows of tokens; whatever the task, the network predicts the next token.

| task | a line | its loss |
|---|---|---|
| `language` | the text | every token |
| `generation` | `field : value ; … =>` and the text | the text |
| `classification` | the text, `<eos>`, and the number of its class | that number |
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from distill_core.config import InputError
from distill_core.data.text.corpus import Example
from distill_core.data.text.lines import Span
from distill_core.data.text.tokenizers import Tokenizer

TASKS = ("language", "generation", "classification")
_ARROW = " => "


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
    found, count = list(lines), 0
    for i, line in enumerate(lines if task != "language" else ()):
        surplus = len(line.weights) - length
        if surplus <= 0:
            continue
        at_end = task == "classification"
        needed = 4 if at_end else int(np.argmax(line.weights > 0)) + 2
        if length < needed:
            allowed = f"the line {line.text[:40]!r}… needs {needed} positions, even if it is cut"
            raise InputError("length", length, allowed)
        kept = slice(surplus, None) if at_end else slice(length - 1)
        ids, weights, offsets = line.ids[kept], line.weights[kept], line.offsets[kept]
        if not at_end:  # the position after the last token predicts nothing: the text goes on
            weights, offsets = np.append(weights, np.float32(0)), np.pad(offsets, ((0, 1), (0, 0)))
        found[i] = line._replace(ids=ids, weights=weights, offsets=offsets)
        count += 1
    return found, count


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
    starts, end = [], 0
    for line in lines:
        room, needed = -end % length, len(line.weights)
        starts.append(end + room if room < needed <= length else end)
        end = starts[-1] + needed
    kept = [len(line.weights) for line in lines]
    return _laid_out(lines, tokenizer, (-(-end // length), length), starts, kept)


def line_rows(lines: Sequence[Line], tokenizer: Tokenizer, length: int):
    """One row per line, for differentially private training, which protects rows.

    Args, Returns and Raises as in `to_rows`, but a line that is longer than a row loses its end, in
    `fill` too.
    """
    starts = [i * length for i in range(len(lines))]
    kept = [min(len(line.weights), length) for line in lines]
    return _laid_out(lines, tokenizer, (len(lines), length), starts, kept)


def _laid_out(
    lines: Sequence[Line],
    tokenizer: Tokenizer,
    shape: tuple[int, int],
    starts: Sequence[int],
    kept: Sequence[int],
):
    """The first `kept` positions of each line, written from `starts` of the flattened rows."""
    if not lines:
        raise InputError("dataset", "no text", "must hold at least one line")
    size = shape[0] * shape[1]
    tokens, labels = (np.full(size, tokenizer.pad_id, np.int32) for _ in range(2))
    segments = np.full(size, -1, np.int32)
    places = [slice(start, start + n) for start, n in zip(starts, kept, strict=True)]
    for i, (line, place, n) in enumerate(zip(lines, places, kept, strict=True)):
        tokens[place] = [tokenizer.bos_id, *line.ids][:n]
        labels[place] = [*line.ids, tokenizer.eos_id][:n]
        segments[place] = i

    def fill(values: Sequence[np.ndarray]) -> np.ndarray:
        filled = np.zeros(size, np.float32)
        for value, place, n in zip(values, places, kept, strict=True):
            filled[place] = value[:n]
        return filled.reshape(shape)

    arrays = {
        "tokens": tokens.reshape(shape),
        "labels": labels.reshape(shape),
        "segments": segments.reshape(shape),
        "weights": fill([line.weights for line in lines]),
    }
    return arrays, fill


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
