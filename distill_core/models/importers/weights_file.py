"""Reads `.safetensors` files and the JSON files that lie beside them."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from distill_core.config import InputError

_DTYPES = ("F32", "F16", "BF16")


class RefusedError(Exception):
    """Why a file's weights are not accepted."""


@contextlib.contextmanager
def refusing(field: str, given: object) -> Iterator[None]:
    """Raises a `RefusedError` inside as an InputError on `field`."""
    try:
        yield
    except RefusedError as error:
        raise InputError(field, str(given), str(error)) from error


@contextlib.contextmanager
def opened(file: pathlib.Path) -> Iterator[Any]:
    """The open safetensors file."""
    import safetensors

    if not file.is_file():
        raise RefusedError("must be an existing local .safetensors file")
    try:
        with safetensors.safe_open(str(file), framework="numpy") as tensors:
            yield tensors
    except (safetensors.SafetensorError, OSError) as error:
        raise RefusedError(f"cannot be read as a .safetensors file ({error})") from error


def shape_of(tensors: Any, name: str) -> list[int]:
    """A stored tensor's shape; refuses its dtype before it is read."""
    stored = tensors.get_slice(name)
    if (dtype := stored.get_dtype()) not in _DTYPES:
        raise RefusedError(f"tensor {name} is {dtype}; must be {', '.join(_DTYPES)}")
    return list(stored.get_shape())


def read_tensor(tensors: Any, name: str) -> np.ndarray:
    """A stored tensor as float32."""
    shape_of(tensors, name)
    value = np.asarray(tensors.get_tensor(name), np.float32)
    if not np.isfinite(value).all():
        raise RefusedError(f"tensor {name} holds NaN or infinity")
    return value


def read_object(source: pathlib.Path | str, where: str) -> dict[str, Any]:
    """A JSON object from a file or from text; `where` names it in messages."""
    try:
        found = json.loads(source if isinstance(source, str) else source.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RefusedError(f"{where} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise RefusedError(f"{where} must hold names and values")
    return found
