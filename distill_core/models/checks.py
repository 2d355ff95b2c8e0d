"""Checks, on shapes alone, whether a network can be built, run and trained on its inputs."""

import os
import traceback

import jax
import jax.numpy as jnp

from distill_core import models
from distill_core.config import InputError
from distill_core.models.network import Network
from distill_core.runtime import collectives, parallel


def check(network: Network):
    """Raises InputError unless the network can be built, run and trained on its inputs.

    It must return logits `[B, K]`, and be told when it is trained if a layer behaves differently.
    """
    network.module()
    if network.is_text:
        return _check_text(network)
    try:
        logits, seen = _trace_training(network, batch_size=2)
    except InputError as error:  # ours, of a network's own settings
        if error.field.startswith("model"):
            raise
        raise _failed(network, f"images {list(network.input_shape)}", error) from error
    except Exception as error:  # whatever a network raises: a user's own, or ours on wrong settings
        raise _failed(network, f"images {list(network.input_shape)}", error) from error
    if logits.shape != (2, network.num_classes):
        allowed = (
            f"must return logits [B, {network.num_classes}], not {list(logits.shape)} for B = 2"
        )
        raise InputError("model", network.model, allowed)
    if seen.untold:
        allowed = (
            f"has the layer {seen.untold[0]}, which behaves differently in training: the network's "
            "__call__ must take `train` or `deterministic`"
        )
        raise InputError("model", network.model, allowed)


def check_statistics(network: Network, batch_size: int, mode: str):
    """Refuses a global batch that leaves a layer with batch statistics one value per channel.

    Such a layer gives its bias, whatever the image, so that the layers below learn nothing. `mode`
    is as for `parallel.wrap`; a user's own layers may not sum over its devices.
    """
    devices = jax.device_count() if parallel.is_mapped(mode) else 1
    if batch_size > devices:  # each has several
        return
    _, seen = _trace_training(network, batch_size=batch_size // devices, devices=devices)
    for layer, values in seen.values.items():
        if values == 1:
            allowed = (
                f"leaves the layer {layer} of {network.model} a single value per channel to "
                "normalise over, whose result is 0 whatever the image; take a larger batch, or a "
                "network without batch normalisation"
            )
            raise InputError("batch_size", batch_size, allowed)


def _trace_training(network: Network, *, batch_size: int, devices: int = 1):
    """(shape of the logits, what the layers did) of a training step's pass, per device."""

    def pass_(variables, images, key):
        return network.apply(variables, images, train=True, key=key)[0]

    shape = (batch_size, *network.input_shape)
    if devices > 1:
        pass_ = jax.vmap(pass_, (None, 0, None), axis_name=collectives.AXIS)
        shape = (devices, *shape)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)
    with models.watched() as seen:
        logits = jax.eval_shape(pass_, network.shapes(), images, key)
    return logits, seen


def _check_text(network: Network):
    tokens = jax.ShapeDtypeStruct((2, network.max_length), jnp.int32)
    try:
        with models.watched() as seen:
            found = jax.eval_shape(network.hidden, network.shapes(), tokens, tokens)
    except Exception as error:
        raise _failed(network, f"tokens {list(tokens.shape)}", error) from error
    states, embedding = (tuple(each.shape) for each in found)
    width = states[-1:]
    if states != (*tokens.shape, *width) or embedding != (network.num_tokens, *width):
        allowed = (
            f"must have hidden states [B, L, D] and an embedding [{network.num_tokens}, D], not "
            f"{list(states)} and {list(embedding)} for tokens {list(tokens.shape)}"
        )
        raise InputError("model", network.model, allowed)
    if layers := seen.dropout or seen.norms:
        allowed = (
            f"has the layer {layers[0]}, which behaves differently in training, and the method "
            "`hidden` of a language model is not told when it is trained"
        )
        raise InputError("model", network.model, allowed)


def _failed(network: Network, inputs: str, error: Exception) -> InputError:
    field = "model_kwargs" if network.model_kwargs else "model"
    given = network.to_json()[field]
    return InputError(field, given, f"{network.model} fails on {inputs}: {_reason(error)}")


def _reason(error: Exception) -> str:
    """The exception's message, with the last line of the network's own code that raised it."""
    if isinstance(error, InputError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    frame = [f for f in frames if "site-packages" not in f.filename][-1:] or frames[-1:]
    where = f"{os.path.basename(frame[0].filename)}:{frame[0].lineno}"
    return f"{type(error).__name__} in {where}: {str(error)[:300]}"
