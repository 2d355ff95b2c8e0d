"""GPT-2's published weights, out of one `.safetensors` file with Hugging Face's names.

    model = distill_core.load_model("gpt2/model.safetensors")

`config.json` and `tokenizer.json` beside the file are read too.
"""

import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from distill_core.models.importers import weights_file
from distill_core.models.importers.weights_file import RefusedError
from distill_core.models.network import Network

_HEAD_WIDTH = 64  # in every published size
_PREFIX = "transformer."
_HEAD = "lm_head.weight"
_BUFFER = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # masks that older files hold
# Other values change the logits and leave the tensors as they are.
_SETTINGS = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}


def load_gpt2(path: str | os.PathLike) -> tuple[Network, dict[str, Any]]:
    """A `Transformer` and its variables, with the logits of the GPT-2 in a file.

    Sizes come from the tensors, in float32, float16 or bfloat16; the number of heads from `n_head`
    in `config.json` beside the file, otherwise heads are 64 wide; the tokenizer from
    `tokenizer.json`, if there is one. The vocabulary may be larger than the tokenizer's.

    Raises:
      InputError: on `checkpoint`: names the first tensor or setting that is missing, unknown or
        different from GPT-2's.
    """
    file = pathlib.Path(path).expanduser()
    with weights_file.refusing("checkpoint", path):
        with weights_file.opened(file) as tensors:
            params = _convert(tensors)
        vocab_size, width = params["wte"].shape
        sizes = {
            "num_layers": sum(name.startswith("h_") for name in params),
            "num_heads": _num_heads(_read_config(file.parent / "config.json"), width),
            "width": width,
        }
        network = Network(
            "transformer",
            vocab_size,
            sizes,
            max_length=params["wpe"].shape[0],
            tokenizer=_read_tokenizer(file.parent / "tokenizer.json", vocab_size),
        )
    return network, {"params": params}


def _convert(tensors: Any) -> dict[str, Any]:
    """The parameters of `Transformer`: checks names, dtypes and shapes of a file, then reads."""
    stored = set(tensors.keys())
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in stored) else ""

    def shape_of(name: str) -> list[int]:
        if name not in stored:
            raise RefusedError(f"has no tensor {name}, which GPT-2 has")
        return weights_file.shape_of(tensors, name)

    sizes = []
    for name in ("wte.weight", "wpe.weight"):
        sizes.append(shape := shape_of(prefix + name))
        if len(shape) != 2 or 0 in shape:
            raise RefusedError(f"tensor {prefix + name} is {shape}; two dimensions are needed")
    (vocab_size, width), (max_length, _) = sizes
    inner = [name.removeprefix(prefix) for name in stored]
    layers = [int(found[1]) for name in inner if (found := re.match(r"h\.(\d+)\.", name))]
    places = {}
    # One by one: a file may claim any number of layers, and the first missing one ends the loop.
    for name, place, needed in _layout(vocab_size, max_length, width, 1 + max(layers, default=0)):
        if (shape := shape_of(prefix + name)) != needed:
            raise RefusedError(f"tensor {prefix + name} is {shape}; {needed} is needed")
        places[prefix + name] = place
    for name in sorted(stored - places.keys()):
        if name != _HEAD and not _BUFFER.fullmatch(name.removeprefix(prefix)):
            raise RefusedError(f"tensor {name} is not one of GPT-2's")
    read = {place: weights_file.read_tensor(tensors, name) for name, place in places.items()}
    params = traverse_util.unflatten_dict(read)
    if _HEAD in stored and not np.array_equal(
        weights_file.read_tensor(tensors, _HEAD), params["wte"]
    ):
        raise RefusedError(f"tensor {_HEAD} differs from {prefix}wte.weight; they must be tied")
    return params


def _layout(
    vocab_size: int, max_length: int, width: int, num_layers: int
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


def _read_config(file: pathlib.Path) -> dict[str, Any]:
    """`config.json`, {} if there is none."""
    if not file.exists():
        return {}
    where = "config.json beside it"
    config = weights_file.read_object(file, where)
    for name, wanted in _SETTINGS.items():
        if (given := config.get(name, wanted)) != wanted:
            raise RefusedError(f"{where} has {name} {given!r}; {wanted!r} is needed")
    return config


def _num_heads(config: Mapping[str, Any], width: int) -> int:
    if "n_head" not in config and width % _HEAD_WIDTH:
        needed = f"config.json with n_head must lie beside it: {width} is no multiple of"
        raise RefusedError(f"{needed} {_HEAD_WIDTH}, GPT-2's width of a head")
    heads = config.get("n_head", width // _HEAD_WIDTH)
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or width % heads:
        needed = f"a divisor of the width, {width}, is needed"
        raise RefusedError(f"config.json beside it has n_head {heads!r}; {needed}")
    return heads


def _read_tokenizer(file: pathlib.Path, vocab_size: int) -> str | None:
    """The tokenizer as JSON; None if there is no file."""
    if not file.exists():
        return None
    from distill_core.data.text.tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # InputError is a ValueError
        raise RefusedError(f"tokenizer.json beside it is refused ({error})") from error
    if tokenizer.vocab_size > vocab_size:
        has = f"tokenizer.json beside it has {tokenizer.vocab_size} tokens"
        raise RefusedError(f"{has}; there are embeddings for {vocab_size}")
    return tokenizer.to_json()
