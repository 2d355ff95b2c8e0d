"""Llama, Mistral, Qwen and Gemma 3 in Hugging Face's terms: config.json and names of tensors."""

from collections.abc import Iterator, Mapping
from typing import Any

from distill_core.models.foreign.weights_file import Place, RefusedError
from distill_core.models.text.decoder import Decoder, default_mlp_width
from distill_core.models.text.rotary import SCALINGS

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
_SIZES = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "width": "hidden_size",
    "head_dim": "head_dim",
    "mlp_width": "intermediate_size",
}
_OTHERS = (
    "norm_epsilon", "tied", "rope_theta", "rope_scaling", "window", "full_layers", "qkv_bias",
    "qk_norm", "full_every", "local_rope_theta", "query_scalar", "gemma",
)  # fmt: skip
# Of no other value do we know what it does.
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
_READ = {
    *_SIZES.values(), *_FIXED, "model_type", "vocab_size", "max_position_embeddings",
    "rms_norm_eps", "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters",
    "original_max_position_embeddings", "sliding_window", "use_sliding_window",
    "max_window_layers", "layer_types",
}  # fmt: skip
_GEMMA, _GEMMA_FIXED = "gemma3_text", {"hidden_activation": "gelu_pytorch_tanh"}
_GEMMA_READ = {
    *_GEMMA_FIXED, "query_pre_attn_scalar", "rope_local_base_freq", "sliding_window_pattern",
    "_sliding_window_pattern",
}  # fmt: skip
_LAYERS = ("full_attention", "sliding_attention")
# Settings of training, of generating and of other tools, which leave the logits as they are.
WITHOUT_EFFECT = {
    "_name_or_path", "architectures", "attention_dropout", "auto_map", "bos_token_id",
    "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "dtype", "torch_dtype",
    "initializer_range", "do_sample", "tokenizer_class", "is_llama_config", "pretraining_tp",
    "transformers_version",
    "transformers.js_config", "unsloth_fixed", "unsloth_version", "use_cache", "id2label",
    "label2id", "problem_type", "return_dict", "chunk_size_feed_forward", "max_length",
    "min_length", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "num_beams", "num_beam_groups", "num_return_sequences",
    "task_specific_params", "_attn_implementation", "_attn_implementation_autoset",
    "_flash_attn_2_enabled",
    "cache_implementation", "keys_to_ignore_at_inference", "hidden_dropout", "max_sequence_length",
}  # fmt: skip


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `Decoder`'s settings of a config.json.

    Raises:
      RefusedError: names the first setting that is missing or not understood.
    """
    family = config["model_type"]
    gemma = family == _GEMMA
    fixed, read = (_FIXED | _GEMMA_FIXED, _READ | _GEMMA_READ) if gemma else (_FIXED, _READ)
    for name, value in config.items():
        if name == "partial_rotary_factor" and value == 1:
            continue
        if name in fixed and value != fixed[name]:
            raise _misfit(name, value, f"{fixed[name]!r} is needed")
        if value and name not in read and name not in WITHOUT_EFFECT:
            raise _misfit(name, value, "it is not understood, and may change the logits")
    found: dict[str, Any] = {}
    for ours, theirs in _SIZES.items():
        value = config.get(theirs)
        if value is None and ours == "num_kv_heads" and family == "llama":
            value = found["num_heads"]
        if value is None and ours == "head_dim" and family not in ("qwen3", _GEMMA):
            value = found["width"] // found["num_heads"]
        if type(value) is not int or not 1 <= value < 2**31:
            raise _misfit(theirs, value, "a positive number is needed")
        found[ours] = value
    epsilon = config.get("rms_norm_eps", 1e-6)
    if not _is_number(epsilon, above=0):
        raise _misfit("rms_norm_eps", epsilon, "a positive number is needed")
    if not isinstance(tied := config.get("tie_word_embeddings", gemma), bool):
        raise _misfit("tie_word_embeddings", tied, "true or false is needed")
    found |= {"norm_epsilon": float(epsilon), "tied": tied}
    if gemma:
        return found | _gemma(config, found["num_layers"])
    found |= _rope(config) | _window(config, found["num_layers"])
    if family == "qwen2":
        found["qkv_bias"] = True
    if family == "qwen3":
        found["qk_norm"] = True
    return found


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    where = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.get(where) or {}
    if not isinstance(given, Mapping):
        raise _misfit(where, given, "names and values are needed")
    given = dict(given)
    theta = given.pop("rope_theta", config.get("rope_theta", 10_000.0))
    if not _is_number(theta, above=1):
        raise _misfit("rope_theta", theta, "a number above 1 is needed")
    kinds = [given.pop(name) for name in ("rope_type", "type") if name in given]
    kind = kinds[0] if kinds else "default"
    if kind == "default":
        if any(given.values()):
            raise _misfit(where, dict(config[where]), "it is not understood")
        return {"rope_theta": float(theta)}
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise _misfit(f"{where}.rope_type", kind, f"one of {', '.join(SCALINGS)} is needed")
    context = "original_max_position_embeddings"
    if context in SCALINGS[kind] and given.get(context) is None:
        given[context] = config.get(context) or config.get("max_position_embeddings")
    if given.get("partial_rotary_factor") == 1:
        del given["partial_rotary_factor"]
    scaling = {name: value for name, value in given.items() if value is not None}
    for name in scaling.keys() - SCALINGS[kind].keys():
        raise _misfit(f"{where}.{name}", scaling[name], f"{kind} has no such setting")
    return {"rope_theta": float(theta), "rope_scaling": {"type": kind, **scaling}}


def _gemma(config: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    ropes = config.get("rope_parameters") or {}
    if not isinstance(ropes, Mapping) or ropes.keys() - set(_LAYERS):
        raise _misfit("rope_parameters", ropes, f"{' and '.join(_LAYERS)} are needed")
    full, local = map(ropes.get, _LAYERS)
    theta = config.get("rope_theta", 1e6)
    found = _rope({**config, "rope_theta": theta, "rope_parameters": full})
    near = _rope({"rope_theta": config.get("rope_local_base_freq", 1e4), "rope_parameters": local})
    if "rope_scaling" in near:
        raise _misfit("rope_parameters.sliding_attention", local, "rope_type default is needed")
    types, every = config.get("layer_types"), config.get("_sliding_window_pattern", 6)
    every = config.get("sliding_window_pattern", every)
    if isinstance(types, list) and _LAYERS[0] in types:
        every = types.index(_LAYERS[0]) + 1
    window, scalar = config.get("sliding_window"), config.get("query_pre_attn_scalar", 256)
    numbers = {"sliding_window": window, "query_pre_attn_scalar": scalar}
    for name, value in {**numbers, "sliding_window_pattern": every}.items():
        if type(value) is not int or not 1 <= value < 2**31:
            raise _misfit(name, value, "a positive number is needed")
    if types not in (None, implied := _layer_types(every, num_layers)):
        raise _misfit("layer_types", types, f"{implied} is needed")
    found |= {"gemma": True, "qk_norm": True, "window": window, "query_scalar": float(scalar)}
    return found | {"full_every": every, "local_rope_theta": near["rope_theta"]}


def _layer_types(full_every: int, num_layers: int) -> list[str]:
    return [_LAYERS[(i + 1) % full_every != 0] for i in range(num_layers)]


def _window(config: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    family, found = config["model_type"], {}
    width = config.get("sliding_window")
    used = family == "mistral" or (family != "llama" and config.get("use_sliding_window"))
    if used and width is not None:
        if type(width) is not int or width < 1:
            raise _misfit("sliding_window", width, "a positive number is needed")
        found = {"window": width}
        if family != "mistral":
            full = config.get("max_window_layers", 28)
            if type(full) is not int or full < 0:
                raise _misfit("max_window_layers", full, "a number of layers is needed")
            found["full_layers"] = min(full, num_layers)
    full = found.get("full_layers", 0) if found else num_layers
    implied = ["full_attention"] * full + ["sliding_attention"] * (num_layers - full)
    if (types := config.get("layer_types")) not in (None, implied):
        raise _misfit("layer_types", types, f"{implied} is needed")
    return found


def _is_number(value: Any, *, above: float) -> bool:
    """Whether it is a number that float32 holds."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and above < value < 1e30


