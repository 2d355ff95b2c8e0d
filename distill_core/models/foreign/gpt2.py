"""GPT-2 in Hugging Face's terms: config.json and names of tensors."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from distill_core.models.foreign.decoders import WITHOUT_EFFECT
from distill_core.models.foreign.weights_file import Place, RefusedError, Tensors, read_params

_HEAD_WIDTH = 64  # in every published size
PREFIX = "transformer."
_HEAD = "lm_head.weight"
_BUFFER = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # masks that older files hold
_SIZES = {
    "vocab_size": "num_classes", "n_positions": "max_length", "n_layer": "num_layers",
    "n_embd": "width",
}  # fmt: skip
# Other values change the logits and leave the tensors as they are.
_SETTINGS = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}


_UNDERSTOOD = {
    *_SETTINGS, *_SIZES, "model_type", "n_head", "n_ctx", "n_inner", "add_cross_attention",
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "reorder_and_upcast_attn", "tie_word_embeddings",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "gradient_checkpointing",
}  # fmt: skip


def read(
    tensors: Tensors, given: Mapping[str, Any], sharding: Any = None
) -> tuple[dict[str, int], dict[str, Any]]:
    """(settings of a `Transformer` with `num_classes` and `max_length`, its parameters).

    Sizes come from the tensors, which may be named with or without the prefix `transformer.`; the
    number of heads from `n_head` in config.json, `given`, otherwise heads are 64 wide.

    Raises:
      RefusedError: names the first tensor or setting that is missing, unknown or different.
    """
    for name, wanted in (_SETTINGS | {"add_cross_attention": False}).items():
        if (value := given.get(name, wanted)) != wanted:
            raise RefusedError(f"config.json has {name} {value!r}; {wanted!r} is needed")
    for name, value in given.items():
        if value and name not in _UNDERSTOOD | WITHOUT_EFFECT:
            told = f"{name} {repr(value)[:60]}; it is not understood, and may change the logits"
            raise RefusedError(f"config.json has {told}")
    names = tensors.names()
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    sizes = []
    for name in (f"{prefix}wte.weight", f"{prefix}wpe.weight"):
        if name not in names:
            raise RefusedError(f"has no tensor {name}, which GPT-2 has")
        sizes.append(shape := tensors.shape(name))
        if len(shape) != 2 or 0 in shape:
            raise RefusedError(f"tensor {name} is {list(shape)}; two dimensions are needed")
    (vocab_size, width), (max_length, _) = sizes
    inner = [name.removeprefix(prefix) for name in names]
    layers = [int(found[1]) for name in inner if (found := re.match(r"h\.(\d+)\.", name))]
    found = {
        "num_classes": vocab_size,
        "max_length": max_length,
        "num_layers": 1 + max(layers, default=0),
        "num_heads": _num_heads(given, width),
        "width": width,
    }
    for name, ours in _SIZES.items():
        if given.get(name, found[ours]) != found[ours]:
            raise RefusedError(f"config.json has {name} {given[name]!r}; the tensors {found[ours]}")
    places = (place._replace(name=prefix + place.name) for place in layout(**found))
    params, others = read_params(tensors, places, "GPT-2", sharding)
    for name in sorted(others):
        if name != _HEAD and not _BUFFER.fullmatch(name.removeprefix(prefix)):
            raise RefusedError(f"tensor {name} is not one of GPT-2's")
    if _HEAD in others and not tensors.are_equal(_HEAD, f"{prefix}wte.weight"):
        raise RefusedError(f"tensor {_HEAD} differs from {prefix}wte.weight; they must be tied")
    return found, params


def layout(
    *, num_classes: int, max_length: int, width: int, num_layers: int, num_heads: int
) -> Iterator[Place]:
    """Where each tensor belongs; kernels are [in, out], as Flax has them."""
    del num_heads
    yield Place("wte.weight", ("wte",), (num_classes, width))
    yield Place("wpe.weight", ("wpe",), (max_length, width))
    dense = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    for i in range(num_layers):
        for name in ("ln_1", "ln_2"):
            yield Place(f"h.{i}.{name}.weight", (f"h_{i}", name, "scale"), (width,))
            yield Place(f"h.{i}.{name}.bias", (f"h_{i}", name, "bias"), (width,))
        for name, kernel in dense.items():
            ours = name.replace(".", "_")
            yield Place(f"h.{i}.{name}.weight", (f"h_{i}", ours, "kernel"), kernel)
            yield Place(f"h.{i}.{name}.bias", (f"h_{i}", ours, "bias"), kernel[1:])
    yield Place("ln_f.weight", ("ln_f", "scale"), (width,))
    yield Place("ln_f.bias", ("ln_f", "bias"), (width,))


def config(
    *, num_classes: int, max_length: int, width: int, num_layers: int, num_heads: int
) -> dict[str, Any]:
    """The config.json of a `Transformer`."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": num_classes,
        "n_positions": max_length,
        "n_embd": width,
        "n_layer": num_layers,
        "n_head": num_heads,
        "tie_word_embeddings": True,
        "attn_pdrop": 0.0,  # there was no dropout, and `transformers` would train with some
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        **_SETTINGS,
    }


def _num_heads(given: Mapping[str, Any], width: int) -> int:
    if "n_head" not in given and width % _HEAD_WIDTH:
        needed = f"config.json with n_head must lie beside it: {width} is no multiple of"
        raise RefusedError(f"{needed} {_HEAD_WIDTH}, GPT-2's width of a head")
    heads = given.get("n_head", width // _HEAD_WIDTH)
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or width % heads:
        needed = f"a divisor of the width, {width}, is needed"
        raise RefusedError(f"config.json has n_head {heads!r}; {needed}")
    return heads
