"""Where a user's path becomes a path: `~` is expanded, its scheme known, its place writable."""

import os
import pathlib
import re

from etils import epath

from distill_core.config import InputError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_EXTRAS = {"gs": "pip install 'guarded-distillation[gcs]'", "s3": "pip install s3fs"}
_ALLOWED = "must be a local path or gs://BUCKET/…"


def expand(field: str, path: epath.PathLike, *, given: str | None = None) -> epath.Path:
    """A path as the user means it; nothing need be there.

    Args:
      field: what an error names as wrong.
      path: local, `~` allowed, or `gs://…`; `s3://…` where s3fs is installed.
      given: what the user wrote, if that is more than the path.

    Raises:
      InputError: another scheme, or one whose library is not installed; `~NAME` of no user.
    """
    text = os.fspath(path)
    given = text if given is None else given
    scheme = _SCHEME.match(text)
    if scheme is None:
        expanded = os.path.expanduser(text)
        if text.startswith("~") and expanded == text:
            allowed = "its `~` is nobody's home; a folder of that name is ./~…"
            raise InputError(field, given, allowed)
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


def folder_to_write(field: str, path: epath.PathLike) -> epath.Path:
    """A directory to write into, which is there or can be made; nothing is made yet.

    Raises:
      InputError: a file is in its place or above it, or nobody may write there.
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
    """A file to write, new or not, in a directory that is there; nothing is written yet.

    Raises:
      InputError: no such directory, a directory in its place, or nobody may write there.
    """
    file = expand(field, path)
    if "://" not in str(file):
        if not file.parent.is_dir() or file.is_dir():
            raise InputError(field, str(path), "must be a file in an existing directory")
        folder_to_write(field, file.parent)
        if file.exists() and not os.access(file, os.W_OK):
            raise InputError(field, str(path), "must be a file to write to; this one is not")
    return file
