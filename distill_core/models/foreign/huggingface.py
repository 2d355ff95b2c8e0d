"""Language models as Hugging Face's libraries store them: GPT-2, Llama, Mistral, Qwen, Gemma 3.

    model = distill_core.load_model("models/SmolLM2-135M")         # a directory
    model = distill_core.load_model("gpt2/model.safetensors")      # a file of GPT-2's

A directory holds config.json, one `.safetensors` file or several and their index, and, if it has a
tokenizer, tokenizer.json with tokenizer_config.json or generation_config.json, which name its
special tokens and chat templates. Nothing in it is run. `files` writes such a directory, for
`transformers` to load.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from distill_core.config import InputError
from distill_core.models.foreign import decoders, gpt2, weights_file
from distill_core.models.foreign.weights_file import RefusedError, Tensors, read_object
from distill_core.models.network import LoadedModel, Network
from distill_core.runtime import strict_json

_KINDS = ("bos", "eos", "pad", "unk")
_HEAD = "lm_head.weight"
_MORE_TEMPLATES = "additional_chat_templates"


def is_directory(path: Any) -> bool:
    """Whether a path is a local directory of Hugging Face's rather than a workdir of ours."""
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir() or (folder / "checkpoints").exists():
        return False
    names = ("config.json", weights_file.INDEX)
    return any((folder / name).exists() for name in names) or any(folder.glob("*.safetensors"))


def load_directory(path: Any, sharding: Any = None) -> tuple[Network, dict[str, Any]]:
    """(network, variables in the dtypes of the files).

    `num_classes` are the rows of the embedding, of which the tokenizer's are tokens; `sharding` is
    that of `distill_core.load_model`.

    Raises:
      InputError: on `checkpoint`: names the first file, setting or tensor that is missing, unknown
        or does not fit.
    """
    folder = pathlib.Path(path).expanduser()
    with weights_file.refusing("checkpoint", path):
        if not (folder / "config.json").is_file():
            raise RefusedError("has no config.json, which says what network it is")
        given = read_object(folder / "config.json", "config.json")
        known = ("gpt2", *decoders.FAMILIES)
        if (kind := given.get("model_type")) not in known:
            raise RefusedError(f"config.json has model_type {kind!r}; known are {', '.join(known)}")
        tensors = weights_file.directory_tensors(folder)
        if kind == "gpt2":
            network, params = _gpt2(tensors, given, sharding)
        else:
            network, params = _decoder(tensors, given, sharding)
        written = _tokenizer(folder, given, network.num_classes)
    return dataclasses.replace(network, **written), {"params": params}


def load_file(path: Any, sharding: Any = None) -> tuple[Network, dict[str, Any]]:
    """(network, variables) of a GPT-2's `.safetensors` file; config.json, tokenizer.json and what
    names its special tokens are read if they lie beside it. Raises as `load_directory`."""
    file = pathlib.Path(path).expanduser()
    with weights_file.refusing("checkpoint", path):
        given, beside = {}, file.parent / "config.json"
        if beside.exists():
            given = read_object(beside, "config.json")
        network, params = _gpt2(Tensors([file]), given, sharding)
        written = _tokenizer(file.parent, given, network.num_classes)
    return dataclasses.replace(network, **written), {"params": params}


def weights_digest(path: Any) -> str:
    """SHA-256 of the files with the weights of a directory, or of a file."""
    place = pathlib.Path(path).expanduser()
    with weights_file.refusing("checkpoint", path):
        found = weights_file.directory_tensors(place) if place.is_dir() else Tensors([place])
    return found.digest()


def _gpt2(
    tensors: Tensors, given: Mapping[str, Any], sharding: Any
) -> tuple[Network, dict[str, Any]]:
    sizes, params = gpt2.read(tensors, given, sharding)
    num_classes, max_length = sizes.pop("num_classes"), sizes.pop("max_length")
    return Network("transformer", num_classes, sizes, max_length=max_length), params


