"""Other libraries' files: Hugging Face's language models, and image networks from PyTorch."""

from typing import Any

from distill_core.config import InputError
from distill_core.models.foreign import huggingface, torch_weights
from distill_core.models.network import LoadedModel


def is_foreign(path: Any) -> bool:
    """Whether a path is not a checkpoint of ours, but `load_model` below reads it."""
    return str(path).endswith(".safetensors") or huggingface.is_directory(path)


def load_model(path: Any, *, part: str | None = None, step: int | None = None) -> LoadedModel:
    """`distill_core.load_model` for other libraries' files, which have no parts or steps."""
    for name, value in (("part", part), ("step", step)):
        if value is not None:
            raise InputError(name, value, f"{path} holds one network; leave it out")
    template = False
    if not str(path).endswith(".safetensors"):
        network, variables, template = huggingface.load_directory(path)
    elif torch_weights.is_torch(path):
        network, variables = torch_weights.load_torch(path)
    else:
        network, variables = huggingface.load_file(path)
    metadata = {
        "method": "hugging face" if network.is_text else "torch",
        "parts": {"model": network.to_json()},
        "config": {},
        "ledger": {"mechanisms": [], "ancestors": []},
        "data_note": "",
        "step": 0,
        "id": "a file of weights",  # nobody drew one
        "chat_template": template,
    }
    return LoadedModel(variables, network, metadata)
