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

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, config, data
from distill_core.data.images import augment
from distill_core.models import spec
from distill_core.runtime import parallel
from distill_core.training import dispatch, dp_sgd, fits, fitting, optimizers, run_state
from distill_core.training import gradients as dp_gradient
from distill_core.training import metrics as metrics_lib
from distill_core.training.step import make_train_step


class Splits(NamedTuple):
    """What a run trains on, watches and is judged by."""

    train: data.Split
    validation: data.Split
    test: data.Split


def load_splits(
    hp: Mapping[str, Any], workdir: epath.PathLike | None = None
) -> tuple[data.Dataset, Splits]:
    """The config's data set, with `num_validation` training examples held out.

    Which examples are held out does not depend on the run's seed: teachers and students of an
    experiment never see them. With `train_share` below 1 the run trains on so much of the rest,
    larger shares holding the smaller ones.

    Raises:
      InputError: as `data.load_dataset`; or a run in `workdir` began with other data.
    """
    dataset = _load(hp, workdir)
    return dataset, _split(hp, dataset)


def load_with(
    hp: Mapping[str, Any], field: str, workdir: epath.PathLike
) -> tuple[checkpoint.LoadedModel, data.Dataset, Splits]:
    """The classifier that a field of the config names, and the data in the order of its classes.

    Raises:
      InputError: as `load_splits`; and on the field: no such classifier, another than the run in
        `workdir` began with, or one of other classes or inputs than the data set's.
    """
    dataset = _load(hp, workdir)
    with run_state.about(field, hp[field]):
        loaded = checkpoint.load_model(hp[field])
    run_state.check_unchanged(hp, workdir, {field: loaded})
    dataset = fits.data_for(field, hp[field], loaded, dataset)
    return loaded, dataset, _split(hp, dataset)


def _load(hp: Mapping[str, Any], workdir: epath.PathLike | None) -> data.Dataset:
    dataset = data.load_dataset(hp["dataset"], data_dir=hp["data_dir"])
    if workdir is not None:
        run_state.check_unchanged(hp, workdir, {"dataset": dataset.fingerprint()})
    return dataset


def _split(hp: Mapping[str, Any], dataset: data.Dataset) -> Splits:
    train, validation = data.hold_out(dataset.train, hp["num_validation"], seed=0)
    if hp.get("train_share", 1.0) < 1:
        left_out = len(train) - max(1, round(hp["train_share"] * len(train)))
        train, _ = data.hold_out(train, left_out, seed=1)
    return Splits(train, validation, dataset.test)


