"""Trains a CMIM teacher: the classes' mean answers are kept beside the network, not in it."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import data
from distill_core.config import InputError
from distill_core.data.images import augment
from distill_core.models import spec
from distill_core.runtime import parallel
from distill_core.training import classification, fitting, loop, metrics, optimizers, run_state
from distill_core.training.step import TrainState, make_train_step
from nasty.defences.cmim import cmim_loss, uniform_centroids, update_centroids

# How the centroids are averaged over steps; ours. On digits slower ones (0.99, one seed) kept the
# logits small and the answers at temperature 20 more alike, and yet students lost nothing.
DECAY = 0.9
# A collection of the state in training that belongs to no network.
_CENTROIDS = "cmim_centroids"


def train(
    hp: Mapping[str, Any],
    workdir: epath.PathLike,
    *,
    method: str,
    dataset: data.Dataset,
    splits: classification.Splits,
    mode: str | None = None,
) -> dict[str, Any]:
    """Trains to the end or resumes; returns what `classification.train` does.

    A step compares its answers with the centroids of the steps before, then updates these. They
    start uniform. A checkpoint keeps them with the optimiser: the model in it is the network alone.

    Args:
      hp: values of `config.TRAINING` and `cmim_weight`, `cmim_temperatures`.
      workdir, method, dataset, splits, mode: as for `classification.train`.

    Raises:
      InputError: there is no temperature; and what `classification.train` raises.
    """
    mode = parallel.choose_mode(mode)
    if not hp["cmim_temperatures"]:
        allowed = "must name at least one temperature"
        raise InputError("cmim_temperatures", hp["cmim_temperatures"], allowed)
    network = classification.check(hp, dataset, workdir, mode)
    metadata, reads = classification.describe(
        hp,
        workdir,
        method=method,
        dataset=dataset,
        splits=splits,
        network=network,
        reads={},
    )
    step_fn, tx = _compiled_step(
        json.dumps(network),
        json.dumps({name: hp[name] for name in run_state.OPTIMIZER_FIELDS}),
        augment.from_settings(hp),
        mode,
    )
    # Traced: a sweep over weights, or over as many temperatures, compiles once.
    frozen = {
        "weight": jnp.float32(hp["cmim_weight"]),
        "temperatures": jnp.asarray(hp["cmim_temperatures"], jnp.float32),
    }
    centroids = uniform_centroids(len(hp["cmim_temperatures"]), network["num_classes"])
    state = run_state.initial_state(hp, workdir, network, tx)

    def batch_fn(step):
        rows = fitting.batch_rows(hp, step, len(splits.train))
        batch = {
            "image": splits.train.images[rows],
            "label": splits.train.labels[rows],
            "index": rows.astype(np.int32),
        }
        return parallel.feed(batch, mode)

    return fitting.fit(
        hp,
        workdir,
        metadata=metadata,
        reads=reads,
        validation=splits.validation,
        test=splits.test,
        state=_joined(state, centroids),
        step_fn=step_fn,
        batch_fn=batch_fn,
        frozen=frozen,
        layout=loop.Layout(_split, _merge),
        mode=mode,
    )


def _joined(state: TrainState, centroids: Any) -> TrainState:
    return state.replace(model_state={**state.model_state, _CENTROIDS: centroids})


def _parted(model_state: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """(the network's own variables, centroids)."""
    own = dict(model_state)
    centroids = own.pop(_CENTROIDS)
    return own, centroids


def _split(state: TrainState):
    """(parts, train) for the checkpoint; the inverse of `_merge`."""
    own, centroids = _parted(state.model_state)
    parts, train = run_state.split_state(state.replace(model_state=own))
    return parts, {**train, _CENTROIDS: centroids}


def _merge(state: TrainState, parts, train) -> TrainState:
    train = dict(train)
    centroids = train.pop(_CENTROIDS)
    return _joined(run_state.merge_state(state, parts, train), centroids)


@functools.lru_cache(maxsize=8)
def _compiled_step(network: str, optimizer: str, augmentation: augment.Augmentation, mode: str):
    """(wrapped step, optimiser) of one set of static choices, compiled once."""
    axis = parallel.axis_name(mode)
    apply = spec.make_apply(json.loads(network), axis_name=axis)
    tx = optimizers.make_optimizer(**json.loads(optimizer))

    def loss_fn(params, model_state, frozen, batch, key):
        images, labels = batch["image"], batch["label"]
        if any(augmentation):
            images = augment.augment(key, images, batch["index"], **augmentation._asdict())
        own, centroids = _parted(model_state)
        logits, own = apply({"params": params, **own}, images, train=True, key=key)
        temperatures = frozen["temperatures"]
        values = cmim_loss(
            logits, labels, centroids, weight=frozen["weight"], temperatures=temperatures
        )
        centroids = update_centroids(
            centroids, logits, labels, temperatures=temperatures, decay=DECAY, axis_name=axis
        )
        aux = {"accuracy": metrics.correct(logits, labels)}
        return values, jnp.ones_like(values), {**own, _CENTROIDS: centroids}, aux

    return parallel.wrap(make_train_step(loss_fn, tx, axis_name=axis), mode, donate=True), tx
