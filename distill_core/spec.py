"""What a checkpoint says of a network: enough to rebuild it, its preprocessing included.

Networks of images have `input_shape`, `mean`, `std` and `classes`; networks of text `max_length`
and the tokenizer, and `num_classes` is the size of their vocabulary.
"""

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from distill_core.config import InputError

PyTree = Any

_RESERVED = {
    "num_classes": "comes from the data set",
    "max_length": "comes from the field length",
    "axis_name": "comes from the devices",
    "name": "is a module's own; the network is named by the field model",
    "parent": "is a module's own",
}


def image_spec(
    *, model: str, model_kwargs: Mapping[str, Any], dataset, compute_dtype: str = "float32"
) -> dict:
    """The JSON-able spec of an image classifier trained on `dataset`.

    One trained in bfloat16 says so, and computes in it wherever it is loaded. `classes_named` is
    False where the classes are numbers without names, and is left out where they have names.
    """
    precision = {} if compute_dtype == "float32" else {"compute_dtype": compute_dtype}
    return {
        "model": model,
        "model_kwargs": dict(model_kwargs),
        "num_classes": dataset.num_classes,
        "input_shape": list(dataset.input_shape),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "classes": list(dataset.classes),
        **({} if dataset.named else {"classes_named": False}),
        **precision,
    }


def text_spec(
    *,
    model: str,
    model_kwargs: Mapping[str, Any],
    tokenizer: Any,
    max_length: int,
    classes: Sequence[str] = (),
) -> dict:
    """The JSON-able spec of a language model over a tokenizer's vocabulary.

    `classes` are what the class numbers stand for that it answers with, if it classifies.
    """
    return {
        "model": model,
        "model_kwargs": dict(model_kwargs),
        "num_classes": tokenizer.vocab_size,
        "max_length": max_length,
        "tokenizer": tokenizer.to_json(),
        "tokenizer_from": tokenizer.made_from,
        **({"classes": list(classes)} if classes else {}),
    }


def is_text(spec: Mapping[str, Any]) -> bool:
    """Whether the network reads token ids, not images."""
    return "max_length" in spec


def tokenizer(spec: Mapping[str, Any]):
    """The tokenizer of a network of text; None for images, or if the spec has none."""
    if not spec.get("tokenizer"):
        return None
    from distill_core.data.tokenizers import ELSEWHERE, Tokenizer

    return Tokenizer.from_json(spec["tokenizer"], spec.get("tokenizer_from", ELSEWHERE))


def build(spec: Mapping[str, Any], *, axis_name: str | None = None):
    """The spec's Linen module.

    Raises:
      InputError: no such model, or settings that it does not take.
    """
    from distill_core import models

    for name, source in _RESERVED.items():
        if name in spec["model_kwargs"]:
            given = spec["model_kwargs"][name]
            raise InputError(f"model_kwargs.{name}", given, f"{source}; leave it out")
    text = {"max_length": spec["max_length"]} if is_text(spec) else {}
    return models.create_model(
        spec["model"],
        num_classes=spec["num_classes"],
        axis_name=axis_name,
        **text,
        **spec["model_kwargs"],
    )


def check(spec: Mapping[str, Any]):
    """Tries, on shapes alone, whether the network can be made, run and trained on its inputs.

    Raises:
      InputError: the network cannot be built, fails, or returns other than logits `[B, K]`.
    """
    build(spec)
    if is_text(spec):
        return _check_text(spec)
    images = jax.ShapeDtypeStruct((2, *spec["input_shape"]), jnp.float32)
    apply = make_apply(spec)
    try:
        logits, _ = jax.eval_shape(
            lambda variables, images, key: apply(variables, images, train=True, key=key),
            variable_shapes(spec),
            images,
            jax.eval_shape(jax.random.key, 0),
        )
    except Exception as error:  # whatever a network raises: a user's own, or ours on wrong settings
        field = "model_kwargs" if spec["model_kwargs"] else "model"
        allowed = f"{spec['model']} fails on images {spec['input_shape']}: {_reason(error)}"
        raise InputError(field, spec[field], allowed) from error
    if logits.shape != (2, spec["num_classes"]):
        allowed = (
            f"must return logits [B, {spec['num_classes']}], not {list(logits.shape)} for B = 2"
        )
        raise InputError("model", spec["model"], allowed)


