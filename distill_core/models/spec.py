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
from distill_core.runtime import parallel

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
    from distill_core.data.text.tokenizers import ELSEWHERE, Tokenizer

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
      InputError: the network cannot be built, fails, returns other than logits `[B, K]`, or has
        layers that work otherwise in training and is not told when it is trained.
    """
    build(spec)
    if is_text(spec):
        return _check_text(spec)
    try:
        logits, seen = _trace_training(spec, batch_size=2)
    except Exception as error:  # whatever a network raises: a user's own, or ours on wrong settings
        field = "model_kwargs" if spec["model_kwargs"] else "model"
        allowed = f"{spec['model']} fails on images {spec['input_shape']}: {_reason(error)}"
        raise InputError(field, spec[field], allowed) from error
    if logits.shape != (2, spec["num_classes"]):
        allowed = (
            f"must return logits [B, {spec['num_classes']}], not {list(logits.shape)} for B = 2"
        )
        raise InputError("model", spec["model"], allowed)
    if seen.untold:
        allowed = (
            f"has the layer {seen.untold[0]}, which works otherwise in training than after it: the "
            "network's __call__ must take `train` or `deterministic`"
        )
        raise InputError("model", spec["model"], allowed)


def check_statistics(spec: Mapping[str, Any], batch_size: int, mode: str):
    """Refuses a batch that leaves a single value per channel to a layer with batch statistics.

    Such a layer gives its bias, whatever the image: nothing of the layers below is learnt.

    Args:
      spec: of a network of images that `check` has let pass.
      batch_size: global.
      mode: as for `parallel.wrap`; layers of a user's own may not sum over its devices.

    Raises:
      InputError: on `batch_size`; names the layer.
    """
    axis = parallel.axis_name(mode)
    devices = jax.device_count() if axis else 1
    if batch_size > devices:  # each has several
        return
    _, seen = _trace_training(spec, batch_size=batch_size // devices, axis_name=axis)
    for layer, values in seen.values.items():
        if values == 1:
            allowed = (
                f"leaves the layer {layer} of {spec['model']} a single value per channel to "
                "normalise over, whose result is 0 whatever the image; take a larger batch, or a "
                "network without batch normalisation"
            )
            raise InputError("batch_size", batch_size, allowed)


def _trace_training(spec: Mapping[str, Any], *, batch_size: int, axis_name: str | None = None):
    """(shape of the logits, what its layers did) of a training step's pass, on each device."""
    from distill_core import models

    apply, variables = make_apply(spec, axis_name=axis_name), variable_shapes(spec)
    devices = jax.device_count() if axis_name else 1
    shape = (devices, batch_size, *spec["input_shape"])

    def pass_(variables, images, key):
        return apply(variables, images, train=True, key=key)[0]

    if axis_name:
        pass_ = jax.vmap(pass_, (None, 0, None), axis_name=axis_name)
    images = jax.ShapeDtypeStruct(shape if axis_name else shape[1:], jnp.float32)
    with models.watched(devices) as seen:
        logits = jax.eval_shape(pass_, variables, images, jax.eval_shape(jax.random.key, 0))
    return logits, seen


def _check_text(spec: Mapping[str, Any]):
    from distill_core import models

    hidden, variables = make_hidden(spec), variable_shapes(spec)
    tokens = jax.ShapeDtypeStruct((2, spec["max_length"]), jnp.int32)
    try:
        with models.watched() as seen:
            found = jax.eval_shape(hidden, variables, tokens, tokens)
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
    if layers := seen.dropout or seen.norms:
        allowed = (
            f"has the layer {layers[0]}, which works otherwise in training than after it: the "
            "method `hidden` of a language model is not told when it is trained"
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

    Where inputs are concrete, not traced, their values are checked: `apply` raises InputError, on
    `inputs`, for floats outside [0, 1], NaN among them, and for ids outside the vocabulary.
    """
    from distill_core import models
    from distill_core.data.images import preprocess

    module = build(spec, axis_name=axis_name)
    if is_text(spec):

        def apply_text(variables, inputs, *, train=False, where=None, key=None):
            preprocess.check_range(inputs, jnp.integer, 0, spec["num_classes"] - 1, "token ids")
            return models.apply_model(module, variables, inputs, train=train, where=where, key=key)

        return apply_text
    mean, std = tuple(spec["mean"]), tuple(spec["std"])
    shape = tuple(spec["input_shape"])

    def apply(variables, inputs, *, train=False, where=None, key=None):
        if tuple(inputs.shape[1:]) != shape:
            raise ValueError(f"inputs {tuple(inputs.shape)}: this network takes [B, {shape}]")
        if spec.get("outputs") != "images":  # else they are draws of a normal distribution
            preprocess.check_range(inputs, jnp.floating, 0, 1, "images that are floats")
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
