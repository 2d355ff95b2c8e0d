"""Arrays larger than memory: `[N, ...]` in shards of ArrayRecord, a record per row, read by index.

A column is a directory with `00000.array_record`, `00001.array_record`, … and, once it is whole,
`column.json`. A run's rows of text are columns side by side, one for tokens, one for scores, ….
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from array_record.python import array_record_data_source, array_record_module
from etils import epath

from distill_core.checkpoint.integrity import write_atomically

DESCRIPTION = "column.json"
_RECORDS = "group_size:1,uncompressed"  # so that one row is read without its neighbours
_SHARD_BYTES = 2**26


class Column:
    """A whole column; index it with an integer array or a slice for rows in memory.

    Attributes:
      shape: (N, ...).
      dtype: of its entries.
      about: what its writer said of it.
    """

    def __init__(self, folder: epath.PathLike):
        """Opens a column; FileNotFoundError if it is not whole."""
        self._folder = epath.Path(folder)
        known = json.loads((self._folder / DESCRIPTION).read_text())
        self.shape, self.dtype = tuple(known["shape"]), np.dtype(known["dtype"])
        self.about: Mapping[str, Any] = known["about"]
        self._shards = [str(self._folder / _shard(i)) for i in range(known["shards"])]
        self._source: Any = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        index = np.asarray(index)
        if index.size and not (index.min() >= 0 and index.max() < len(self)):
            raise IndexError(f"rows {index.min()} to {index.max()} of {len(self)}")
        if self._source is None:  # opened on use, in each process
            self._source = array_record_data_source.ArrayRecordDataSource(self._shards)
        records = self._source.__getitems__(index.ravel().tolist()) if index.size else []
        rows = np.frombuffer(b"".join(records), self.dtype)
        return rows.reshape(*index.shape, *self.shape[1:])

    def __reduce__(self):
        return Column, (self._folder,)


class Writer:
    """Writes a column shard by shard; a new writer goes on after the last whole shard of an old.

    Attributes:
      start: rows that earlier writers left in whole shards: `append` goes on with the next.
    """

    def __init__(self, folder: epath.PathLike, row_shape: tuple[int, ...], dtype: Any):
        """`row_shape` is the shape of one row, and so many bytes decide the length of a shard."""
        self.folder, self.row_shape, self.dtype = epath.Path(folder), row_shape, np.dtype(dtype)
        self.folder.mkdir(parents=True, exist_ok=True)
        row = max(1, math.prod(row_shape) * self.dtype.itemsize)
        self._rows_per_shard = max(1, _SHARD_BYTES // row)
        self._shards = 0
        while self._is_full(self.folder / _shard(self._shards)):
            self._shards += 1
        self.start = self.count = self._shards * self._rows_per_shard
        self._open: Any = None

    def append(self, rows: np.ndarray):
        """Adds rows `[n, ...]`."""
        rows = np.ascontiguousarray(rows, self.dtype)
        if rows.shape[1:] != self.row_shape:
            raise ValueError(f"rows: got shape {rows.shape}; must be [n, {self.row_shape}]")
        for row in rows:
            if self._open is None:
                path = str(self._temporary())
                self._open = array_record_module.ArrayRecordWriter(path, _RECORDS)
            self._open.write(row.tobytes())
            self.count += 1
            if self.count % self._rows_per_shard == 0:
                self._close()

    def finish(self, about: Mapping[str, Any]) -> Column:
        """Completes the column; `about` is what its readers are told, as JSON."""
        self._close()
        known = {
            "shape": [self.count, *self.row_shape],
            "dtype": self.dtype.name,
            "shards": self._shards,
            "about": dict(about),
        }
        write_atomically(self.folder / DESCRIPTION, json.dumps(known, indent=1))
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
            self._open.close()
            self._temporary().replace(self.folder / _shard(self._shards))
            self._open, self._shards = None, self._shards + 1


def _shard(index: int) -> str:
    return f"{index:05d}.array_record"
