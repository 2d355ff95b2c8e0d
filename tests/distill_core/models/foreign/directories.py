"""Hugging Face directories with random weights, as small as they can be."""

import json
import pathlib
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file

from distill_core.models.foreign import decoders

LINES = [f"customer {i} called 555-{i * 37 % 10000:04d} about the blue lamp" for i in range(200)]
BASE: dict[str, Any] = {
    "vocab_size": 310,
    "hidden_size": 18,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 28,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
# As older files name a special token.
_ADDED = {
    "__type": "AddedToken", "content": "<|begin|>", "lstrip": False, "normalized": False,
    "rstrip": False, "single_word": False,
}  # fmt: skip
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Each family's own settings; None leaves out one of `BASE`.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 10_000.0, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 5},
    "qwen2": {"tie_word_embeddings": True, "use_sliding_window": False},
    "qwen3": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "gemma3_text": {
        "hidden_act": None, "hidden_activation": "gelu_pytorch_tanh", "num_hidden_layers": 4,
        "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "query_pre_attn_scalar": 9, "rope_theta": 1e5, "rope_local_base_freq": 100.0,
    },
}  # fmt: skip


def byte_pairs(
    size: int = 300, added: tuple[str, ...] = (), *, qwen: bool = False
) -> tokenizers.Tokenizer:
    """A byte-pair tokenizer that merges digits, with special tokens of its own names.

    With `qwen` it splits text as Qwen2's, which `transformers` presumes of any Qwen2.
    """
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not qwen)
    inner.pre_tokenizer = byte_level
    if qwen:
        inner.normalizer = tokenizers.normalizers.NFC()
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_QWEN), behavior="isolated")
        inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    inner.train_from_iterator(LINES, trainer)
    inner.add_tokens(list(added))
    return inner


def config_of(kind: str, **changes: Any) -> dict[str, Any]:
    """A family's config.json; None leaves a setting out."""
    found = {"model_type": kind, **BASE, **FAMILIES[kind], **changes}
    return {name: value for name, value in found.items() if value is not None}


def tensors_of(config: dict[str, Any], dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Random weights under the published names."""
    rng, sizes = np.random.default_rng(0), decoders.settings(config)
    found = {}
    for place in decoders.layout(sizes, config["vocab_size"]):
        shape = place.shape[::-1] if place.turned else place.shape
        value = rng.normal(scale=0.3, size=shape) + (len(shape) == 1)
        found[place.name] = value.astype(dtype)
    return found


def write(
    folder: pathlib.Path, config: dict[str, Any], tensors: dict[str, np.ndarray], shards: int = 1
) -> pathlib.Path:
    """The directory with a tokenizer, in so many files of tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    byte_pairs(qwen=config["model_type"] == "qwen2").save(str(folder / "tokenizer.json"))
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _ADDED,
        "eos_token": "<|end|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
