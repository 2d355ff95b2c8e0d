"""Other libraries' files: Hugging Face's language models, and image networks from PyTorch."""

from typing import Any

import jax

from distill_core.config import InputError
from distill_core.models.foreign import huggingface, torch_weights
from distill_core.models.network import LoadedModel
from distill_core.runtime import parallel


def is_foreign(path: Any) -> bool:
    """Whether a path is not a checkpoint of ours, but `load_model` below reads it."""
    return str(path).endswith(".safetensors") or huggingface.is_directory(path)


def load_model(
    path: Any, *, part: str | None = None, step: int | None = None, sharding: Any = None
) -> LoadedModel:
    """`distill_core.load_model` for other libraries' files, which have no parts or steps.

    With a `sharding`, language models are read shard by shard; image networks, whose kernels are
    turned in several ways, are read whole and then placed.
    """
    for name, value in (("part", part), ("step", step)):
        if value is not None:
            raise InputError(name, value, f"{path} holds one network; leave it out")
    if not str(path).endswith(".safetensors"):
        network, variables = huggingface.load_directory(path, sharding)
    elif torch_weights.is_torch(path):
        network, variables = torch_weights.load_torch(path)
        if sharding is not None:
            places = parallel.assign(network.shapes(), sharding)
            variables = jax.tree.map(_place, variables, places)
    else:
        network, variables = huggingface.load_file(path, sharding)
    metadata = {
        "method": "hugging face" if network.is_text else "torch",
        "parts": {"model": network.to_json()},
        "config": {},
        "ledger": {"mechanisms": [], "ancestors": []},
        "data_note": "",
        "step": 0,
        "id": "a file of weights",  # nobody drew one
        "source": str(path),
    }
    return LoadedModel(variables, network, metadata)


def _place(value: Any, where: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.make_array_from_callback(value.shape, where.sharding, lambda index: value[index])
