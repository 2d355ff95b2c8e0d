"""Weights of image networks that PyTorch trained, out of one `.safetensors` file.

    model = distill_core.load_model("teacher.safetensors")

The file holds a state dict. `teacher.json` beside it, or the text `spec` in the file's header,
describes the network: {"model": "resnet18", "input_shape": [32, 32, 3], "mean": […],
"std": […], "classes": […]}, and "model_kwargs" if it has any.
"""

import functools
import math
import operator
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from distill_core.config import InputError
from distill_core.data.images.dataset import wrong_constants
from distill_core.models import checks
from distill_core.models.apply import init_model
from distill_core.models.cnn import CNN
from distill_core.models.create import MODEL_NAMES, TEXT_MODELS
from distill_core.models.foreign import weights_file
from distill_core.models.foreign.torch_layout import NETWORKS, canonical, layers
from distill_core.models.foreign.weights_file import RefusedError
from distill_core.models.network import Network
from distill_core.runtime import strict_json

_MODELS = tuple(name for name in MODEL_NAMES if name not in TEXT_MODELS)
_FIELDS = ("model", "model_kwargs", "input_shape", "mean", "std", "classes")
# PyTorch's name of a layer's tensor, and where ours is.
_KERNEL = {"weight": ("params", "kernel"), "bias": ("params", "bias")}
_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
_COUNT = "num_batches_tracked"  # only for averages without momentum


def convert(module: Any, input_shape: Sequence[int], tensors: Mapping[str, Any]) -> dict[str, Any]:
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
    with weights_file.refusing("state_dict", type(module).__name__):
        return _convert(module, tuple(input_shape), tensors)


