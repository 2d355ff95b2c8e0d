"""Large files of text: what is in them, found once and remembered until they change."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from distill_core.checkpoint.integrity import write_atomically
from distill_core.config import InputError
from distill_core.data import columns
from distill_core.data.text import lines
from distill_core.runtime import parallel, paths, strict_json

_UNPACKED = 4  # a packed file's text is taken to be so many times as large
_BLOCK = 2**20
_CHANGED = "changed while it was read; start again"


@dataclasses.dataclass(frozen=True)
class File:
    """A file of text.

    Attributes:
      path: where it is.
      digest: SHA-256 of its bytes.
      summary: what it holds.
      state: its size, its times of modification and change, and its number on the disk.
    """

    path: str
    digest: str
    summary: lines.Summary
    state: tuple[int, ...]

    def check_unchanged(self, name: str):
        """Refuses a file that changed since it was looked at: InputError on `dataset`."""
        if _state(epath.Path(self.path)) != self.state:
            raise InputError("dataset", name, _CHANGED)


def folder(given: str | None) -> epath.Path:
    """The directory that tokenised text is kept in: the one given, or in the user's cache.

    Raises:
      InputError: on `text_cache`, if it cannot be written to or is not on a disk.
    """
    try:
        place = paths.folder_to_write("text_cache", given or paths.user_cache() / "text")
    except RuntimeError:  # no home
        raise InputError("text_cache", given, "must be a directory: there is no home") from None
    if "://" in str(place):
        raise InputError("text_cache", given, "must be a local directory, whose files can be read")
    return place


def size(path: str) -> int:
    """Bytes of text in a file, about."""
    try:
        found = os.stat(path).st_size if "://" not in path else epath.Path(path).stat().length
    except OSError:  # reading it says what is wrong
        return 0
    return found * (_UNPACKED if path.endswith(".gz") else 1)


def look_at(kind: str, path: str, classes: Sequence[str] | None, cache: epath.Path) -> File:
    """Reads a file to its end, unless it is as it was when that was last done.

    Args:
      kind, path, classes: as for `lines.stream`.
      cache: what is found is remembered below its `private/`. A file has changed if its size or
        one of its times has.

    Raises:
      InputError: on `dataset`, as `lines.stream` and `lines.summary`.
    """
    file = paths.expand("dataset", path, given=f"{kind}:{path}")
    state = _state(file)
    name = hashlib.sha256(f"{kind}:{file}:{bool(classes)}".encode()).hexdigest()[:32]
    record = cache / "private" / "files" / f"{name}.json"
    known = _remembered(record)
    if state is not None and known.get("state") == list(state):
        count, labels, kinds = known["summary"]
        return File(path, known["digest"], lines.Summary(count, labels, tuple(kinds)), state)
    summary = lines.summary(kind, path, lines.stream(kind, path, classes=classes), classes)
    digest = _digest(file)
    if state is None or _state(file) != state:
        raise InputError("dataset", f"{kind}:{path}", _CHANGED)
    if parallel.is_main():
        columns.make_private(record.parent)
        found = {"state": state, "digest": digest, "summary": list(summary)}
        write_atomically(record, strict_json.encode(found), mode=0o600)
    return File(path, digest, summary, state)


def _state(file: epath.Path) -> tuple[int, ...] | None:
    """What tells that a file is as it was; None without one, which reading it tells."""
    try:
        if "://" in str(file):
            found = file.stat()
            return found.length, int(found.mtime)
        local = os.stat(file)
        return local.st_size, local.st_mtime_ns, local.st_ctime_ns, local.st_ino
    except OSError:
        return None


def _remembered(record: epath.Path) -> Mapping[str, Any]:
    try:
        return json.loads(record.read_text())
    except (OSError, ValueError):
        return {}


def _digest(file: epath.Path) -> str:
    sha = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()
