"""Proxy students: small networks that are distilled from stored logits, to see what they learn."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_core import checkpoint
from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.losses import distillation_loss
from distill_core.models import spec
from distill_core.training.step import STREAM_INIT, TrainState, make_train_step, stream_key

ALPHA = 0.9  # the paper's weight of the distillation term
BATCH = 32  # small: many updates for the arithmetic


def proxy_network(
    network: Mapping[str, Any],
    model: str | None,
    model_kwargs: Mapping[str, Any],
    wider: int = 1,
) -> dict[str, Any]:
    """The spec of a proxy for the inputs and classes of `network`; by default a small CNN, `wider`
    times as wide.

    Raises:
      InputError: on `check_model` or `check_model_kwargs`: it cannot be built or run.
    """
    if model is None and model_kwargs:
        allowed = "belong to a check_model: name it, or leave them out"
        raise InputError("check_model_kwargs", dict(model_kwargs), allowed)
    if model is None:
        halvings = int(np.log2(min(network["input_shape"][:2]) / 2))  # down to 2×2 or 3×3
        widths = tuple(8 * wider * 2**k for k in range(min(3, max(1, halvings))))
        model, model_kwargs = "cnn", {"widths": widths, "hidden": 32 * wider}
    kept = ("num_classes", "input_shape", "mean", "std", "classes")
    found = {name: network[name] for name in kept}
    found |= {"model": model, "model_kwargs": dict(model_kwargs)}
    try:
        spec.check(found)
    except InputError as error:
        raise InputError(f"check_{error.field}", error.given, error.allowed) from None
    return found


def distilled(
    network: Mapping[str, Any],
    taught: Mapping[str, np.ndarray],
    *,
    temperature: float,
    steps: int,
    seed: int,
) -> checkpoint.LoadedModel:
    """A proxy trained on `image`, `label` and a teacher's `logits`, rows of examples."""
    step, tx = _proxy_step(json.dumps(network), steps)
    rng = jax.random.key(seed)
    params, model_state = spec.init(network, stream_key(rng, STREAM_INIT, 0))
    state = TrainState.create(params=params, model_state=model_state, tx=tx, rng=rng)
    frozen = jax.device_put({**taught, "temperature": np.float32(temperature)})
    for i in range(steps):
        rows = sampling.batch_indices(seed, i, BATCH, len(taught["label"])).astype(np.int32)
        state, _ = step(state, frozen, rows)
    variables = jax.device_get({"params": state.params, **state.model_state})
    return checkpoint.LoadedModel(variables, dict(network), spec.make_apply(network))


@functools.lru_cache(maxsize=8)
def _proxy_step(network: str, steps: int):
    apply = spec.make_apply(json.loads(network))
    tx = optax.adam(optax.cosine_onecycle_schedule(steps, 1e-2))

    def loss_fn(params, model_state, frozen, rows, key):
        taught = {name: frozen[name][rows] for name in ("image", "label", "logits")}
        variables = {"params": params, **model_state}
        logits, model_state = apply(variables, taught["image"], train=True, key=key)
        values = distillation_loss(
            logits,
            taught["logits"],
            taught["label"],
            temperature=frozen["temperature"],
            alpha=ALPHA,
        )
        return values, jnp.ones_like(values), model_state, {}

    return jax.jit(make_train_step(loss_fn, tx), donate_argnums=0), tx
