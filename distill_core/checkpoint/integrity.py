"""Checkpoint integrity: metadata, checksums, cleanup of interrupted saves.

`metadata.json` is written last and deleted first: a directory without it is an interrupted save (or
deletion) and is ignored. It holds a checksum of every other file and of itself; of several
processes each reads back what it wrote, and they meet through small files in the checkpoint.
"""

import contextlib
import errno
import json
import logging
import os
import re
import time
import zlib
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from distill_core.config import InputError
from distill_core.runtime import parallel, strict_json

FORMAT_VERSION = 1
FOLDER = "checkpoints"
METADATA = "metadata.json"
DAMAGED = ".damaged"
_CHECKSUMS = ".checksums-"  # of another process's files, until the first one has read them
_WRITER = re.compile(r"process_(\d+)(/|$)")  # in the names of Orbax's files
_PATIENCE = 1200  # seconds, as long as Orbax waits
_CHUNK = 1 << 24
log = logging.getLogger(__name__)
_known_crcs: dict[tuple[Any, ...], int] = {}


class DamagedError(ValueError):
    """A checkpoint's files are missing, cut short or altered."""


def steps(workdir: epath.PathLike) -> list[int]:
    """Steps with a finished save, ascending; their files are not checked.

    Args:
      workdir: the run's directory, local or `gs://…`.

    Returns:
      The steps; [] where there is no checkpoint.
    """
    folder = epath.Path(workdir) / FOLDER
    if not folder.exists():
        return []
    found = (int(p.name) for p in folder.iterdir() if p.name.isdigit())
    return sorted(step for step in found if (folder / str(step) / METADATA).exists())


def prune(workdir: epath.PathLike, keep: set[int]):
    """Deletes finished checkpoints whose step is not in `keep`.

    Args:
      workdir: the run's directory, local or `gs://…`.
      keep: steps whose checkpoints stay.
    """
    for step in steps(workdir):
        if step not in keep:
            delete(epath.Path(workdir) / FOLDER / str(step))


def delete(path: epath.Path):
    """Deletes one checkpoint; if this is interrupted, it is either complete or ignored."""
    (path / METADATA).unlink(missing_ok=True)
    path.rmtree()


def remove_unfinished(workdir: epath.PathLike):
    """Deletes what interrupted saves left behind; only the owner of the workdir may call it.

    Args:
      workdir: the run's directory, local or `gs://…`.
    """
    folder = epath.Path(workdir) / FOLDER
    if not (parallel.is_main() and folder.exists()):
        return
    finished = {str(step) for step in steps(workdir)}
    for path in folder.iterdir():
        ours = path.name.partition(".")[0].isdigit() and not path.name.endswith(DAMAGED)
        if ours and path.name not in finished and path.is_dir():
            path.rmtree(missing_ok=True)


def set_aside(path: epath.Path):
    """Renames a damaged checkpoint so that its step can be saved again."""
    aside = path.parent / f"{path.name}{DAMAGED}"
    aside.rmtree(missing_ok=True)
    path.rename(aside)


def finish(path: epath.Path, metadata: Mapping[str, Any]):
    """Completes a written checkpoint: writes checksums and metadata atomically.

    Called by every process, in the background too: they agree through files, as a collective of
    the devices would meet those of a training step.
    """
    index = jax.process_index()
    files = {name: _crc(path / name) for name in _list_files(path) if _writer(name) == index}
    if index:
        write_atomically(path / f"{_CHECKSUMS}{index}", json.dumps(files))
        _await(path / METADATA)
        return
    for other in range(1, jax.process_count()):
        note = path / f"{_CHECKSUMS}{other}"
        _await(note)
        files |= json.loads(note.read_text())
        note.unlink()
    _write_metadata(path, {**metadata, "format_version": FORMAT_VERSION, "files": files})


def amend(path: epath.Path, changes: Mapping[str, Any]):
    """Replaces some of a checkpoint's metadata atomically."""
    _write_metadata(path, {**json.loads((path / METADATA).read_text()), **changes})


def read_metadata(path: epath.PathLike, *, item: str = "") -> dict:
    """The metadata of one checkpoint directory; with an `item`, only its files are checked.

    Raises:
      DamagedError: it is missing, altered, or a file beside it is.
      InputError: it was written in another format version.
    """
    path = epath.Path(path)
    try:
        text = (path / METADATA).read_text()
        metadata = json.loads(text)
    except FileNotFoundError:
        raise DamagedError(f"{METADATA} is missing") from None
    except ValueError:
        raise DamagedError(f"{METADATA} cannot be read") from None
    if not isinstance(metadata, dict) or text != _sealed(metadata):
        raise DamagedError(f"{METADATA} was altered")
    if (version := metadata["format_version"]) != FORMAT_VERSION:
        allowed = f"has format version {version}; this program reads {FORMAT_VERSION}"
        raise InputError("checkpoint", str(path), allowed)
    for name, crc in metadata["files"].items():
        whose, _, within = name.partition("/")
        if item and within and whose != item:
            continue
        if not (path / name).exists():
            raise DamagedError(f"{name} is missing")
        if _crc(path / name) != crc:
            raise DamagedError(f"{name} was cut short or altered")
    return metadata