def _misfit(name: str, value: Any, needed: str) -> RefusedError:
    said = "lacks" if value is None else "has"
    given = "" if value is None else f" {repr(value)[:60]}"
    return RefusedError(f"config.json {said} {name}{given}; {needed}")


def sizes(module: Decoder) -> dict[str, Any]:
    """A module's settings, all of them, as `config` and `layout` take them."""
    found = {name: getattr(module, name) for name in (*_SIZES, *_OTHERS)}
    found["num_kv_heads"] = module.num_kv_heads or module.num_heads
    found["head_dim"] = module.head_dim or module.width // module.num_heads
    return found | {"mlp_width": module.mlp_width or default_mlp_width(module.width)}


def config(sizes: Mapping[str, Any], vocab_size: int, max_length: int) -> dict[str, Any]:
    """The config.json of a `Decoder` with these settings, all of them given; RefusedError if no
    family has them."""
    family = "llama"
    windowed, mixed = sizes["window"] is not None, sizes["full_layers"] > 0
    own = [sizes[name] for name in ("full_every", "local_rope_theta", "query_scalar", "gemma")]
    if gemma := all(own) and windowed and sizes["qk_norm"] and not mixed:
        family = _GEMMA
    elif sizes["qkv_bias"] or sizes["qk_norm"]:
        family = "qwen2" if sizes["qkv_bias"] else "qwen3"
    elif windowed or sizes["width"] % sizes["num_heads"]:  # which Llama's code refuses
        family = "mistral"
    both = sizes["qkv_bias"] and sizes["qk_norm"]
    if both or (family == "mistral" and mixed) or (any(own) and not gemma):
        needed = "qkv_bias with qk_norm, full_layers without either, or some of Gemma's settings"
        raise RefusedError(f"no family of Hugging Face's has its combination: {needed}")
    scaling = dict(sizes["rope_scaling"] or {})
    rope = {"rope_theta": sizes["rope_theta"], "rope_type": scaling.pop("type", "default")}
    found = {
        "model_type": family,
        "architectures": [FAMILIES[family]],
        "vocab_size": vocab_size,
        "max_position_embeddings": max_length,
        **{theirs: sizes[ours] for ours, theirs in _SIZES.items()},
        "hidden_act": "silu",
        "rms_norm_eps": sizes["norm_epsilon"],
        "tie_word_embeddings": sizes["tied"],
        "rope_parameters": {**rope, **scaling},
        # For versions of `transformers` before 5.
        "rope_theta": sizes["rope_theta"],
        "rope_scaling": {"rope_type": rope["rope_type"], **scaling} if scaling else None,
        "attention_dropout": 0.0,
    }
    if gemma:
        del found["hidden_act"]
        local = {"rope_theta": sizes["local_rope_theta"], "rope_type": "default"}
        found |= _GEMMA_FIXED | {
            "rope_parameters": dict(zip(_LAYERS, (found["rope_parameters"], local), strict=True)),
            "rope_local_base_freq": sizes["local_rope_theta"],
            "layer_types": _layer_types(sizes["full_every"], sizes["num_layers"]),
            "sliding_window_pattern": sizes["full_every"],
            "sliding_window": sizes["window"],
            "query_pre_attn_scalar": int(sizes["query_scalar"]),
        }
    elif family == "mistral":
        found["sliding_window"] = sizes["window"]
    elif family != "llama":
        found |= {"use_sliding_window": windowed, "sliding_window": sizes["window"]}
        found["max_window_layers"] = sizes["full_layers"] if windowed else sizes["num_layers"]
    if family in ("llama", "qwen3", _GEMMA):
        found["attention_bias"] = False
    return found


