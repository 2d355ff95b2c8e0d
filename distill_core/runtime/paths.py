"""Checks of a user's paths: `~` is expanded, the scheme is known, the place is writable."""

import os
import pathlib
import re

from etils import epath

from distill_core.config import InputError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_EXTRAS = {"gs": "pip install 'guarded-distillation[gcs]'", "s3": "pip install s3fs"}
_ALLOWED = "must be a local path or gs://BUCKET/…"


def expand(field: str, path: epath.PathLike, *, given: str | None = None) -> epath.Path:
    """A path as the user means it: local, `~` allowed, or `gs://…`; `s3://…` with s3fs installed.

    It need not exist. `given` is what the user wrote, if that is more than the path.

    Raises:
      InputError: on `field`: another scheme, or its library is not installed; `~NAME` of no user.
    """
    text = os.fspath(path)
    given = text if given is None else given
    scheme = _SCHEME.match(text)
    if scheme is None:
        expanded = os.path.expanduser(text)
        if text.startswith("~") and expanded == text:
            raise InputError(field, given, "no such user; write a folder of that name as ./~…")
        return epath.Path(expanded)
    if scheme[1] not in _EXTRAS or "://" not in text:
        raise InputError(field, given, f"{_ALLOWED}, not {scheme[1]}:")
    try:
        found = epath.Path(text)
        found.exists()
    except ImportError:
        needed = f"{scheme[1]}:// needs a library: {_EXTRAS[scheme[1]]}"
        raise InputError(field, given, needed) from None
    return found


def user_cache() -> pathlib.Path:
    """Where this project keeps what it can make again; RuntimeError if there is no home."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "guarded-distillation"


def folder_to_write(field: str, path: epath.PathLike) -> epath.Path:
    """A directory to write into, which exists or can be made; nothing is made yet.

    Raises InputError if a file is in its place or above it, or it is not writable.
    """
    folder = expand(field, path)
    if "://" not in str(folder):
        nearest = pathlib.Path(folder).absolute()
        while not os.path.lexists(nearest):
            nearest = nearest.parent
        if not os.path.isdir(nearest):
            raise InputError(field, str(path), f"must be a directory; {nearest} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise InputError(field, str(path), f"must be a place to write to; {nearest} is not")
    return folder


def file_to_write(field: str, path: epath.PathLike) -> epath.Path:
    """A file to write, new or not, in an existing directory; nothing is written yet.

    Raises InputError if there is no such directory, a directory is in its place, or it is not
    writable.
    """
    file = expand(field, path)
    if "://" not in str(file):
        if not file.parent.is_dir() or file.is_dir():
            raise InputError(field, str(path), "must be a file in an existing directory")
        folder_to_write(field, file.parent)
        if file.exists() and not os.access(file, os.W_OK):
            raise InputError(field, str(path), "must be a file to write to; this one is not")
    return file
