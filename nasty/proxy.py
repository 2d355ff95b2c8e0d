"""Proxy students: small networks that are distilled from stored logits, to see what they learn."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.losses import distillation_loss
from distill_core.models import checks
from distill_core.models.network import LoadedModel, Network
from distill_core.runtime import parallel
from distill_core.training.optimizers import Optimizer
from distill_core.training.step import (
    STREAM_INIT,
    Outputs,
    TrainState,
    Update,
    per_example,
    stream_key,
)

ALPHA = 0.9  # the paper's weight of the distillation term
BATCH = 32  # small: many updates for the arithmetic


def proxy_network(
    network: Network,
    model: str | None,
    model_kwargs: Mapping[str, Any],
    wider: int = 1,
) -> Network:
    """A proxy for the inputs and classes of `network`; by default a small CNN, `wider`
    times as wide.

    Raises:
      InputError: on `check_model` or `check_model_kwargs`: it cannot be built or run.
    """
    if model is None and model_kwargs:
        allowed = "belong to a check_model: name it, or leave them out"
        raise InputError("check_model_kwargs", dict(model_kwargs), allowed)
    if model is None:
        halvings = int(np.log2(min(network.input_shape[:2]) / 2))  # down to 2×2 or 3×3
        widths = tuple(8 * wider * 2**k for k in range(min(3, max(1, halvings))))
        model, model_kwargs = "cnn", {"widths": widths, "hidden": 32 * wider}
    found = dataclasses.replace(
        network,
        model=model,
        model_kwargs=model_kwargs,
        compute_dtype="float32",
    )
    try:
        checks.check(found)
    except InputError as error:
        raise InputError(f"check_{error.field}", error.given, error.allowed) from None
    return found


def distilled(
    network: Network,
    taught: Mapping[str, np.ndarray],
    *,
    temperature: float,
    steps: int,
    seed: int,
) -> LoadedModel:
    """A proxy trained on `image`, `label` and a teacher's `logits`, rows of examples."""
    optimizer = Optimizer("adam", 1e-2, steps, schedule="onecycle")
    step = parallel.wrap(Update(_Taught(network), optimizer), "jit", donate=True)
    rng = jax.random.key(seed)
    params, model_state = network.init(stream_key(rng, STREAM_INIT, 0))
    state = TrainState.create(params=params, model_state=model_state, tx=optimizer.make(), rng=rng)
    frozen = jax.device_put({**taught, "temperature": np.float32(temperature)})
    for i in range(steps):
        rows = sampling.batch_indices(seed, i, BATCH, len(taught["label"])).astype(np.int32)
        state, _ = step(state, frozen, rows)
    variables = jax.device_get({"params": state.params, **state.model_state})
    return LoadedModel(variables, network)


@dataclasses.dataclass(frozen=True)
class _Taught:
    """Distillation from stored logits; the batch is rows of what is taught."""

    network: Network

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        image, label, logits = (frozen[name][batch] for name in ("image", "label", "logits"))
        own, model_state = self.network.train_apply(params, model_state, image, key)
        values = distillation_loss(
            own, logits, label, temperature=frozen["temperature"], alpha=ALPHA
        )
        return per_example(values, model_state)