def layout(sizes: Mapping[str, Any], vocab_size: int) -> Iterator[Place]:
    """Where each tensor belongs, from settings as `settings` returns them."""
    width, heads, groups = sizes["width"], sizes["num_heads"], sizes["num_kv_heads"]
    head_dim, mlp = sizes["head_dim"], sizes["mlp_width"]
    yield Place("model.embed_tokens.weight", ("embed_tokens",), (vocab_size, width))
    if not sizes["tied"]:
        yield Place("lm_head.weight", ("lm_head",), (vocab_size, width))
    dense = {
        "self_attn.q_proj": (width, heads * head_dim),
        "self_attn.k_proj": (width, groups * head_dim),
        "self_attn.v_proj": (width, groups * head_dim),
        "self_attn.o_proj": (heads * head_dim, width),
        "mlp.gate_proj": (width, mlp),
        "mlp.up_proj": (width, mlp),
        "mlp.down_proj": (mlp, width),
    }
    norms = {"input_layernorm": width, "post_attention_layernorm": width}
    if sizes.get("gemma"):
        norms |= {"pre_feedforward_layernorm": width, "post_feedforward_layernorm": width}
    if sizes.get("qk_norm"):
        norms |= {"self_attn.q_norm": head_dim, "self_attn.k_norm": head_dim}
    for i in range(sizes["num_layers"]):
        theirs, ours = f"model.layers.{i}", f"layers_{i}"
        for name, size in norms.items():
            place = (ours, name.rpartition(".")[2], "scale")
            yield Place(f"{theirs}.{name}.weight", place, (size,))
        for name, shape in dense.items():
            ours_too = name.rpartition(".")[2]
            yield Place(f"{theirs}.{name}.weight", (ours, ours_too, "kernel"), shape, turned=True)
            if sizes.get("qkv_bias") and ours_too in ("q_proj", "k_proj", "v_proj"):
                yield Place(f"{theirs}.{name}.bias", (ours, ours_too, "bias"), shape[1:])
    yield Place("model.norm.weight", ("norm", "scale"), (width,))
