"""Arrays larger than memory: `[N, ...]` in shards of ArrayRecord, a record per row, read by index.

A column is a directory with `00000.array_record`, `00001.array_record`, … and, once it is whole,
`column.json`. A run's rows of text are columns side by side: one whose rows hold several fields
(tokens, labels, …), which one read fetches together, one for scores, ….
"""

import contextlib
import errno
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from etils import epath

from distill_core.checkpoint.integrity import write_atomically
from distill_core.runtime import parallel, strict_json

DESCRIPTION = "column.json"
_RECORDS = "group_size:1,uncompressed"  # so that one row is read without its neighbours
_READING = "readahead_buffer_size:0,max_parallelism:0"  # threads cost more than a batch's reads
_SHARD_BYTES = 2**24  # what an interrupted writer may lose
_OPEN = 400  # shards of a column, of the thousand files or so that a process may open


class Column:
    """A whole column; index it with an integer array or a slice for rows in memory.

    Attributes:
      shape: (N, ...).
      dtype: of its entries; a structured one has fields.
      about: what its writer said of it.
    """

    def __init__(self, folder: epath.PathLike):
        """Opens a column; FileNotFoundError if it is not whole."""
        self._folder = epath.Path(folder)
        known = json.loads((self._folder / DESCRIPTION).read_text())
        self.shape, self.dtype = tuple(known["shape"]), _dtype(known["dtype"])
        self.about: Mapping[str, Any] = known["about"]
        self._rows_per_shard = known["rows_per_shard"]
        self._bytes = math.prod(self.shape[1:]) * self.dtype.itemsize  # of a row
        self._readers: dict[int, Any] = {}
        self._last: tuple[bytes, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        index = np.asarray(index, np.int64)
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"rows {index.min()} to {index.max()} of {len(self)}")
        return self._read(index.ravel()).reshape(*index.shape, *self.shape[1:])

    def fields(self) -> "dict[str, Field]":
        """The fields of a structured column, by name."""
        return {name: Field(self, name) for name in self.dtype.names or ()}

    def __reduce__(self):
        return Column, (self._folder,)

    def _read(self, index: np.ndarray) -> np.ndarray:
        key, last = index.tobytes(), self._last
        if last is not None and last[0] == key:  # the other fields of the same rows
            return last[1]
        shards, records = index // self._rows_per_shard, [b""] * len(index)
        for shard in np.unique(shards).tolist():
            mine = np.flatnonzero(shards == shard)
            asked = (index[mine] - shard * self._rows_per_shard).tolist()
            with _telling(self._folder):
                read = self._reader(shard).read(asked)
                if any(len(record) != self._bytes for record in read):
                    raise RuntimeError("a record was cut short")
            for place, record in zip(mine, read, strict=True):
                records[place] = record
        found = np.frombuffer(b"".join(records), self.dtype)
        self._last = key, found
        return found

    def _reader(self, shard: int) -> Any:
        if shard not in self._readers:  # opened on use, in each process
            if len(self._readers) >= _OPEN:
                self._readers.pop(next(iter(self._readers))).close()
            path = str(self._folder / _shard(shard))
            self._readers[shard] = array_record_module.ArrayRecordReader(path, _READING)
        return self._readers[shard]


class Field:
    """One field of a structured column, indexed like the column: an array `[N, ...]`."""

    def __init__(self, column: Column, name: str):
        assert column.dtype.names is not None
        kind = column.dtype[name]
        self._column, self._name = column, name
        self.shape, self.dtype = (*column.shape, *kind.shape), kind.base

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._column[index][self._name]


class Derived:
    """An array `[N, ...]` that is computed of the rows asked for.

    Attributes:
      shape: as that of the first array it is made of.
    """

    def __init__(self, function: Callable[..., np.ndarray], *arrays: Any):
        """`function` takes the same rows of each array and treats each row by itself."""
        self._function, self._arrays = function, arrays
        self.shape = arrays[0].shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._function(*(array[index] for array in self._arrays))


def in_chunks(rows: Mapping[str, Any], names: Iterable[str], size: int) -> Iterator[dict[str, Any]]:
    """Some of the arrays `[N, ...]` by name, `size` rows at a time."""
    names = tuple(names)
    for start in range(0, len(rows[names[0]]), size):
        yield {name: rows[name][start : start + size] for name in names}


def derived(function: Callable[..., np.ndarray], *arrays: Any) -> Any:
    """`function` of arrays that are in memory, or a `Derived` if one is not."""
    in_memory = all(isinstance(array, np.ndarray) for array in arrays)
    return function(*arrays) if in_memory else Derived(function, *arrays)


