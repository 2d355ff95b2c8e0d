"""GPT-2's published weights, out of one `.safetensors` file with Hugging Face's names.

    model = distill_core.load_model("gpt2/model.safetensors")

What lies beside the file counts too: `config.json` for the number of heads, `tokenizer.json`.
"""

import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from distill_core.config import InputError
from distill_core.models.importers import weights_file
from distill_core.models.network import LoadedModel, Network

PyTree = Any
HEAD_WIDTH = 64  # in every published size

_PREFIX = "transformer."
_HEAD = "lm_head.weight"
_BUFFER = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # masks that older files hold
_DTYPES = ("F32", "F16", "BF16")
# Other values change the logits and leave the tensors as they are.
_SETTINGS = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}


class _RefusedError(Exception):
    """Why a file is not taken."""


def load_gpt2(path: str | os.PathLike, *, field: str = "checkpoint") -> tuple[Network, PyTree]:
    """A `Transformer` and its variables, with the logits of a GPT-2 in a file.

    Sizes come from the tensors; the number of heads from `n_head` in `config.json` beside the file,
    or else the heads are 64 wide; the tokenizer from `tokenizer.json` beside the file, if it is
    there. The vocabulary may be larger than the tokenizer's.

    Args:
      path: a local `.safetensors` file; tensors in float32, float16 or bfloat16.
      field: what an error names as wrong.

    Returns:
      (network, variables); the network's `tokenizer` may be None, the variables are
      `{"params": …}` of float32 NumPy arrays.

    Raises:
      InputError: on `field`: no such file, no `.safetensors`, not GPT-2's architecture; names the
        first tensor or setting that is missing, unknown or other than GPT-2's.
    """
    file = pathlib.Path(path).expanduser()
    try:
        params = _read_tensors(file)
        config = _read_config(file.parent / "config.json")
        vocab_size, width = params["wte"].shape
        sizes = {
            "num_layers": sum(name.startswith("h_") for name in params),
            "num_heads": _num_heads(config, width),
            "width": width,
        }
        network = Network(
            "transformer",
            vocab_size,
            sizes,
            max_length=params["wpe"].shape[0],
            tokenizer=_read_tokenizer(file.parent / "tokenizer.json", vocab_size),
        )
    except _RefusedError as error:
        raise InputError(field, str(path), str(error)) from error
    return network, {"params": params}


def load_model(
    path: str | os.PathLike, *, part: str | None = None, step: int | None = None
) -> LoadedModel:
    """What `distill_core.load_model` gives for a `.safetensors` file.

    Raises:
      InputError: from `load_gpt2`; or a part or a step is asked for, and a file has neither.
    """
    return weights_file.load_model(path, load_gpt2, method="gpt2", part=part, step=step)


def _read_tensors(file: pathlib.Path) -> dict[str, Any]:
    """The parameters of `Transformer`, every tensor of the file accounted for."""
    import safetensors

    if not file.is_file():
        raise _RefusedError("must be an existing local .safetensors file")
    try:
        with safetensors.safe_open(str(file), framework="numpy") as tensors:
            return _convert(tensors)
    except (safetensors.SafetensorError, OSError) as error:
        raise _RefusedError(f"cannot be read as a .safetensors file ({error})") from error


def _convert(tensors) -> dict[str, Any]:
    """Checks names, dtypes and shapes first, then reads; `tensors` is an open file."""
    names = tensors.keys()
    stored = {name: tensors.get_slice(name) for name in names}
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in stored) else ""
    sizes = []
    for name in ("wte.weight", "wpe.weight"):
        shape = _shape(stored, prefix + name)
        if len(shape) != 2 or 0 in shape:
            raise _RefusedError(f"tensor {prefix + name} is {shape}; two dimensions are needed")
        sizes.append(shape[0])
    width = _shape(stored, f"{prefix}wte.weight")[1]
    inner = [name.removeprefix(prefix) for name in stored]
    layers = [int(found[1]) for name in inner if (found := re.match(r"h\.(\d+)\.", name))]
    places = {}
    # One by one: a file may claim any number of layers, and the first that is missing ends it.
    for name, place, needed in _layout(*sizes, width=width, num_layers=1 + max(layers, default=0)):
        shape = _shape(stored, prefix + name)
        if shape != needed:
            raise _RefusedError(f"tensor {prefix + name} is {shape}; {needed} is needed")
        places[prefix + name] = place
    for name in sorted(stored.keys() - places.keys()):
        if name != _HEAD and not _BUFFER.fullmatch(name.removeprefix(prefix)):
            raise _RefusedError(f"tensor {name} is not one of GPT-2's")
    params = {}
    for name, (*folders, last) in places.items():
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = np.asarray(tensors.get_tensor(name), np.float32)
        if not np.isfinite(node[last]).all():
            raise _RefusedError(f"tensor {name} holds NaN or infinity")
    if _HEAD in stored and not _is_tied(tensors, _shape(stored, _HEAD), params["wte"]):
        raise _RefusedError(f"tensor {_HEAD} differs from {prefix}wte.weight; they must be tied")
    return params


