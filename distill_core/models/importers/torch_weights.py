"""Weights of image networks that PyTorch trained, out of one `.safetensors` file.

    model = distill_core.load_model("teacher.safetensors")

The file holds a state dict. What the network is lies beside it in `teacher.json`, or in the file's
header as the text `spec`: {"model": "resnet18", "input_shape": [32, 32, 3], "mean": […],
"std": […], "classes": […]}, and "model_kwargs" if it has any.
"""

import contextlib
import functools
import json
import math
import operator
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from distill_core.config import InputError
from distill_core.data.images.dataset import wrong_constants
from distill_core.models import checks
from distill_core.models.cnn import CNN
from distill_core.models.create import MODEL_NAMES
from distill_core.models.importers import weights_file
from distill_core.models.importers.torch_layout import NETWORKS, canonical, layers
from distill_core.models.network import LoadedModel, Network

PyTree = Any

_MODELS = tuple(name for name in MODEL_NAMES if name != "transformer")
_FIELDS = ("model", "model_kwargs", "input_shape", "mean", "std", "classes")
_DTYPES = ("F32", "F16", "BF16")
# PyTorch's name of a layer's tensor, and where ours is.
_KERNEL = {"weight": ("params", "kernel"), "bias": ("params", "bias")}
_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
_COUNT = "num_batches_tracked"  # only for averages without momentum


class _RefusedError(Exception):
    """Why weights are not taken."""


def convert(module: Any, input_shape: Sequence[int], tensors: Mapping[str, Any]) -> PyTree:
    """The variables of a network of ours with the weights of the same network in PyTorch.

    Args:
      module: a `CNN`, `MobileNetV2`, `ResNeXt`, `ResNet`, `ResNetC` or `ShuffleNetV2` of any size,
        with norm "batch".
      input_shape: of one image, (H, W, channels).
      tensors: PyTorch's state dict, name -> array, under the names of `torch_layout`.

    Returns:
      `{"params": …, "batch_stats": …}` of float32 NumPy arrays.

    Raises:
      InputError: on "state_dict": names the first tensor that is missing, unknown or of another
        shape.
    """
    try:
        return _convert(module, tuple(input_shape), tensors)
    except _RefusedError as error:
        raise InputError("state_dict", type(module).__name__, str(error)) from error


def load_torch(path: str | os.PathLike, *, field: str = "checkpoint") -> tuple[Network, PyTree]:
    """An image network and its variables, with the weights in a file.

    Args:
      path: a local `.safetensors` file; tensors in float32, float16 or bfloat16.
      field: what an error names as wrong.

    Returns:
      (network, variables), these as `convert` returns them.

    Raises:
      InputError: on `field`: no such file, no description, or the weights of another network; names
        the first tensor or setting that does not fit.
    """
    file = pathlib.Path(path).expanduser()
    try:
        with _opened(file) as tensors:
            network = _read_network(file, tensors.metadata() or {})
            stored = {}
            for name in _names(tensors):
                if (dtype := tensors.get_slice(name).get_dtype()) not in _DTYPES:
                    raise _RefusedError(f"tensor {name} is {dtype}; must be {', '.join(_DTYPES)}")
                stored[name] = np.asarray(tensors.get_tensor(name), np.float32)
                if not np.isfinite(stored[name]).all():
                    raise _RefusedError(f"tensor {name} holds NaN or infinity")
        try:
            if network.model_kwargs:
                checks.check(network)
            variables = _convert(network.module(), network.input_shape, stored)
        except InputError as error:  # settings that the network does not take
            raise _RefusedError(f"its description is refused ({error})") from error
    except _RefusedError as error:
        raise InputError(field, str(path), str(error)) from error
    return network, variables


def load_model(
    path: str | os.PathLike, *, part: str | None = None, step: int | None = None
) -> LoadedModel:
    """What `distill_core.load_model` gives for the `.safetensors` file of an image network.

    Raises:
      InputError: from `load_torch`; or a part or a step is asked for, and a file has neither.
    """
    return weights_file.load_model(path, load_torch, method="torch", part=part, step=step)


def is_torch(path: str | os.PathLike) -> bool:
    """Whether a `.safetensors` file is that of an image network, by description or by tensors."""
    file = pathlib.Path(path).expanduser()
    beside = file.with_suffix(".json")
    try:
        with _opened(file) as tensors:
            # `config.json` describes language models.
            described = beside.exists() and beside.name != "config.json"
            described = described or "spec" in (tensors.metadata() or {})
            return described or any(name.endswith(".running_mean") for name in _names(tensors))
    except _RefusedError:
        return False


@contextlib.contextmanager
def _opened(file: pathlib.Path) -> Iterator[Any]:
    import safetensors

    if not file.is_file():
        raise _RefusedError("must be an existing local .safetensors file")
    try:
        with safetensors.safe_open(str(file), framework="numpy") as tensors:
            yield tensors
    except (safetensors.SafetensorError, OSError) as error:
        raise _RefusedError(f"cannot be read as a .safetensors file ({error})") from error


def _names(tensors: Any) -> list[str]:
    """The names of the tensors that count, of a mapping or an open file."""
    return [name for name in tensors.keys() if name.rpartition(".")[2] != _COUNT]  # noqa: SIM118


