"""Reads `.safetensors` files and the JSON files that lie beside them."""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from distill_core.config import InputError
from distill_core.runtime import parallel

_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
INDEX = "model.safetensors.index.json"
_ROWS_BYTES = 1 << 26  # of a tensor that are compared at a time


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


class Tensors:
    """The tensors of one or several `.safetensors` files: names and shapes now, values on demand.

    Raises:
      RefusedError: a file that is missing or damaged, a name in two files, or an `index` that does
        not describe the files.
    """

    def __init__(self, files: Sequence[pathlib.Path], index: dict[str, str] | None = None):
        self._files: dict[str, pathlib.Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        for file in files:
            with _named(file, several=len(files) > 1), opened(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    stored = tensors.get_slice(name)
                    if name in self._files:
                        raise RefusedError(f"tensor {name} is in {self._files[name].name}, too")
                    self._files[name] = file
                    self._shapes[name] = tuple(stored.get_shape())
                    self._dtypes[name] = stored.get_dtype()
        for name, where in (index or {}).items():
            if name not in self._files or self._files[name].name != where:
                raise RefusedError(f"{INDEX} has tensor {name} in {where}, which does not hold it")

    def names(self) -> set[str]:
        """All names."""
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape; refuses its dtype before it is read."""
        if (dtype := self._dtypes[name]) not in _DTYPES:
            raise RefusedError(f"tensor {name} is {dtype}; must be {', '.join(_DTYPES)}")
        return self._shapes[name]

    def read(self, name: str, dtype: Any = None) -> np.ndarray:
        """A tensor in its own dtype, float32, float16 or bfloat16, or in another.

        Each is read from a file that is opened for it: what a file has in memory stays there for as
        long as it is open, beside the copy.
        """
        self.shape(name)
        with opened(self._files[name]) as tensors:
            value = np.asarray(tensors.get_tensor(name), dtype)
        if not np.isfinite(value).all():
            raise RefusedError(f"tensor {name} holds NaN or infinity")
        return value

    def dtype(self, name: str) -> np.dtype:
        """A tensor's dtype, which `shape` has accepted."""
        return np.dtype(_DTYPES[self._dtypes[name]])

    def read_slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Part of a tensor, in its own dtype; the rest of it is not read."""
        with opened(self._files[name]) as tensors:
            return np.asarray(tensors.get_slice(name)[index])

    def are_equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same, of which only some rows are read at a time."""
        if (shape := self.shape(one)) != self.shape(other):
            return False
        count = max(1, _ROWS_BYTES // max(1, 4 * int(np.prod(shape[1:]))))
        rest = (slice(None),) * (len(shape) - 1)
        for at in range(0, shape[0], count):
            rows = (slice(at, min(at + count, shape[0])), *rest)
            if not np.array_equal(self.read_slice(one, rows), self.read_slice(other, rows)):
                return False
        return True

    def digest(self) -> str:
        """SHA-256 of the files."""
        sha = hashlib.sha256()
        for file in sorted(set(self._files.values())):
            with file.open("rb") as opened_file:
                sha.update(hashlib.file_digest(opened_file, "sha256").digest())
        return sha.hexdigest()


class Place(NamedTuple):
    """Where a file's tensor belongs among our parameters.

    Attributes:
      name: of the tensor.
      path: of the parameter.
      shape: of the parameter.
      turned: whether the tensor is the parameter's transpose, as PyTorch has kernels.
    """

    name: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    turned: bool = False


def read_params(
    tensors: Tensors, places: Iterable[Place], whose: str, sharding: Any = None
) -> tuple[dict, set[str]]:
    """(parameters in the dtypes of the file, names that have no place).

    Names, shapes and dtypes are checked before anything is read; `whose` network it is says the
    message. Kernels are transposed views. With a `sharding`, as `load_model` takes it, they are
    `jax.Array`s, of which each process has read its own shards alone. Raises RefusedError.
    """
    kept, names = [], tensors.names()
    # One by one: a file may claim any number of layers, and the first missing one ends the loop.
    for place in places:
        if place.name not in names:
            raise RefusedError(f"has no tensor {place.name}, which {whose} has")
        needed = place.shape[::-1] if place.turned else place.shape
        if (shape := tensors.shape(place.name)) != needed:
            allowed = f"{list(needed)} is needed"
            raise RefusedError(f"tensor {place.name} is {list(shape)}; {allowed}")
        kept.append(place)
    others = names - {place.name for place in kept}
    if sharding is not None:
        return _read_shards(tensors, kept, sharding), others
    flat = {}
    for place in kept:
        value = tensors.read(place.name)
        flat[place.path] = value.T if place.turned else value
    return traverse_util.unflatten_dict(flat), others


def _read_shards(tensors: Tensors, places: Sequence[Place], sharding: Any) -> dict:
    shapes = {
        place.path: jax.ShapeDtypeStruct(place.shape, tensors.dtype(place.name)) for place in places
    }
    tree = parallel.assign({"params": traverse_util.unflatten_dict(shapes)}, sharding)
    wanted: dict[Any, Any] = dict(traverse_util.flatten_dict(tree["params"]))
    flat = {}
    for place in places:

        def read(index, place=place):
            if place.turned:
                return tensors.read_slice(place.name, index[::-1]).T
            return tensors.read_slice(place.name, index)

        where = wanted[place.path].sharding
        value = jax.make_array_from_callback(place.shape, where, read)
        if not jnp.isfinite(value).all():
            raise RefusedError(f"tensor {place.name} holds NaN or infinity")
        flat[place.path] = value
    return traverse_util.unflatten_dict(flat)


def directory_tensors(folder: pathlib.Path) -> Tensors:
    """The tensors of a Hugging Face directory: those of its index, or of its only file."""
    index = folder / INDEX
    if index.exists():
        placed = read_object(index, INDEX).get("weight_map")
        if not (isinstance(placed, dict) and placed and all(map(_is_name, placed.values()))):
            raise RefusedError(f"{INDEX} must have a weight_map of tensors to files beside it")
        return Tensors([folder / name for name in sorted(set(placed.values()))], placed)
    files = sorted(folder.glob("*.safetensors"))
    if (usual := folder / "model.safetensors") in files:
        files = [usual]
    if len(files) != 1:
        have = f"has {len(files)} .safetensors files" if files else "has no .safetensors file"
        raise RefusedError(f"{have}; one is needed, or several and {INDEX}")
    return Tensors(files)


def read_object(source: pathlib.Path | str, where: str) -> dict[str, Any]:
    """A JSON object from a file or from text; `where` names it in messages."""
    try:
        found = json.loads(source if isinstance(source, str) else source.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedError(f"{where} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise RefusedError(f"{where} must hold names and values")
    return found


@contextlib.contextmanager
def _named(file: pathlib.Path, *, several: bool) -> Iterator[None]:
    try:
        yield
    except RefusedError as error:
        raise RefusedError(f"{file.name} {error}" if several else str(error)) from error


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and pathlib.PurePath(value).name == value
