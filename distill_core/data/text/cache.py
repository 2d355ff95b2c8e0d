"""Rows of tokens on disk: written once for each content and tokenizer, and read by index.

`<text_cache>/<digest>/private/` holds the column `rows` and what is known of them beside it, such
as privacy scores. The digest is of everything that decides the rows, so that a file that changed
gets a directory of its own. Nothing is ever removed: delete what is not needed any more.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from distill_core.checkpoint.integrity import write_atomically
from distill_core.config import InputError
from distill_core.data import columns
from distill_core.data.text import tasks
from distill_core.data.text.corpus import Example, InFiles
from distill_core.data.text.tasks import Line
from distill_core.data.text.tokenizers import Tokenizer
from distill_core.runtime import parallel, progress, strict_json

_FORMAT = 1  # of the rows: a change makes all of them anew


@dataclasses.dataclass(frozen=True)
class Lines(Sequence[Line]):
    """The lines of text that stays in files, encoded anew at each pass.

    Attributes:
      examples: the text.
      tokenizer: what encodes it.
      task: of `tasks.TASKS`.
      length: L, of the rows that each line has to fit (`tasks.shortened`).
    """

    examples: InFiles
    tokenizer: Tokenizer
    task: str
    length: int

    @property
    def name(self) -> str:
        """Of everything that decides the rows."""
        return digest(
            text=self.examples.content,
            tokenizer=[self.tokenizer.to_json(), self.tokenizer.special_tokens],
            task=self.task,
            length=self.length,
        )

    def encode(self, example: Example) -> Line:
        """One example as a line that fits a row."""
        line = tasks.encode(example, self.tokenizer, self.task)
        return tasks.shortened(line, self.length, self.task)

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Line]:
        return map(self.encode, self.examples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.encode(example) for example in self.examples[index]]
        return self.encode(self.examples[index])


def digest(**decides: Any) -> str:
    """The name of what these JSON values decide."""
    text = strict_json.encode({"format": _FORMAT, **decides}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def tokenizer(
    place: epath.PathLike, make: Callable[[], Tokenizer], made_from: str, **decides: Any
) -> Tokenizer:
    """A tokenizer trained on text that stays in files: made once, and then read from below `place`.

    `decides` is all that decides it, as JSON; `made_from` as for `Tokenizer`.
    """
    path = epath.Path(place) / digest(**decides) / "private" / "tokenizer.json"
    if path.exists():
        return Tokenizer.from_json(path.read_text(), made_from)
    made = make()
    if parallel.is_main():
        columns.make_private(path.parent)
        write_atomically(path, made.to_json())
    return made


def tokenised(
    place: epath.PathLike, lines: Lines, *, of: str
) -> tuple[Mapping[str, columns.Field], epath.Path]:
    """The rows of `tasks.to_rows` and their directory; tokenised and laid out first if need be.

    Process 0 does so. Whoever was killed at it goes on after the last whole shard.

    Args:
      place: `text_cache`.
      lines: the text.
      of: which text it is, for the progress shown.

    Raises:
      InputError: on the text; on `text_cache`, if this process does not see what process 0 wrote.
    """
    folder = epath.Path(place) / lines.name / "private"
    length, total = lines.length, len(lines)

    def write(writer: columns.Writer) -> Mapping[str, Any]:
        first, done = _reached(writer)
        left = itertools.islice(lines.examples, first, None)
        shown = progress.watched(left, f"tokenising {of} text", start=first, total=total)
        fields = _from(first, done, map(lines.encode, shown), lines.tokenizer)
        for chunk in tasks.pack(fields, length, tasks.padding_of(lines.tokenizer)):
            writer.append(_records(chunk, writer.dtype))
        return {"lines": total}

    return _once(folder / "rows", _dtype(tasks.FIELDS, length), write).fields(), folder


def beside(
    folder: epath.Path,
    name: str,
    fields: Mapping[str, Any],
    length: int,
    chunks: Callable[[], Iterable[Mapping[str, np.ndarray]]],
) -> Mapping[str, columns.Field]:
    """Further values of the rows in a directory, `[N, L]` each, made by process 0 if need be.

    Args:
      folder: the rows'.
      name: of what decides the values, see `digest`.
      fields: name -> dtype.
      length: L.
      chunks: gives the values of all rows in order, some rows at a time.
    """

    def write(writer: columns.Writer) -> Mapping[str, Any]:
        for chunk in _behind(chunks(), writer.start):
            writer.append(_records(chunk, writer.dtype))
        return {}

    return _once(folder / name, _dtype(fields, length), write).fields()


def _once(folder: epath.Path, dtype: np.dtype, write: Callable) -> columns.Column:
    try:
        return columns.once(folder, (), dtype, write)
    except FileNotFoundError:
        allowed = "must be a directory that all processes see: the first one wrote the text there"
        raise InputError("text_cache", str(folder), allowed) from None


def _dtype(fields: Mapping[str, Any], length: int) -> np.dtype:
    return np.dtype([(name, np.dtype(kind).str, (length,)) for name, kind in fields.items()])


def _records(chunk: Mapping[str, np.ndarray], dtype: np.dtype) -> np.ndarray:
    records = np.empty(len(next(iter(chunk.values()))), dtype)
    for name, values in chunk.items():
        records[name] = values
    return records


def _reached(writer: columns.Writer) -> tuple[int, int]:
    """(line to go on with, how many of its labels are written), after the last whole shard."""
    last, done = -1, 0
    for row in writer.last_rows():
        segments = row["segments"]
        if last < 0:
            last = int(segments.max())
        count = int(np.sum(segments == last))
        done += count
        if segments[0] != last or not count:
            break
    return max(last, 0), done


def _from(
    first: int, done: int, lines: Iterable[Line], tokenizer: Tokenizer
) -> Iterator[Mapping[str, np.ndarray]]:
    for number, line in enumerate(lines, first):
        fields = tasks.fields_of(number, line, tokenizer)
        if number == first and done:
            fields = {name: values[done:] for name, values in fields.items()}
            if not len(fields["tokens"]):
                continue
        yield fields


def _behind(
    chunks: Iterable[Mapping[str, np.ndarray]], start: int
) -> Iterator[Mapping[str, np.ndarray]]:
    """The chunks without the first `start` rows."""
    for chunk in chunks:
        count = len(next(iter(chunk.values())))
        if start < count:
            yield {name: values[start:] for name, values in chunk.items()} if start else chunk
        start = max(start - count, 0)