def _read_network(file: pathlib.Path, header: Mapping[str, str]) -> Network:
    """The network from what describes the file, each of its values checked."""
    beside = file.with_suffix(".json")
    if not beside.exists() and "spec" not in header:
        needed = f"{beside.name} must lie beside it, with {', '.join(_FIELDS)}"
        raise _RefusedError(f"nothing says which network this is; {needed}")
    where = f"{beside.name} beside it" if beside.exists() else "spec in its header"
    try:
        text = beside.read_text(encoding="utf-8") if beside.exists() else header["spec"]
        given = json.loads(text)
    except (OSError, ValueError) as error:
        raise _RefusedError(f"{where} cannot be read ({error})") from error
    if not isinstance(given, dict):
        raise _RefusedError(f"{where} must hold names and values")
    given = {"model_kwargs": {}, **given}
    for name in [*_FIELDS, *given]:
        if name not in given:
            raise _RefusedError(f"{where} lacks {name}")
        if name not in _FIELDS:
            raise _RefusedError(f"{where} has {name}; known are {', '.join(_FIELDS)}")
    shape, channels = given["input_shape"], 0
    if isinstance(shape, list) and len(shape) == 3:
        channels = shape[2]
    valid = {
        "model": (given["model"] in _MODELS, f"one of {', '.join(_MODELS)}"),
        "model_kwargs": (isinstance(given["model_kwargs"], dict), "names and values"),
        "input_shape": (channels and all(map(_is_size, shape)), "[height, width, channels]"),
        "mean": (_are_numbers(given["mean"], channels), "one number a channel"),
        "std": (
            _are_numbers(given["std"], channels) and min(given["std"]) > 0,
            "one positive number a channel",
        ),
        "classes": (_are_names(given["classes"]), "a list of names that differ"),
    }
    for name, (passed, needed) in valid.items():
        if not passed:
            raise _RefusedError(f"{where} has {name} {given[name]!r}; must be {needed}")
    if (wrong := wrong_constants(given["mean"], given["std"])) is not None:
        raise _RefusedError(f"{where} is refused: {wrong}")
    return Network(num_classes=len(given["classes"]), **given)


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    )


def _are_names(values: Any) -> bool:
    names = isinstance(values, list) and all(isinstance(value, str) for value in values)
    return names and 0 < len(values) == len(set(values))


def _convert(module: Any, input_shape: tuple[int, ...], tensors: Mapping[str, Any]) -> PyTree:
    if type(module) not in NETWORKS:
        known = ", ".join(network.__name__ for network in NETWORKS)
        raise _RefusedError(f"weights of PyTorch can be had for {known}")
    if module.norm != "batch":
        raise _RefusedError(f'its norm is {module.norm!r}; weights of PyTorch need "batch"')
    wanted = jax.eval_shape(
        lambda key: _variables(module, key, input_shape), jax.eval_shape(jax.random.key, 0)
    )
    named: dict[str, str] = {}
    for name in _names(tensors):
        if (theirs := canonical(module, name)) in named:
            raise _RefusedError(f"tensors {named[theirs]} and {name} stand for the same")
        named[theirs] = name
    variables: dict[str, Any] = {}
    for layer, path in layers(module, wanted["params"]):
        table = _NORM if path[-1].startswith("BatchNorm") else _KERNEL
        for kind, (collection, leaf) in table.items():
            shapes = functools.reduce(operator.getitem, path, wanted[collection])
            if leaf not in shapes:
                continue  # a convolution without bias
            name = f"{layer}.{kind}"
            if name not in named:
                raise _RefusedError(f"has no tensor {name}, which {_article(module)} has")
            value = np.asarray(tensors[named[name]], np.float32)
            value = _ours(module, input_shape, named.pop(name), value, path, shapes[leaf].shape)
            node = variables.setdefault(collection, {})
            for folder in path:
                node = node.setdefault(folder, {})
            node[leaf] = value
    for name in sorted(named.values()):
        raise _RefusedError(f"tensor {name} is not one of {_article(module)}'s")
    return variables


def _variables(module: Any, key: jax.Array, input_shape: tuple[int, ...]) -> PyTree:
    from distill_core.models.apply import init_model

    params, state = init_model(module, key, input_shape)
    return {"params": params, **state}


def _ours(module, input_shape, name: str, value: np.ndarray, path, shape) -> np.ndarray:
    """A tensor in our layout; `shape` is what it must come to."""
    needed = tuple(shape)
    if len(shape) == 4:  # [in, out, height, width] where we have [height, width, in, out]
        needed = (shape[3], shape[2], *shape[:2])
    elif len(shape) == 2:
        needed = shape[::-1]
    if value.shape == (*needed, 1, 1) and len(shape) == 2:  # a 1×1 convolution of averages
        value = value.reshape(needed)
    if value.shape != needed:
        raise _RefusedError(f"tensor {name} is {list(value.shape)}; {list(needed)} is needed")
    if isinstance(module, CNN) and path == ("Dense_0",) and len(shape) == 2:
        # PyTorch flattens [channels, height, width], we [height, width, channels].
        height, width = (size >> len(module.widths) for size in input_shape[:2])
        value = value.reshape(shape[1], -1, height, width).transpose(2, 3, 1, 0)
        return np.ascontiguousarray(value.reshape(shape))
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(len(shape), (0,))
    return np.ascontiguousarray(value.transpose(order))


def _article(module: Any) -> str:
    name = type(module).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