def state_dict(network: Network, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `convert`: PyTorch's tensors by the names of `torch_layout`.

    Raises:
      RefusedError: a network that cannot be converted.
    """
    module = network.module()
    _check_kind(module)
    found = {}
    for layer, path in layers(module, variables["params"]):
        table = _NORM if path[-1].startswith("BatchNorm") else _KERNEL
        for kind, (collection, leaf) in table.items():
            leaves = functools.reduce(operator.getitem, path, variables[collection])
            if leaf in leaves:
                value = _theirs(module, network.input_shape, np.asarray(leaves[leaf]), path)
                found[f"{layer}.{kind}"] = value
    return found


def file(network: Network, variables: Mapping[str, Any]) -> bytes:
    """A `.safetensors` file with `state_dict` and the description that `load_torch` reads."""
    from safetensors.numpy import save

    described = network.to_json()
    spec = {name: described[name] for name in _FIELDS if name in described}
    spec["classes"] = list(network.classes) or [str(i) for i in range(network.num_classes)]
    header = {"format": "pt", "spec": strict_json.encode(spec)}
    return save(state_dict(network, variables), metadata=header)


def load_torch(path: str | os.PathLike) -> tuple[Network, dict[str, Any]]:
    """An image network and its variables from a local `.safetensors` file.

    Tensors are float32, float16 or bfloat16; the variables are as `convert` returns them.

    Raises:
      InputError: on `checkpoint`: no description, or the weights of another network; names the
        first tensor or setting that does not fit.
    """
    file = pathlib.Path(path).expanduser()
    with weights_file.refusing("checkpoint", path):
        with weights_file.opened(file) as tensors:
            network = _read_network(file, tensors.metadata() or {})
            names = _names(tensors)
        tensors = weights_file.Tensors([file])
        stored = {name: tensors.read(name, np.float32) for name in names}
        try:
            if network.model_kwargs:
                checks.check(network)
            variables = _convert(network.module(), network.input_shape, stored)
        except InputError as error:  # settings that the network does not take
            raise RefusedError(f"its description is refused ({error})") from error
    return network, variables


def is_torch(path: str | os.PathLike) -> bool:
    """Whether a `.safetensors` file holds an image network, by its description or its tensors."""
    file = pathlib.Path(path).expanduser()
    beside = file.with_suffix(".json")
    try:
        with weights_file.opened(file) as tensors:
            # `config.json` describes language models.
            described = beside.exists() and beside.name != "config.json"
            described = described or "spec" in (tensors.metadata() or {})
            return described or any(name.endswith(".running_mean") for name in _names(tensors))
    except RefusedError:
        return False


def _names(tensors: Any) -> list[str]:
    """The names of the tensors that matter, of a mapping or an open file."""
    return [name for name in tensors.keys() if name.rpartition(".")[2] != _COUNT]  # noqa: SIM118


def _read_network(file: pathlib.Path, header: Mapping[str, str]) -> Network:
    """The network of the file's description, each value checked."""
    beside = file.with_suffix(".json")
    if not beside.exists() and "spec" not in header:
        needed = f"{beside.name} must lie beside it, with {', '.join(_FIELDS)}"
        raise RefusedError(f"nothing says which network this is; {needed}")
    where = f"{beside.name} beside it" if beside.exists() else "spec in its header"
    source = beside if beside.exists() else header["spec"]
    given = {"model_kwargs": {}, **weights_file.read_object(source, where)}
    for name in [*_FIELDS, *given]:
        if name not in given:
            raise RefusedError(f"{where} lacks {name}")
        if name not in _FIELDS:
            raise RefusedError(f"{where} has {name}; known are {', '.join(_FIELDS)}")
    shape, channels = given["input_shape"], 0
    if isinstance(shape, list) and len(shape) == 3:
        channels = shape[2]
    valid = {
        "model": (given["model"] in _MODELS, f"one of {', '.join(_MODELS)}"),
        "model_kwargs": (isinstance(given["model_kwargs"], dict), "names and values"),
        "input_shape": (channels and all(map(_is_size, shape)), "[height, width, channels]"),
        "mean": (_are_numbers(given["mean"], channels), "one number per channel"),
        "std": (
            _are_numbers(given["std"], channels) and min(given["std"]) > 0,
            "one positive number per channel",
        ),
        "classes": (_are_names(given["classes"]), "a list of distinct names"),
    }
    for name, (passed, needed) in valid.items():
        if not passed:
            raise RefusedError(f"{where} has {name} {given[name]!r}; must be {needed}")
    if (wrong := wrong_constants(given["mean"], given["std"])) is not None:
        raise RefusedError(f"{where} is refused: {wrong}")
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


def _convert(
    module: Any, input_shape: tuple[int, ...], tensors: Mapping[str, Any]
) -> dict[str, Any]:
    _check_kind(module)
    params, state = jax.eval_shape(
        functools.partial(init_model, module, input_shape=input_shape), jax.random.key(0)
    )
    wanted = {"params": params, **state}
    named: dict[str, str] = {}
    for name in _names(tensors):
        if (theirs := canonical(module, name)) in named:
            raise RefusedError(f"tensors {named[theirs]} and {name} are the same layer's")
        named[theirs] = name
    found = {}
    for layer, path in layers(module, wanted["params"]):
        table = _NORM if path[-1].startswith("BatchNorm") else _KERNEL
        for kind, (collection, leaf) in table.items():
            shapes = functools.reduce(operator.getitem, path, wanted[collection])
            if leaf not in shapes:
                continue  # a convolution without bias
            name = f"{layer}.{kind}"
            if name not in named:
                raise RefusedError(f"has no tensor {name}, which {_article(module)} has")
            value = np.asarray(tensors[named[name]], np.float32)
            value = _ours(module, input_shape, named.pop(name), value, path, shapes[leaf].shape)
            found[(collection, *path, leaf)] = value
    for name in sorted(named.values()):
        raise RefusedError(f"tensor {name} is not one of {_article(module)}'s")
    return traverse_util.unflatten_dict(found)


def _ours(module, input_shape, name: str, value: np.ndarray, path, shape) -> np.ndarray:
    """A tensor in our layout, whose shape must be `shape`."""
    needed = tuple(shape)
    if len(shape) == 4:  # [in, out, height, width] where we have [height, width, in, out]
        needed = (shape[3], shape[2], *shape[:2])
    elif len(shape) == 2:
        needed = shape[::-1]
    if value.shape == (*needed, 1, 1) and len(shape) == 2:  # a 1×1 convolution of averages
        value = value.reshape(needed)
    if value.shape != needed:
        raise RefusedError(f"tensor {name} is {list(value.shape)}; {list(needed)} is needed")
    if isinstance(module, CNN) and path == ("Dense_0",) and len(shape) == 2:
        # PyTorch flattens [channels, height, width], we [height, width, channels].
        height, width = (size >> len(module.widths) for size in input_shape[:2])
        value = value.reshape(shape[1], -1, height, width).transpose(2, 3, 1, 0)
        return np.ascontiguousarray(value.reshape(shape))
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(len(shape), (0,))
    return np.ascontiguousarray(value.transpose(order))


def _theirs(module, input_shape, value: np.ndarray, path) -> np.ndarray:
    """The inverse of `_ours`."""
    if isinstance(module, CNN) and path == ("Dense_0",) and value.ndim == 2:
        height, width = (size >> len(module.widths) for size in input_shape[:2])
        value = value.reshape(height, width, -1, value.shape[1]).transpose(3, 2, 0, 1)
        return np.ascontiguousarray(value.reshape(value.shape[0], -1))
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim, (0,))
    return np.ascontiguousarray(value.transpose(order))


def _check_kind(module: Any):
    if type(module) not in NETWORKS:
        known = ", ".join(network.__name__ for network in NETWORKS)
        raise RefusedError(f"PyTorch weights can be converted for {known}")
    if module.norm != "batch":
        raise RefusedError(f'its norm is {module.norm!r}; PyTorch weights need "batch"')


def _article(module: Any) -> str:
    name = type(module).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