def _is_tied(tensors, shape: list[int], embedding: np.ndarray) -> bool:
    if shape != list(embedding.shape):
        return False
    return np.array_equal(np.asarray(tensors.get_tensor(_HEAD), np.float32), embedding)


def _layout(
    vocab_size: int, max_length: int, *, width: int, num_layers: int
) -> Iterator[tuple[str, tuple[str, ...], list[int]]]:
    """Every tensor's name in the file, its place among our parameters, and its shape."""
    yield "wte.weight", ("wte",), [vocab_size, width]
    yield "wpe.weight", ("wpe",), [max_length, width]
    dense = {  # the file has kernels [in, out], as Flax
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    for i in range(num_layers):
        for name in ("ln_1", "ln_2"):
            yield f"h.{i}.{name}.weight", (f"h_{i}", name, "scale"), [width]
            yield f"h.{i}.{name}.bias", (f"h_{i}", name, "bias"), [width]
        for name, kernel in dense.items():
            ours = name.replace(".", "_")
            yield f"h.{i}.{name}.weight", (f"h_{i}", ours, "kernel"), list(kernel)
            yield f"h.{i}.{name}.bias", (f"h_{i}", ours, "bias"), [kernel[1]]
    yield "ln_f.weight", ("ln_f", "scale"), [width]
    yield "ln_f.bias", ("ln_f", "bias"), [width]


def _shape(stored: Mapping[str, Any], name: str) -> list[int]:
    if name not in stored:
        raise _RefusedError(f"has no tensor {name}, which GPT-2 has")
    if (dtype := stored[name].get_dtype()) not in _DTYPES:
        raise _RefusedError(f"tensor {name} is {dtype}; must be {', '.join(_DTYPES)}")
    return list(stored[name].get_shape())


def _read_config(file: pathlib.Path) -> dict[str, Any]:
    """`config.json`, {} if there is none."""
    if not file.exists():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _RefusedError(f"config.json beside it cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise _RefusedError("config.json beside it must hold names and values")
    for name, wanted in _SETTINGS.items():
        if (given := config.get(name, wanted)) != wanted:
            needed = f"{wanted!r} is needed"
            raise _RefusedError(f"config.json beside it has {name} {given!r}; {needed}")
    return config


def _num_heads(config: Mapping[str, Any], width: int) -> int:
    if "n_head" not in config and width % HEAD_WIDTH:
        needed = f"config.json with n_head must lie beside it: {width} is no multiple of"
        raise _RefusedError(f"{needed} {HEAD_WIDTH}, GPT-2's width of a head")
    heads = config.get("n_head", width // HEAD_WIDTH)
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or width % heads:
        needed = f"a divisor of the width, {width}, is needed"
        raise _RefusedError(f"config.json beside it has n_head {heads!r}; {needed}")
    return heads


def _read_tokenizer(file: pathlib.Path, vocab_size: int) -> str | None:
    """The tokenizer as a network has it; None if there is no file."""
    if not file.exists():
        return None
    from distill_core.data.text.tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # InputError is a ValueError
        raise _RefusedError(f"tokenizer.json beside it is refused ({error})") from error
    if tokenizer.vocab_size > vocab_size:
        has = f"tokenizer.json beside it has {tokenizer.vocab_size} tokens"
        raise _RefusedError(f"{has}; there are embeddings for {vocab_size}")
    return tokenizer.to_json()