class Writer:
    """Writes a column shard by shard; a new writer goes on after the last whole shard of an old.

    Attributes:
      start: rows that earlier writers left in whole shards: `append` goes on with the next.
      appended: called after each `append`.
    """

    def __init__(self, folder: epath.PathLike, row_shape: tuple[int, ...], dtype: Any):
        """`row_shape` is the shape of one row, and so many bytes decide the length of a shard."""
        self.folder, self.row_shape, self.dtype = epath.Path(folder), row_shape, np.dtype(dtype)
        make_private(self.folder)
        row = max(1, math.prod(row_shape) * self.dtype.itemsize)
        self._rows_per_shard = max(1, _SHARD_BYTES // row)
        self._shards = 0
        while self._is_full(self.folder / _shard(self._shards)):
            self._shards += 1
        self.start = self.count = self._shards * self._rows_per_shard
        self.appended: Callable[[], Any] = lambda: None
        self._open: Any = None

    def append(self, rows: np.ndarray):
        """Adds rows `[n, ...]`."""
        rows = np.ascontiguousarray(rows, self.dtype)
        if rows.shape[1:] != self.row_shape:
            raise ValueError(f"rows: got shape {rows.shape}; must be [n, {self.row_shape}]")
        for row in rows:
            with _telling(self.folder):
                if self._open is None:
                    path = str(self._temporary())
                    self._open = array_record_module.ArrayRecordWriter(path, _RECORDS)
                self._open.write(row.tobytes())
            self.count += 1
            if self.count % self._rows_per_shard == 0:
                self._close()
        self.appended()

    def last_rows(self) -> Iterator[np.ndarray]:
        """The rows that earlier writers left, from the last one backwards."""
        for shard in reversed(range(self.start // self._rows_per_shard)):
            path = str(self.folder / _shard(shard))
            reader = array_record_module.ArrayRecordReader(path, _READING)
            for i in reversed(range(self._rows_per_shard)):
                row = np.frombuffer(reader.read([i])[0], self.dtype)
                yield row.reshape(self.row_shape)[()]
            reader.close()

    def finish(self, about: Mapping[str, Any]) -> Column:
        """Completes the column; `about` is what its readers are told, as JSON."""
        self._close()
        known = {
            "shape": [self.count, *self.row_shape],
            "dtype": self.dtype.descr if self.dtype.names else self.dtype.name,
            "rows_per_shard": self._rows_per_shard,
            "about": dict(about),
        }
        write_atomically(self.folder / DESCRIPTION, strict_json.encode(known))
        return Column(self.folder)

    def _is_full(self, path: epath.Path) -> bool:
        if not path.exists():
            return False
        reader = array_record_module.ArrayRecordReader(str(path))
        found = reader.num_records()
        reader.close()
        return found == self._rows_per_shard  # else the column ended there, or was about to

    def _temporary(self) -> epath.Path:
        return self.folder / f".{_shard(self._shards)}.tmp"

    def _close(self):
        if self._open is not None:
            with _telling(self.folder):
                self._open.close()
            self._temporary().replace(self.folder / _shard(self._shards))
            self._open, self._shards = None, self._shards + 1


@contextlib.contextmanager
def _telling(folder: epath.Path) -> Iterator[None]:
    """Raises what ArrayRecord has to say of a file as an OSError, which binaries tell in a line."""
    try:
        yield
    except RuntimeError as error:
        full = "No space left" in str(error)
        code = errno.ENOSPC if full else errno.EIO
        reason = os.strerror(code) if full else "is damaged; delete it, and it is written again"
        if full:
            for unfinished in folder.glob(".*.tmp"):
                unfinished.unlink(missing_ok=True)
        raise OSError(code, reason, str(folder)) from None


def make_private(folder: epath.PathLike):
    """Makes a directory and those above it that are missing, for their owner alone."""
    folder = epath.Path(folder)
    if not folder.exists():
        make_private(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)


@contextlib.contextmanager
def locked(folder: epath.PathLike) -> Iterator[None]:
    """Waits until no other run on this machine writes below a folder, and makes it, mode 0700."""
    folder = epath.Path(folder)
    make_private(folder)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def once(
    folder: epath.PathLike,
    row_shape: tuple[int, ...],
    dtype: Any,
    write: Callable[[Any], Mapping[str, Any]],
    *,
    together: bool = False,
) -> Column:
    """The column in a folder, written first if it is not whole.

    Process 0 writes, from where an interrupted one stopped, and the others wait. `write(writer)`
    appends the rows from `writer.start` on and returns what readers are told. With `together` all
    processes call it, each with the whole rows, as they compute them with one another; what those
    other than process 0 append goes nowhere.

    Raises:
      FileNotFoundError: another process does not see what process 0 wrote.
      InputError: on `processes`: another process failed, or has another text.
    """
    folder, is_main = epath.Path(folder), parallel.is_main()
    which = f"{folder.parent.parent.name}/{folder.name}"
    parallel.roll_call({"column": which})
    with locked(folder.parent) if is_main else contextlib.nullcontext():
        if parallel.from_main(np.array(not is_whole(folder))):
            writer = Writer(folder, row_shape, dtype) if is_main else _Listener()
            if together:
                writer.start = int(parallel.from_main(np.array(writer.start)))
                _complete(writer, write)
            else:
                _complete_alone(writer, write)
    parallel.roll_call({"column": which, "whole": True})  # if process 0 failed, all learn it here
    return Column(folder)


def _complete(writer: Any, write: Callable[[Any], Mapping[str, Any]]):
    writer.finish(write(writer))


def _complete_alone(writer: Any, write: Callable[[Any], Mapping[str, Any]]):
    """Process 0 writes; with each chunk it tells the others, which would not wait for hours."""
    if not parallel.is_main():
        while not parallel.from_main(np.array(False)):
            pass
        return
    writer.appended = lambda: parallel.from_main(np.array(False))
    try:
        _complete(writer, write)
    finally:
        parallel.from_main(np.array(True))


class _Listener:
    """Stands for a `Writer` in the processes that do not write."""

    start = 0

    def append(self, rows: np.ndarray):
        del rows

    def finish(self, about: Mapping[str, Any]):
        del about


def is_whole(folder: epath.PathLike) -> bool:
    """Whether all of a column is written."""
    return (epath.Path(folder) / DESCRIPTION).exists()


def _shard(index: int) -> str:
    return f"{index:05d}.array_record"


def _dtype(described: Any) -> np.dtype:
    if isinstance(described, str):
        return np.dtype(described)
    return np.dtype([(name, kind, tuple(shape)) for name, kind, shape in described])
