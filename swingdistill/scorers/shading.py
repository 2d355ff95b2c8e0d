"""Lines of a text on the console, every token shaded by its privacy score."""

import itertools

import numpy as np
from rich.console import Console
from rich.text import Text

from swingdistill.private_text import Encoded

_MOST_PRIVATE, _FIRST = 5, 3  # lines shown
_LONGEST, _BEFORE = 400, 80  # characters shown of a line, and of these before its private tokens


def show(text: Encoded, scores: np.ndarray, title: str, *, console: Console | None = None):
    """Prints the lines with the most private tokens, and the first few.

    Private tokens have a red background on a terminal, else they stand in brackets, with their
    score where it is below 1: `my id is [281265]`, `in [Bern|0.85]`.

    Args:
      text: the lines.
      scores: float [N, L] in [0, 1], as laid out in its rows.
      title: printed first.
      console: where to; by default standard output.
    """
    console = console or Console(soft_wrap=True, highlight=False, force_jupyter=False)
    where = text.rows["segments"]
    of_line = [scores[where == i] for i in range(len(text.lines))]
    totals = np.array([values.sum() for values in of_line])
    most = [int(i) for i in np.argsort(-totals, kind="stable")[:_MOST_PRIVATE] if totals[i]]
    chosen = list(dict.fromkeys([*most, *range(min(_FIRST, len(text.lines)))]))
    console.print(Text(f"{title}: {len(most)} of the most private lines and the first {_FIRST}"))
    for i in chosen:
        line = text.lines[i]
        offsets = line.offsets[: len(of_line[i])]
        console.print(_shaded(line.text, offsets, of_line[i], console.is_terminal))


def _shaded(text: str, offsets: np.ndarray, scores: np.ndarray, colours: bool) -> Text:
    by_character = np.zeros(len(text))
    for (start, end), score in zip(offsets, scores, strict=True):
        by_character[start:end] = np.maximum(by_character[start:end], np.round(score, 2))
    for i in np.flatnonzero(by_character[1:-1] == 0) + 1:  # a separator between private tokens
        if by_character[i - 1] == by_character[i + 1] and not text[i].isalnum():
            by_character[i] = by_character[i - 1]
    private = np.flatnonzero(by_character)
    first = max(int(private[0]) - _BEFORE, 0) if len(private) else 0
    shown = range(first, min(first + _LONGEST, len(text)))
    made = Text("… " if first else "  ")
    for score, places in itertools.groupby(shown, key=lambda i: by_character[i]):
        part = "".join(text[i] for i in places)
        if not score:
            made.append(part)
        elif colours:
            pale = int(255 * (1 - score) * 0.8)
            made.append(part, style=f"black on rgb(255,{pale},{pale})")
        else:
            made.append(f"[{part}]" if score == 1 else f"[{part}|{score:.2f}]")
    return made.append(" …") if shown.stop < len(text) else made