def check(
    hp: Mapping[str, Any],
    dataset: data.Dataset,
    workdir: epath.PathLike | None = None,
    mode: str | None = None,
) -> dict[str, Any]:
    """The spec of the network that a run would train, if it can run on this data and these devices.

    Weights belong with the constants that standardised their pixels: a run that starts from a
    network's (`init_from`), or goes on from its own in `workdir`, has that network's. `mode` is
    one from `parallel.choose_mode`, which gives it where there is none.

    Raises:
      InputError: on `batch_size`, `model`, `model_kwargs` or `init_from`.
    """
    if not hp.get("dp"):  # else it is an expected size
        parallel.check_batch_size(hp["batch_size"])
    network = spec.image_spec(
        model=hp["model"],
        model_kwargs=hp["model_kwargs"],
        dataset=dataset,
        compute_dtype=hp.get("compute_dtype", "float32"),
    )
    start = None if workdir is None else run_state.starting_network(hp, workdir)
    if start is not None and not spec.is_text(start):
        theirs, ours = start["input_shape"][-1], network["input_shape"][-1]
        if theirs != ours:
            allowed = f"takes images of {theirs} channels; those of {dataset.name} have {ours}"
            raise config.InputError("init_from", hp.get("init_from"), allowed)
        network |= {name: start[name] for name in ("mean", "std")}
    spec.check(network)
    if not hp.get("dp"):  # which refuses batch statistics
        spec.check_statistics(network, hp["batch_size"], mode or parallel.choose_mode())
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
    reads: Mapping[str, checkpoint.LoadedModel | str] | None = None,
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
      reads: what else than the data the run reads; see `run_state.describe`.
      mode: see `parallel.choose_mode`.

    Returns:
      {"accuracy", "validation_accuracy" (None without one), "num_test", "id"}, JSON-able; all
      of the last step; of a private run also what `dp_sgd.report` says.

    Raises:
      InputError: before anything is written; and what `loop.run` raises.
    """
    mode = parallel.choose_mode(mode)
    network = check(hp, dataset, workdir, mode)
    about, reads = describe(
        hp,
        workdir,
        method=method,
        dataset=dataset,
        splits=splits,
        network=network,
        reads=reads or {},
    )
    private, several, resident = None, hp["steps_per_dispatch"], hp["data_on_device"]
    if hp.get("dp"):
        _check_fed_from_host(hp)
        arrays = {"images": splits.train.images, "labels": splits.train.labels, **(extra or {})}
        private = dp_sgd.PrivateRun(hp, workdir, about, network, data=arrays, mode=mode)
        about, reads = private.metadata, reads | private.reads
    step_fn, tx = compiled(
        json.dumps(network),
        json.dumps({name: hp[name] for name in run_state.OPTIMIZER_FIELDS}),
        objective,
        augment.from_settings(hp),
        mode,
        private.augmentations if private else None,
        gather=resident,
        repeat=several > 1,
    )
    state = run_state.initial_state(hp, workdir, network, tx)

    examples = {"image": splits.train.images, "label": splits.train.labels, "extra": extra or {}}
    if resident:
        frozen = {"frozen": frozen, "data": examples}

    def take_train(rows):
        taken = jax.tree.map(lambda array: array[rows], examples)
        return {**taken, "index": rows.astype(np.int32)}

    def one_batch(step):
        rows = fitting.batch_rows(hp, step, len(splits.train))
        return rows.astype(np.int32) if resident else take_train(rows)

    def batch_fn(step):
        if private:
            return parallel.feed(private.batch(step, take_train), mode)
        if several == 1:
            return parallel.feed(one_batch(step), mode)
        steps = range(step, step + dispatch.length(step, several, hp["num_steps"]))
        return parallel.feed(dispatch.stacked([one_batch(each) for each in steps]), mode)

    result = fitting.fit(
        hp,
        workdir,
        metadata=about,
        reads=reads,
        validation=splits.validation,
        test=splits.test,
        state=state,
        step_fn=step_fn,
        batch_fn=batch_fn,
        frozen=frozen,
        plan=private.plan(frozen) if private else None,
        steps_per_dispatch=several,
        mode=mode,
    )
    return {**result, **(dp_sgd.report(workdir) if private else {})}


def describe(
    hp: Mapping[str, Any],
    workdir: epath.PathLike,
    *,
    method: str,
    dataset: data.Dataset,
    splits: Splits,
    network: Mapping[str, Any],
    reads: Mapping[str, checkpoint.LoadedModel | str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """(metadata, inputs) of a classifier's run; see `run_state.describe`."""
    about, prints = run_state.describe(
        hp,
        workdir,
        method=method,
        network=network,
        reads={"dataset": dataset.fingerprint(), **reads},
        note=dataset.note,
    )
    return {**about, "num_examples": len(splits.train)}, prints


@functools.lru_cache(maxsize=16)
def compiled(
    network: str,
    optimizer: str,
    objective: Callable,
    augmentation: augment.Augmentation,
    mode: str,
    copies: int | None = None,
    *,
    gather: bool = False,
    repeat: bool = False,
):
    """(train step, optimiser) for one set of static choices, compiled once.

    Runs that differ only in seed, teacher or traced settings share them. `network` and `optimizer`
    are JSON, to be hashable; `copies` of each record make a step of a private run. With `gather`
    and `repeat` the step takes its batches as `dispatch` says.
    """
    axis = parallel.axis_name(mode)
    apply = spec.make_apply(json.loads(network), axis_name=axis)
    tx = optimizers.make_optimizer(**json.loads(optimizer))

    def loss_fn(params, model_state, frozen, batch, key):
        images = batch["image"]
        if any(augmentation):
            images = augment.augment(key, images, batch["index"], **augmentation._asdict())
        logits, model_state = apply({"params": params, **model_state}, images, train=True, key=key)
        values = objective(logits, images, batch["label"], frozen, batch["extra"])
        aux = {"accuracy": metrics_lib.correct(logits, batch["label"])}
        return values, jnp.ones_like(values), model_state, aux

    gradient_fn = dp_gradient.gradient_fn(copies) if copies else None
    step = make_train_step(loss_fn, tx, axis_name=axis, gradient_fn=gradient_fn)
    step = dispatch.gathered(step) if gather else step
    step = dispatch.repeated(step) if repeat else step
    return parallel.wrap(step, mode, donate=True), tx


def _check_fed_from_host(hp: Mapping[str, Any]):
    """A private run's batches have sizes of their own, and its ledger counts every step."""
    for name in ("data_on_device", "steps_per_dispatch"):
        if hp[name] != config.CLASSIFIER[name].default:
            raise config.InputError(name, hp[name], "is not for private training (dp)")


@functools.lru_cache(maxsize=16)
def cached_apply(network: str) -> Callable:
    """`spec.make_apply` of a JSON spec: one function object for equal specs."""
    return spec.make_apply(json.loads(network))
