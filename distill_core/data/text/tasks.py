"""Examples of text as token rows for one network, whatever the task: it predicts the next token.

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
from distill_core.data.text import lines as text
from distill_core.data.text.corpus import Example
from distill_core.data.text.tokenizers import Tokenizer

TASKS = ("language", "generation", "classification")
_ARROW = " => "


class Line(NamedTuple):
    """One example in tokens, labels being what is predicted: n tokens and `<eos>`.

    Attributes:
      text: what the offsets are of.
      spans: private stretches of it, in characters.
      ids: int32 [n].
      weights: float32 [n + 1], of the loss at each label.
      offsets: int32 [n + 1, 2], the characters of each label; (0, 0) for what is not in the text.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    ids: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray


def encode(example: Example, tokenizer: Tokenizer, task: str) -> Line:
    """One example as the task's line; see the table above.

    Raises:
      InputError: on `task`, if the example has no label or the label no digit.
    """
    if task == "classification":
        return _labelled(example, tokenizer)
    before = prompt(example) if task == "generation" else ""
    whole = before + example.text
    spans = tuple((start + len(before), end + len(before)) for start, end in example.spans)
    ids, offsets = tokenizer.encode_with_offsets(whole)
    weights = np.append(offsets[:, 1] > len(before), True).astype(np.float32)
    return Line(whole, spans, ids, weights, _with_end(offsets, 1))


def prompt(example: Example) -> str:
    """What stands before the text in `generation`.

    >>> prompt(Example("My name is Ann.", fields={"name": "Ann", "day": "Monday"}))
    'day : Monday ; name : Ann => '
    """
    fields = " ; ".join(f"{name} : {example.fields[name]}" for name in sorted(example.fields))
    return fields + _ARROW


def class_token(tokenizer: Tokenizer, label: int) -> int:
    """The token that stands for a class: its number, one digit.

    Raises:
      InputError: on `task`, if the number has several digits.
    """
    ids = tokenizer.encode(str(label))
    if len(ids) != 1 or label > 9:
        raise InputError("task", "classification", f"takes at most 10 classes, not class {label}")
    return int(ids[0])


def to_rows(lines: Sequence[Line], tokenizer: Tokenizer, length: int, *, cut: bool):
    """Lines in rows of one length.

    Args:
      lines: of `encode`.
      tokenizer: theirs.
      length: L.
      cut: whether a line longer than a row goes on in the next; else it is refused.

    Returns:
      {"tokens", "labels", "segments": int32 [N, L], "weights": float32 [N, L]} and `fill`:
      `fill(values of each line's labels, float [n + 1] each) -> float32 [N, L]`, 0 where padded.

    Raises:
      InputError: on `length`, if a line is longer and must not be cut; on `dataset` without lines.
    """
    _check(lines, length, cut)
    rows = text.pack(
        [line.ids for line in lines],
        length,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )

    def fill(values: Sequence[np.ndarray]) -> np.ndarray:
        filled = np.zeros(rows.mask.shape, np.float32)
        filled[rows.mask] = np.concatenate(values)
        return filled

    arrays = {
        "tokens": rows.tokens,
        "labels": rows.labels,
        "segments": rows.lines,
        "weights": fill([line.weights for line in lines]),
    }
    return arrays, fill


def line_rows(lines: Sequence[Line], tokenizer: Tokenizer, length: int, *, cut: bool):
    """A row for each line, in their order, and nothing of another line in it.

    For differentially private training, where a row is what is protected.

    Args:
      lines: of `encode`.
      tokenizer: theirs.
      length: L.
      cut: whether a line longer than a row loses its end; else it is refused.

    Returns:
      As `to_rows`; `fill` leaves out what the rows leave out. Raises what it raises.
    """
    _check(lines, length, cut)
    shape = (len(lines), length)
    tokens, labels = (np.full(shape, tokenizer.pad_id, np.int32) for _ in range(2))
    kept = np.minimum([len(line.weights) for line in lines], length)
    for i, (line, n) in enumerate(zip(lines, kept, strict=True)):
        tokens[i, :n] = [tokenizer.bos_id, *line.ids[: n - 1]]
        labels[i, :n] = [*line.ids, tokenizer.eos_id][:n]
    mask = np.arange(length) < kept[:, None]

    def fill(values: Sequence[np.ndarray]) -> np.ndarray:
        filled = np.zeros(shape, np.float32)
        cut = [value[:n] for value, n in zip(values, kept, strict=True)]
        filled[mask] = np.concatenate(cut)
        return filled

    arrays = {
        "tokens": tokens,
        "labels": labels,
        "segments": np.where(mask, np.arange(len(lines))[:, None], -1).astype(np.int32),
        "weights": fill([line.weights for line in lines]),
    }
    return arrays, fill


def _check(lines: Sequence[Line], length: int, cut: bool):
    if not lines:
        raise InputError("dataset", "no text", "must hold at least one line")
    if not cut:
        longest = max(range(len(lines)), key=lambda i: len(lines[i].ids))
        needed = len(lines[longest].ids) + 1
        if needed > length:
            shown = lines[longest].text[:40]
            allowed = f"the line {shown!r}… needs {needed} positions; raise it, or cut the line"
            raise InputError("length", length, allowed)


def _labelled(example: Example, tokenizer: Tokenizer) -> Line:
    if example.label is None:
        raise InputError("task", "classification", "needs labelled text: records or tsv:PATH")
    ids, offsets = tokenizer.encode_with_offsets(example.text)
    answer = [tokenizer.eos_id, class_token(tokenizer, example.label)]
    weights = np.zeros(len(ids) + 3, np.float32)
    weights[-2] = 1.0
    ids = np.concatenate([ids, np.array(answer, np.int32)])
    return Line(example.text, example.spans, ids, weights, _with_end(offsets, 3))


def _with_end(offsets: np.ndarray, num: int) -> np.ndarray:
    return np.concatenate([offsets, np.zeros((num, 2), np.int32)])