def _check_text(spec: Mapping[str, Any]):
    hidden = make_hidden(spec)
    tokens = jax.ShapeDtypeStruct((2, spec["max_length"]), jnp.int32)
    try:
        found = jax.eval_shape(hidden, variable_shapes(spec), tokens, tokens)
    except Exception as error:
        field = "model_kwargs" if spec["model_kwargs"] else "model"
        allowed = f"{spec['model']} fails on tokens {list(tokens.shape)}: {_reason(error)}"
        raise InputError(field, spec[field], allowed) from error
    states, embedding = (tuple(each.shape) for each in found)
    width = states[-1:]
    if states != (*tokens.shape, *width) or embedding != (spec["num_classes"], *width):
        allowed = (
            f"must have hidden states [B, L, D] and an embedding [{spec['num_classes']}, D], not "
            f"{list(states)} and {list(embedding)} for tokens {list(tokens.shape)}"
        )
        raise InputError("model", spec["model"], allowed)


def init(spec: Mapping[str, Any], key: jax.Array) -> tuple[PyTree, PyTree]:
    """Fresh (params, model_state) of the network."""
    from distill_core import models

    if is_text(spec):
        return models.init_model(build(spec), key, (spec["max_length"],), dtype=jnp.int32)
    return models.init_model(build(spec), key, tuple(spec["input_shape"]))


def variable_shapes(spec: Mapping[str, Any]) -> PyTree:
    """Shapes and dtypes of the network's variables `{"params": …, **model_state}`."""
    params, model_state = jax.eval_shape(lambda key: init(spec, key), jax.random.key(0))
    return {"params": params, **model_state}


def make_hidden(spec: Mapping[str, Any]) -> Callable:
    """`hidden(variables, tokens, segments=None) -> ([B, L, D], embedding [V, D])` of a text model.

    Logits are hidden · embeddingᵀ, for losses that never hold them all. `tokens` and `segments` are
    integers `[B, L]`; see `models.Transformer.hidden`.
    """
    module = build(spec)

    def hidden(variables, tokens, segments=None):
        states = module.apply(variables, tokens, segments, method="hidden")
        return states, module.apply(variables, method="embedding")

    return hidden


def make_apply(spec: Mapping[str, Any], *, axis_name: str | None = None) -> Callable:
    """`apply(variables, inputs, *, train=False, where=None, key=None)`; preprocessing is inside.

    Images are uint8 or floats in [0, 1], `[B, H, W, C]`; returns float32 logits `[B, K]`, with
    `train=True` (logits, updated model_state). With a `compute_dtype` in the spec, parameters and
    pixels are rounded to it; parameters as stored, batch statistics and logits stay float32.
    Text is token ids `[B, L]`, one line a row; returns logits `[B, L, V]`.
    """
    from distill_core import models
    from distill_core.data import preprocess

    module = build(spec, axis_name=axis_name)
    if is_text(spec):

        def apply_text(variables, inputs, *, train=False, where=None, key=None):
            return models.apply_model(module, variables, inputs, train=train, where=where, key=key)

        return apply_text
    mean, std = tuple(spec["mean"]), tuple(spec["std"])
    shape = tuple(spec["input_shape"])

    def apply(variables, inputs, *, train=False, where=None, key=None):
        if tuple(inputs.shape[1:]) != shape:
            raise ValueError(f"inputs {tuple(inputs.shape)}: this network takes [B, {shape}]")
        images = preprocess.preprocess(inputs, mean, std)
        variables, images = rounded(spec, variables, images)
        if not train:
            logits = models.apply_model(module, variables, images, train=False, where=where)
            return logits.astype(jnp.float32)
        logits, model_state = models.apply_model(
            module, variables, images, train=True, where=where, key=key
        )
        return logits.astype(jnp.float32), model_state

    return apply


def rounded(spec: Mapping[str, Any], variables: PyTree, images: jax.Array) -> tuple[PyTree, Any]:
    """Parameters and preprocessed images in the spec's `compute_dtype`; other collections stay."""
    dtype = jnp.dtype(spec.get("compute_dtype", "float32"))
    if dtype == jnp.float32:
        return variables, images
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), variables["params"])
    return {**variables, "params": params}, images.astype(dtype)


def _reason(error: Exception) -> str:
    """An exception in words, with the last line of the network's own code that it came from."""
    if isinstance(error, InputError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    frame = [f for f in frames if "site-packages" not in f.filename][-1:] or frames[-1:]
    where = f"{os.path.basename(frame[0].filename)}:{frame[0].lineno}"
    return f"{type(error).__name__} in {where}: {str(error)[:300]}"