def _decoder(
    tensors: Tensors, given: Mapping[str, Any], sharding: Any
) -> tuple[Network, dict[str, Any]]:
    for name in ("vocab_size", "max_position_embeddings"):
        if type(value := given.get(name)) is not int or not 1 <= value < 2**31:
            raise RefusedError(f"config.json has {name} {value!r}; a positive number is needed")
    sizes, vocab_size = decoders.settings(given), given["vocab_size"]
    kind = given["model_type"]
    places = decoders.layout(sizes, vocab_size)
    params, others = weights_file.read_params(tensors, places, kind, sharding)
    for name in sorted(others):
        # Tied heads and the frequencies of the positions are sometimes stored all the same.
        if name == _HEAD and sizes["tied"]:
            if not tensors.are_equal(name, "model.embed_tokens.weight"):
                needed = "they must be equal, as config.json has tie_word_embeddings"
                raise RefusedError(f"tensor {_HEAD} differs from the embedding; {needed}")
        elif not name.endswith("inv_freq"):
            raise RefusedError(f"tensor {name} is not one of a {kind}'s")
    network = Network("decoder", vocab_size, sizes, max_length=given["max_position_embeddings"])
    try:
        network.shapes()
    except InputError as error:
        raise RefusedError(f"config.json is refused: {error}") from error
    return network, params


def _tokenizer(folder: pathlib.Path, given: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Fields of the network, {} without a tokenizer."""
    files = {}
    for name in ("tokenizer_config.json", "generation_config.json"):
        files[name] = read_object(folder / name, name) if (folder / name).exists() else {}
    settings, numbered = files["tokenizer_config.json"], (files["generation_config.json"], given)
    file = folder / "tokenizer.json"
    if not file.exists():
        return {}
    from distill_core.data.text.tokenizers import Tokenizer

    try:
        text = file.read_text(encoding="utf-8")
        named = _special_tokens(text, settings, numbered)
        tokenizer = Tokenizer.from_json(text, special_tokens=named)
        if tokenizer.vocab_size > rows:  # Gemma 3's added token for images has no embedding
            state = json.loads(text)
            state["added_tokens"] = [each for each in state["added_tokens"] if each["id"] < rows]
            fewer = strict_json.encode(state)
            tokenizer = Tokenizer.from_json(fewer, special_tokens=named)
    except (OSError, ValueError) as error:  # InputError is a ValueError
        raise RefusedError(f"tokenizer.json is refused ({error})") from error
    if tokenizer.vocab_size > rows:
        has = f"tokenizer.json has {tokenizer.vocab_size} tokens"
        raise RefusedError(f"{has}; there are embeddings for {rows}")
    return {
        "tokenizer": tokenizer.to_json(),
        "special_tokens": tokenizer.special_tokens,
        "vocab_size": tokenizer.vocab_size if tokenizer.vocab_size < rows else None,
        "chat_templates": _chat_templates(folder, settings),
        "eos_ids": _eos_ids(tokenizer, numbered),
    }


def _chat_templates(folder: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name: of files, else those in tokenizer_config.json, as `transformers`."""
    found = {file.stem: file for file in sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))}
    if (file := folder / "chat_template.jinja").exists():
        found["default"] = file
    try:
        if found:
            return {name: file.read_text(encoding="utf-8") for name, file in found.items()}
    except (OSError, ValueError) as error:
        raise RefusedError(f"a chat template cannot be read ({error})") from error
    given = settings.get("chat_template") or {}
    if isinstance(given, str):
        given = {"default": given}
    elif isinstance(given, list) and all(isinstance(each, Mapping) for each in given):
        given = {each.get("name"): each.get("template") for each in given}
    if not isinstance(given, Mapping) or not all(map(_is_text, (*given, *given.values()))):
        told = f"chat_template {repr(given)[:60]}; a template, or several by name, is needed"
        raise RefusedError(f"tokenizer_config.json has {told}")
    return dict(given)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _eos_ids(tokenizer: Any, numbered: tuple[Mapping[str, Any], ...]) -> tuple[int, ...]:
    """The tokenizer's `eos_ids`, of the first file that names any which are tokens."""
    for source in numbered:
        given = source.get("eos_token_id")
        ids = given if isinstance(given, list) else [given]
        ids = tuple(i for i in ids if type(i) is int and 0 <= i < tokenizer.vocab_size)
        if ids:
            return () if ids == (tokenizer.eos_id,) else ids
    return ()


