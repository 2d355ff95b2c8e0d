"""Trains a skeptical student: a network with an auxiliary head, asleep for a number of steps."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, data, models
from distill_core.config import InputError
from distill_core.data.images import augment, preprocess
from distill_core.models import spec
from distill_core.runtime import parallel
from distill_core.training import classification, fitting, metrics, optimizers, run_state
from distill_core.training.step import make_train_step
from nasty.attacks.skeptical import SOWN, auxiliary_logits, skeptical_loss
from nasty.defences.stingy import release_top_k


def train(
    hp: Mapping[str, Any],
    workdir: epath.PathLike,
    *,
    method: str,
    dataset: data.Dataset,
    splits: classification.Splits,
    teacher: checkpoint.LoadedModel,
    mode: str | None = None,
) -> dict[str, Any]:
    """Trains to the end or resumes; returns what `classification.train` does.

    Args:
      hp: values of `config.TRAINING` and `temperature`, `alpha`, `self_weight`, `delay_steps`,
        `top_k`.
      workdir, method, dataset, splits, mode: as for `classification.train`.
      teacher: answers the student's (augmented) images.

    Raises:
      InputError: the student has no auxiliary head; and what `classification.train` raises.
    """
    mode = parallel.choose_mode(mode)
    network = classification.check(hp, dataset, workdir, mode)
    check_auxiliary(network)
    metadata, reads = classification.describe(
        hp,
        workdir,
        method=method,
        dataset=dataset,
        splits=splits,
        network=network,
        reads={"teacher": teacher},
    )
    step_fn, tx = _compiled_step(
        json.dumps(network),
        json.dumps(teacher.spec),
        json.dumps({name: hp[name] for name in run_state.OPTIMIZER_FIELDS}),
        augment.from_settings(hp),
        hp["top_k"],
        mode,
    )
    frozen = {name: jnp.float32(hp[name]) for name in ("temperature", "alpha", "self_weight")}

    def batch_fn(step):
        rows = fitting.batch_rows(hp, step, len(splits.train))
        batch = {
            "image": splits.train.images[rows],
            "label": splits.train.labels[rows],
            "index": rows.astype(np.int32),
            # Of the step, so that a resumed run wakes at the same one.
            "awake": np.full(len(rows), step >= hp["delay_steps"], np.float32),
        }
        return parallel.feed(batch, mode)

    return fitting.fit(
        hp,
        workdir,
        metadata=metadata,
        reads=reads,
        validation=splits.validation,
        test=splits.test,
        state=run_state.initial_state(hp, workdir, network, tx),
        step_fn=step_fn,
        batch_fn=batch_fn,
        frozen={**frozen, "teacher": teacher.variables},
        mode=mode,
    )


def check_auxiliary(network: Mapping[str, Any]):
    """Refuses, on shapes alone, a network (its spec) without the head that the attack needs.

    Raises:
      InputError: on `model`.
    """
    module = spec.build(network)

    def look(variables, images):
        _, found = models.apply_model(
            module, variables, images, train=False, mutable=("intermediates",)
        )
        return auxiliary_logits(found)

    images = jax.ShapeDtypeStruct((2, *network["input_shape"]), jnp.float32)
    found = jax.eval_shape(look, spec.variable_shapes(network), images)
    if found is None or found.shape != (2, network["num_classes"]):
        allowed = (
            f"a skeptical student needs an auxiliary head that sows `{SOWN}` "
            f"[B, {network['num_classes']}]; take nasty.attacks.skeptical:SkepticalCNN"
        )
        raise InputError("model", network["model"], allowed)


@functools.lru_cache(maxsize=16)
def _compiled_step(
    network: str,
    teacher: str,
    optimizer: str,
    augmentation: augment.Augmentation,
    top_k: int | None,
    mode: str,
):
    """(wrapped step, optimiser) of one set of static choices, compiled once."""
    axis = parallel.axis_name(mode)
    student = json.loads(network)
    module = spec.build(student, axis_name=axis)
    mean, std = tuple(student["mean"]), tuple(student["std"])
    answer = classification.cached_apply(teacher)
    tx = optimizers.make_optimizer(**json.loads(optimizer))

    def loss_fn(params, model_state, frozen, batch, key):
        images, labels = batch["image"], batch["label"]
        if any(augmentation):
            images = augment.augment(key, images, batch["index"], **augmentation._asdict())
        variables, pixels = spec.rounded(
            student,
            {"params": params, **model_state},
            preprocess.preprocess(images, mean, std),
        )
        logits, collections = models.apply_model(
            module,
            variables,
            pixels,
            train=True,
            mutable=("intermediates",),
            key=key,
        )
        auxiliary = auxiliary_logits(collections)
        assert auxiliary is not None  # so check_auxiliary has found
        teacher_logits = answer(frozen["teacher"], images)
        if top_k is not None:
            teacher_logits = release_top_k(teacher_logits, top_k)
        values = skeptical_loss(
            logits,
            auxiliary,
            teacher_logits,
            labels,
            temperature=frozen["temperature"],
            alpha=frozen["alpha"],
            self_weight=frozen["self_weight"],
            awake=batch["awake"],
        )
        model_state = {name: collections[name] for name in model_state}
        aux = {"accuracy": metrics.correct(logits, labels)}
        return values, jnp.ones_like(values), model_state, aux

    return parallel.wrap(make_train_step(loss_fn, tx, axis_name=axis), mode, donate=True), tx
