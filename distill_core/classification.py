"""A training run of an image classifier: data, network and batches around a method's objective.

A method gives an objective, `objective(logits, images, labels, frozen, extra) -> values [B]`: one
loss an example from the trained network's logits, the (augmented) images, the labels, the frozen
side and the batch's extra arrays. Everything else is the same for plain training, distillation and
nasty teachers.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import (
    checkpoint,
    data,
    dp_gradient,
    dp_sgd,
    loop,
    optimizers,
    parallel,
    run_state,
    spec,
)
from distill_core import metrics as metrics_lib
from distill_core.data import augment, sampling
from distill_core.losses import cross_entropy
from distill_core.training import make_eval_step, make_train_step


class Splits(NamedTuple):
    """What a run trains on, watches and is judged by."""

    train: data.Split
    validation: data.Split
    test: data.Split


def load_splits(hp: Mapping[str, Any]) -> tuple[data.Dataset, Splits]:
    """The config's data set, with `num_validation` training examples held out.

    Which examples are held out does not depend on the run's seed: teachers and students of an
    experiment never see them.
    """
    dataset = data.load_dataset(hp["dataset"], data_dir=hp["data_dir"])
    train, validation = data.hold_out(dataset.train, hp["num_validation"], seed=0)
    return dataset, Splits(train, validation, dataset.test)


def check(hp: Mapping[str, Any], dataset: data.Dataset) -> dict[str, Any]:
    """The spec of the network that a run would train, if it can run on this data and these devices.

    Raises:
      InputError: on `batch_size`, `model` or `model_kwargs`.
    """
    if not hp.get("dp"):  # else it is an expected size
        parallel.check_batch_size(hp["batch_size"])
    network = spec.image_spec(model=hp["model"], model_kwargs=hp["model_kwargs"], dataset=dataset)
    spec.check(network)
    return network


def train(
    hp: Mapping[str, Any],
    workdir: epath.PathLike,
    *,
    method: str,
    dataset: data.Dataset,
    splits: Splits,
    objective: Callable,
    frozen: Any,
    extra: Mapping[str, np.ndarray] | None = None,
    ancestors: tuple[Mapping[str, Any], ...] = (),
    mode: str | None = None,
) -> dict[str, Any]:
    """Trains a classifier by an objective, or resumes it, and measures it on the test split.

    Args:
      hp: validated values of `config.TRAINING` and the method's own; with a group `dp` (see
        `dp_sgd`) the training is differentially private.
      workdir: the run's directory.
      method: written into the checkpoint.
      dataset, splits: as `load_splits` gives them.
      objective: see above; a module-level or cached function, since compiled steps are reused
        between runs that share it.
      frozen: what the objective reads, e.g. a teacher's variables and a temperature.
      extra: arrays with one row a training example, e.g. stored teacher logits.
      ancestors: metadata of the checkpoints that this one is made from.
      mode: see `parallel.choose_mode`.

    Returns:
      {"accuracy", "validation_accuracy" (None without one), "num_test", "digest"}, JSON-able; all
      of the last step; of a private run also what `dp_sgd.report` says.

    Raises:
      InputError: before anything is written; and what `loop.run` raises.
    """
    mode = parallel.choose_mode(mode)
    network = check(hp, dataset)
    metadata = run_state.metadata(
        hp,
        method=method,
        network=network,
        note=dataset.note,
        ancestors=ancestors,
        extra=None if hp.get("dp") else extra,  # whose digest would tell of records
        start=run_state.starting_point(hp, workdir),
    )
    metadata["num_examples"] = len(splits.train)
    private = None
    if hp.get("dp"):
        arrays = {"images": splits.train.images, "labels": splits.train.labels, **(extra or {})}
        private = dp_sgd.PrivateRun(hp, workdir, metadata, network, data=arrays, mode=mode)
        metadata = private.metadata
    step_fn, eval_step, tx = compiled(
        json.dumps(network),
        json.dumps({name: hp[name] for name in run_state.OPTIMIZER_FIELDS}),
        objective,
        hp["crop_padding"],
        hp["flip"],
        mode,
        private.augmentations if private else None,
    )
    state = run_state.initial_state(hp, workdir, network, tx)

    def take_train(rows):
        return {
            "image": splits.train.images[rows],
            "label": splits.train.labels[rows],
            "index": rows.astype(np.int32),
            "extra": {name: array[rows] for name, array in (extra or {}).items()},
        }

    def batch_fn(step):
        if private:
            return parallel.feed(private.batch(step, take_train), mode)
        rows = sampling.batch_indices(hp["seed"], step, hp["batch_size"], len(splits.train))
        return parallel.feed(take_train(rows[parallel.local_rows(hp["batch_size"])]), mode)

    def measure(state, split, stopped=lambda: False):
        variables = {"params": state.params, **state.model_state}

        def take(rows, mask):
            return {"image": split.images[rows], "label": split.labels[rows], "mask": mask}

        return run_state.evaluate(
            eval_step,
            variables,
            take,
            len(split),
            batch_size=hp["eval_batch_size"],
            mode=mode,
            stopped=stopped,
        )

    final = loop.run(
        workdir=workdir,
        state=state,
        step_fn=step_fn,
        frozen=frozen,
        batch_fn=batch_fn,
        num_steps=hp["num_steps"],
        metadata=metadata,
        split=run_state.split_state,
        merge=run_state.merge_state,
        evaluate=(lambda state, stopped: measure(state, splits.validation, stopped))
        if len(splits.validation)
        else None,
        plan=private.plan(frozen) if private else None,
        best="accuracy",
        mode=mode,
        log_every=hp["log_every"],
        eval_every=hp["eval_every"],
        save_every=hp["save_every"],
        label=method,
    )
    _, metadata = checkpoint.find(workdir)
    accuracy = measure(final, splits.test)["accuracy"]
    held = measure(final, splits.validation)["accuracy"] if len(splits.validation) else None
    if parallel.is_main():
        note = f"; {dataset.note}" if dataset.note else ""
        print(f"test accuracy {accuracy:.4f} ({len(splits.test)} examples{note})", flush=True)
    return {
        "accuracy": accuracy,
        "validation_accuracy": held,
        "num_test": len(splits.test),
        "digest": metadata["digest"],
        **(dp_sgd.report(workdir) if private else {}),
    }


@functools.lru_cache(maxsize=16)
def compiled(
    network: str, optimizer: str, objective: Callable, crop_padding, flip, mode: str, copies=None
):
    """(train step, evaluation step, optimiser) for one set of static choices, compiled once.

    Runs that differ only in seed, teacher or traced settings share them. `network` and `optimizer`
    are JSON, to be hashable; `copies` of each record make a step of a private run.
    """
    axis = parallel.axis_name(mode)
    apply = spec.make_apply(json.loads(network), axis_name=axis)
    tx = optimizers.make_optimizer(**json.loads(optimizer))

    def loss_fn(params, model_state, frozen, batch, key):
        images = batch["image"]
        if crop_padding or flip:
            images = augment.augment(
                key, images, batch["index"], crop_padding=crop_padding, flip=flip
            )
        logits, model_state = apply({"params": params, **model_state}, images, train=True, key=key)
        values = objective(logits, images, batch["label"], frozen, batch["extra"])
        aux = {"accuracy": metrics_lib.correct(logits, batch["label"])}
        return values, jnp.ones_like(values), model_state, aux

    def eval_fn(variables, frozen, batch):
        logits = apply(variables, batch["image"], where=batch["mask"])
        weight = batch["mask"].astype(jnp.float32)
        return {
            "accuracy": (metrics_lib.correct(logits, batch["label"]), weight),
            "cross_entropy": (cross_entropy(logits, batch["label"], where=batch["mask"]), weight),
        }

    gradient_fn = dp_gradient.gradient_fn(copies) if copies else None
    step = make_train_step(loss_fn, tx, axis_name=axis, gradient_fn=gradient_fn)
    eval_step = make_eval_step(eval_fn, axis_name=axis)
    return parallel.wrap(step, mode, donate=True), parallel.wrap(eval_step, mode), tx


def load_network(path: str, *, field: str, dataset: data.Dataset) -> checkpoint.LoadedModel:
    """A checkpoint's classifier, refused if its classes or inputs are not the data set's."""
    with run_state.about(field, path):
        loaded = checkpoint.load_model(path)
    spec.check_fits(field, path, loaded.spec, dataset)
    return loaded


@functools.lru_cache(maxsize=16)
def cached_apply(network: str) -> Callable:
    """`spec.make_apply` of a JSON spec: one function object for equal specs."""
    return spec.make_apply(json.loads(network))