def _special_tokens(
    tokenizer: str, settings: Mapping[str, Any], numbered: tuple[Mapping[str, Any], ...]
) -> dict[str, str]:
    """The special tokens by name, {} where no file names an end of text."""
    import tokenizers

    try:
        inner = tokenizers.Tokenizer.from_str(tokenizer)
    except Exception:  # the library raises a bare Exception; `Tokenizer.from_json` says why
        return {}
    found = {}
    for kind in _KINDS:
        token = settings.get(f"{kind}_token")
        token = token.get("content") if isinstance(token, Mapping) else token
        for source in numbered:
            number = source.get(f"{kind}_token_id")
            number = number[0] if isinstance(number, list) and number else number
            if token is None and type(number) is int and 0 <= number < 2**31:
                token = inner.id_to_token(number)
        if kind == "eos" and isinstance(token, str) and inner.token_to_id(token) is None:
            raise RefusedError(f"its eos_token {token!r} is not a token of tokenizer.json")
        if isinstance(token, str) and inner.token_to_id(token) is not None:
            found[kind] = token
    return found if "eos" in found else {}


def files(loaded: LoadedModel) -> dict[str, bytes]:
    """The files of a directory that `transformers` loads, by name; parameters keep their dtypes.

    Raises:
      RefusedError: the network is none of these families'.
    """
    from safetensors.numpy import save

    network = loaded.network
    if network.model == "transformer":
        module = network.module()
        sizes = {name: getattr(module, name) for name in ("num_layers", "num_heads", "width")}
        sizes |= {"num_classes": network.num_classes, "max_length": network.max_length}
        described = gpt2.config(**sizes)
        places = [
            place._replace(name=f"{gpt2.PREFIX}{place.name}") for place in gpt2.layout(**sizes)
        ]
    elif network.model == "decoder":
        sizes = decoders.sizes(network.module())
        described = decoders.config(sizes, network.num_classes, network.max_length or 1)
        places = list(decoders.layout(sizes, network.num_classes))
    else:
        known = "transformer (GPT-2) and decoder (Llama, Mistral, Qwen, Gemma)"
        raise RefusedError(f"is a {network.model}; Hugging Face's formats are for {known}")
    flat = traverse_util.flatten_dict(loaded.variables["params"])
    values = {place.name: np.asarray(flat[place.path]) for place in places}
    tensors = {
        place.name: np.ascontiguousarray(
            values[place.name].T if place.turned else values[place.name]
        )
        for place in places
    }
    described["dtype"] = described["torch_dtype"] = values[places[0].name].dtype.name
    tokenizer = loaded.tokenizer
    found = {"model.safetensors": save(tensors, metadata={"format": "pt"})}
    if tokenizer is not None:
        kinds = [kind for kind in _KINDS if kind in (tokenizer.special_tokens or _KINDS)]
        ids = {kind: getattr(tokenizer, f"{kind}_id") for kind in kinds}
        numbered: dict[str, Any] = {
            f"{kind}_token_id": i for kind, i in ids.items() if kind != "unk"
        }
        if ends := list(tokenizer.eos_ids):
            numbered["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        described |= numbered
        found["generation_config.json"] = _encoded(numbered)
        found["tokenizer.json"] = tokenizer.to_json().encode()
        names = {f"{kind}_token": tokenizer.token(i) for kind, i in ids.items()}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
        settings["clean_up_tokenization_spaces"] = False
        if templates := tokenizer.chat_templates:
            several = [{"name": name, "template": text} for name, text in templates.items()]
            is_one = templates.keys() == {"default"}
            settings["chat_template"] = templates["default"] if is_one else several
        found["tokenizer_config.json"] = _encoded(settings)
    return {**found, "config.json": _encoded(described)}


def _encoded(value: Mapping[str, Any]) -> bytes:
    return f"{strict_json.encode(value, indent=2)}\n".encode()
