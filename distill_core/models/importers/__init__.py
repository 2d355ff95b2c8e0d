"""Other libraries' weights: GPT-2's, and PyTorch's of image networks, from `.safetensors` files."""

import os

from distill_core.config import InputError
from distill_core.models.importers import gpt2, torch_weights
from distill_core.models.network import LoadedModel


def load_model(
    path: str | os.PathLike, *, part: str | None = None, step: int | None = None
) -> LoadedModel:
    """`distill_core.load_model` for a `.safetensors` file, which has no parts or steps."""
    for name, value in (("part", part), ("step", step)):
        if value is not None:
            raise InputError(name, value, f"{path} is a file of one network; leave it out")
    from_torch = torch_weights.is_torch(path)
    network, variables = (torch_weights.load_torch if from_torch else gpt2.load_gpt2)(path)
    metadata = {
        "method": "torch" if from_torch else "gpt2",
        "parts": {"model": network.to_json()},
        "config": {},
        "ledger": {"mechanisms": [], "ancestors": []},
        "data_note": "",
        "step": 0,
        "id": "a file of weights",  # nobody drew one
    }
    return LoadedModel(variables, network, metadata)
