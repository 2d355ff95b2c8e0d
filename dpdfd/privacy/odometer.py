"""A teacher's odometer: the account of all conversions charged for asking it, which compose.

Answers, a mean of parameters and moments of the data are bought alike.
Ten conversions at ε = 1 are ε = 3.6 together, and no ledger of one of them can tell. So
`private/odometer/` in the teacher's workdir holds one file per conversion, with its random id, what
it may release at most, and when it began. A file is written atomically, under a lock, before the
teacher is asked, and never changed: a resumed conversion is charged once, and one that crashed
stays charged.

It does not see copies of the teacher or other teachers of the same records, which keep accounts of
their own. Conversions without a mechanism, or whose noise has a given seed, claim nothing and are
not counted. Beside a single file (`.safetensors`, or a checkpoint outside a workdir) the account is
`private/<name>.odometer/`.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator

from etils import epath

from distill_core import checkpoint
from distill_core.config import InputError
from distill_core.privacy import noise
from distill_core.privacy.ledger import Entry, read_entry


def folder(teacher: epath.PathLike) -> epath.Path:
    """Where the account of a teacher lies, whichever path leads to it.

    `teacher` is a workdir, its checkpoints or one of them, or a file of weights; raises InputError
    where there is no such checkpoint.
    """
    path = epath.Path(teacher)
    if "://" not in str(path):
        path = epath.Path(os.path.realpath(path))
    if path.suffix != ".safetensors":
        path, _ = checkpoint.find(path)
        if path.parent.name == checkpoint.FOLDER:
            return path.parent.parent / noise.FOLDER / "odometer"
    return path.parent / noise.FOLDER / f"{path.name}.odometer"


def check(teacher: epath.PathLike):
    """Refuses a teacher whose account cannot be written; raises InputError on `teacher`."""
    where = there = folder(teacher)
    if "://" in str(where):
        return
    while not there.exists():
        there = there.parent
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise _refusal(teacher, where, "cannot be written")


def charge(teacher: epath.PathLike, conversion: str, entry: Entry) -> tuple[tuple[str, Entry], ...]:
    """Charges a conversion, named by its random id, once; returns what `read` then gives.

    `entry` is all that it may release. Raises InputError where the account cannot be written or
    read: then nothing may be asked.
    """
    where = folder(teacher)
    try:
        where.mkdir(parents=True, exist_ok=True)
        with _locked(where):
            path = where / f"{conversion}.json"
            if not path.exists():
                line = {"id": conversion, "time": time.time(), "charged": entry.to_json()}
                noise.write_private(path, line)
            return read(teacher)
    except OSError as error:
        raise _refusal(teacher, where, f"cannot be written: {error.strerror}") from None


def read(teacher: epath.PathLike) -> tuple[tuple[str, Entry], ...]:
    """(id, charged) of all conversions of a teacher so far, in their order.

    Raises InputError where a part of the account cannot be read.
    """
    where, lines = folder(teacher), []
    for path in where.glob("*.json") if where.exists() else ():
        try:
            line = json.loads(path.read_text())
            lines.append((float(line["time"]), str(line["id"]), read_entry(line["charged"])))
        except (ValueError, KeyError, TypeError):
            raise _refusal(teacher, where, f"cannot be read: {path.name} is damaged") from None
    return tuple(line[1:] for line in sorted(lines, key=lambda line: line[:2]))


@contextlib.contextmanager
def _locked(where: epath.Path) -> Iterator[None]:
    """Waits until no other conversion is being charged.

    Object stores have no locks; there, too, no charge is lost, since each has its own file.
    """
    if "://" in str(where):
        yield
        return
    with open(where / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _refusal(teacher: epath.PathLike, where: epath.Path, why: str) -> InputError:
    allowed = f"{where}, the account of its conversions, {why}; without it none may be charged"
    return InputError("teacher", str(teacher), allowed)