def first_whole(candidates: list[epath.Path], *, item: str = "") -> tuple[epath.Path, dict] | None:
    """The first undamaged checkpoint and its metadata; warns of the damaged ones before it."""
    for path in candidates:
        try:
            return path, read_metadata(path, item=item)
        except DamagedError as error:
            log.warning("skipping damaged checkpoint %s: %s", path, error)
    return None


def find(
    path: epath.PathLike, *, step: int | None = None, item: str = ""
) -> tuple[epath.Path, dict]:
    """The checkpoint that a path means, with its metadata.

    Args:
      path: a workdir or its `checkpoints` folder, or one checkpoint.
      step: which checkpoint of a workdir; by default the newest undamaged one.
      item: what is to be read of it, such as "model"; damage elsewhere then does not matter.

    Returns:
      The checkpoint's directory, and its `metadata.json`.

    Raises:
      InputError: there is none, or only damaged ones.
    """
    path = epath.Path(path)
    if (path / METADATA).exists():
        candidates = [path]
    else:
        folder = path if path.name == FOLDER else path / FOLDER
        candidates = [folder / str(s) for s in reversed(steps(folder.parent))]
    if step is not None:
        candidates = [c for c in candidates if c.name == str(step)]
    found = first_whole(candidates, item=item)
    if found is not None:
        return found
    if candidates:
        allowed = f"every checkpoint there is damaged ({', '.join(c.name for c in candidates)})"
    elif not path.exists():
        allowed = "does not exist; give a workdir or one of its checkpoints"
    else:
        what = "checkpoint" if step is None else f"checkpoint of step {step}"
        allowed = f"holds no {what}; give a workdir or one of its checkpoints"
    raise InputError("checkpoint", str(path), allowed)


def chosen(
    path: epath.PathLike, *, step: int | None = None, item: str = ""
) -> tuple[epath.Path, dict]:
    """The checkpoint that `load_model` reads, with its metadata.

    As `find`, but of a workdir whose run says `use="best"` it is the one of the best validation
    step, unless a step is given.

    Args:
      path, step, item: as for `find`.

    Returns:
      The checkpoint's directory, and its `metadata.json`.
    """
    found, metadata = find(path, step=step, item=item)
    best = metadata.get("best") if metadata.get("config", {}).get("use") == "best" else None
    is_named = step is not None or (epath.Path(path) / METADATA).exists()
    if is_named or best is None or best["step"] == metadata["step"]:
        return found, metadata
    return find(path, step=best["step"], item=item)


def write_atomically(path: epath.PathLike, content: str | bytes, *, mode: int | None = None):
    """Writes a file so that a reader sees the old or the new one, never a part.

    Args:
      path: the file, local or `gs://…`.
      content: all that it holds; text is written as UTF-8.
      mode: permissions of a local file, such as 0o600.
    """
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"  # others may write it, too
    try:
        if mode is not None:
            temporary.touch()
            os.chmod(temporary, mode)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:  # e.g. the disk is full
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        # An object store's error, or that of a directory in its place, has no number.
        reason = (error.errno or errno.EIO, error.strerror or str(error))
        raise OSError(*reason, str(path)) from error


def _write_metadata(path: epath.Path, metadata: Mapping[str, Any]):
    plain = json.loads(strict_json.encode(metadata))  # as it will be read: keys become strings
    write_atomically(path / METADATA, _sealed(plain))


def _sealed(metadata: Mapping[str, Any]) -> str:
    """The text of the metadata, with a checksum of all the rest."""
    rest = {key: value for key, value in metadata.items() if key != "checksum"}
    checksum = zlib.crc32(strict_json.encode(rest, sort_keys=True).encode())
    return strict_json.encode({**rest, "checksum": checksum}, indent=1)


def _list_files(path: epath.Path, prefix: str = "") -> list[str]:
    names = []
    for child in path.iterdir():
        name = f"{prefix}{child.name}"
        names += _list_files(child, f"{name}/") if child.is_dir() else [name]
    return sorted(n for n in names if not n.startswith(".") and n != METADATA)


def _writer(name: str) -> int:
    """The process that wrote a file: its own ones are named for it, the rest is the first's."""
    found = _WRITER.search(name)
    return int(found[1]) if found else 0


def _await(path: epath.Path):
    """Waits for another process to write a file."""
    end, pause = time.monotonic() + _PATIENCE, 0.02
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"no {path.name} of another process in {_PATIENCE} seconds")
        time.sleep(pause)
        pause = min(2 * pause, 2.0)  # an object store is paid by the question


def _crc(path: epath.Path) -> int:
    """Of a file's content; read again only if the file was touched since the last time."""
    state: tuple[Any, ...] = ()
    if "://" not in str(path):
        found = os.stat(path)
        state = (str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if state in _known_crcs:
            return _known_crcs[state]
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):  # one file may hold gigabytes
            crc = zlib.crc32(chunk, crc)
    if state:
        _known_crcs[state] = crc
    return crc
