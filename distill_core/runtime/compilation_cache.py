"""Compiled programs are kept on disk, so that the next run of a binary need not compile again."""

import hashlib
from pathlib import Path

import jax

from distill_core.config import InputError
from distill_core.runtime import paths

OFF = "off"


def keep(given: str | None):
    """Keeps programs in a directory; "off": nowhere; None: in the user's cache directory.

    A directory that JAX has been told by itself (`JAX_COMPILATION_CACHE_DIR`) stays, unless another
    is given.

    Raises:
      InputError: on `compilation_cache`: a directory that was given cannot be written to.
    """
    if given == "":
        raise InputError("compilation_cache", given, f"must be a directory, or {OFF}")
    if given == OFF:
        place = None
    elif given is not None:
        place = paths.folder_to_write("compilation_cache", given)
    elif jax.config.jax_compilation_cache_dir is not None:
        return
    else:
        try:
            folder = paths.user_cache() / f"programs-{_processor()}"
            place = paths.folder_to_write("compilation_cache", folder)
        except (InputError, RuntimeError):  # no home that can be written to: no cache, but a run
            return
    jax.config.update("jax_compilation_cache_dir", None if place is None else str(place))


def _processor() -> str:
    """Of machines that share a home: JAX does not tell their instruction sets apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(flags.encode()).hexdigest()[:8]
