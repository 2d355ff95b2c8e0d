"""Where decoded images lie: in memory, or in a file on disk that is used as if it were memory."""

import os
import tempfile

import numpy as np

from distill_core.config import InputError
from distill_core.runtime import paths

_BLOCK = 1000  # images that are copied at a time


def room(shape: tuple[int, ...], memory: int | None) -> np.ndarray:
    """uint8 to decode images into; beyond `memory` bytes it is an `np.memmap`.

    Its file is in the user's cache directory, has no name, and goes with the array. The operating
    system keeps as much of it in memory as there is room for. None: always in memory.

    Raises:
      InputError: on `image_memory`: there is no place for the file.
    """
    size = int(np.prod(shape))
    if memory is None or size <= memory:
        return np.empty(shape, np.uint8)
    try:
        folder = paths.user_cache()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # or a full disk would end the process later
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except (OSError, RuntimeError) as error:
        allowed = f"is less than the {size // 2**20} MiB of images, which find no place on disk"
        raise InputError("image_memory", memory // 2**20, f"{allowed} ({error})") from None


def some(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The images where `rows`, bool [N], in memory or on disk as they are."""
    if not isinstance(images, np.memmap):
        return images[rows]
    index = np.flatnonzero(rows)
    found = room((len(index), *images.shape[1:]), 0 if len(index) else None)
    for start in range(0, len(index), _BLOCK):
        found[start : start + _BLOCK] = images[index[start : start + _BLOCK]]
    return found
