"""Runs that train an image classifier: data, network, batches and measurements around an objective.

Plain training, distillation, nasty teachers and every attack on them differ in their objective, in
what it reads, and perhaps in what of the network is trained.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, config, data
from distill_core.data import sampling
from distill_core.data.images import augment
from distill_core.losses import cross_entropy
from distill_core.models import checks
from distill_core.models.network import LoadedModel, Network, image_network
from distill_core.runtime import parallel
from distill_core.training import dispatch, dp_sgd, fits, loop, run_state
from distill_core.training import metrics as metrics_lib
from distill_core.training.dp_settings import Dp
from distill_core.training.gradients import PrivateGradient
from distill_core.training.optimizers import Optimizer
from distill_core.training.run_state import Layout
from distill_core.training.step import Evaluation, Objective, Outputs, Update, mean_gradient

PyTree = Any


class Splits(NamedTuple):
    """What a run trains on, watches and is judged by."""

    train: data.Split
    validation: data.Split
    test: data.Split


def load_splits(
    hp: config.Data, workdir: epath.PathLike | None = None
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
    hp: config.Data, field: str, workdir: epath.PathLike
) -> tuple[LoadedModel, data.Dataset, Splits]:
    """The classifier that a field of the config names, and the data in the order of its classes.

    Raises:
      InputError: as `load_splits`; and on the field: no such classifier, another than the run in
        `workdir` began with, or one of other classes or inputs than the data set's.
    """
    dataset = _load(hp, workdir)
    with run_state.about(field, getattr(hp, field)):
        loaded = checkpoint.load_model(getattr(hp, field))
    run_state.check_unchanged(hp, workdir, {field: loaded})
    dataset = fits.data_for(field, getattr(hp, field), loaded, dataset)
    return loaded, dataset, _split(hp, dataset)


def _load(hp: config.Data, workdir: epath.PathLike | None) -> data.Dataset:
    dataset = data.load_dataset(hp.dataset, data_dir=hp.data_dir)
    if workdir is not None:
        run_state.check_unchanged(hp, workdir, {"dataset": dataset.fingerprint()})
    return dataset


def _split(hp: config.Data, dataset: data.Dataset) -> Splits:
    train, validation = data.hold_out(dataset.train, hp.num_validation, seed=0)
    if (share := getattr(hp, "train_share", 1.0)) < 1:
        left_out = len(train) - max(1, round(share * len(train)))
        train, _ = data.hold_out(train, left_out, seed=1)
    return Splits(train, validation, dataset.test)


def check(
    hp: config.Training,
    dataset: data.Dataset,
    workdir: epath.PathLike | None = None,
    mode: str | None = None,
    *,
    private: bool = False,
) -> Network:
    """The network that a run would train, if it can run on this data and these devices.

    Weights belong with the constants that standardised their pixels: a run that starts from a
    network's (`init_from`), or goes on from its own in `workdir`, has that network's. `mode` is
    one from `parallel.choose_mode`, which gives it where there is none; `private` training has
    batches of an expected size, and no batch statistics.

    Raises:
      InputError: on `batch_size`, `model`, `model_kwargs` or `init_from`.
    """
    if not private:
        parallel.check_batch_size(hp.batch_size)
    network = image_network(
        dataset,
        model=hp.model,
        model_kwargs=hp.model_kwargs,
        compute_dtype=hp.compute_dtype,
    )
    start = None if workdir is None else run_state.starting_network(hp, workdir)
    if start is not None and not start.is_text:
        theirs, ours = start.input_shape[-1], network.input_shape[-1]
        if theirs != ours:
            allowed = f"takes images of {theirs} channels; those of {dataset.name} have {ours}"
            raise config.InputError("init_from", hp.init_from, allowed)
        network = dataclasses.replace(network, mean=start.mean, std=start.std)
    checks.check(network)
    if not private:
        checks.check_statistics(network, hp.batch_size, mode or parallel.choose_mode())
    return network


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run that can begin, or go on, as far as its settings and data tell."""

    hp: config.Training
    workdir: epath.PathLike
    method: str
    dataset: data.Dataset
    splits: Splits
    network: Network
    mode: str
    dp: Dp | None

    def describe(self, reads: Mapping[str, LoadedModel | str]):
        """(metadata, inputs) of the run; see `run_state.describe`."""
        return describe(
            self.hp,
            self.workdir,
            method=self.method,
            dataset=self.dataset,
            splits=self.splits,
            network=self.network,
            reads=reads,
        )


def describe(
    hp: config.Steps,
    workdir: epath.PathLike,
    *,
    method: str,
    dataset: data.Dataset,
    splits: Splits,
    network: Network,
    reads: Mapping[str, LoadedModel | str],
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


def prepare(
    hp: config.Training,
    workdir: epath.PathLike,
    *,
    method: str,
    dataset: data.Dataset,
    splits: Splits,
    mode: str | None,
    dp: Dp | None = None,
) -> Run:
    """Checks everything but what the objective reads.

    Args:
      hp: settings of the training, and the method's own.
      workdir: the run's directory.
      method: written into the checkpoint.
      dataset, splits: as `load_splits` gives them.
      mode: see `parallel.choose_mode`.
      dp: trains differentially privately (see `dp_sgd`).

    Raises:
      InputError: as `check`.
    """
    mode = parallel.choose_mode(mode)
    network = check(hp, dataset, workdir, mode, private=dp is not None)
    return Run(hp, workdir, method, dataset, splits, network, mode, dp)


def train(
    run: Run,
    objective: Objective,
    *,
    frozen: PyTree,
    reads: Mapping[str, LoadedModel | str] | None = None,
    examples: Mapping[str, np.ndarray] | None = None,
    schedules: Mapping[str, Callable[[int], float]] | None = None,
    layout: Layout | None = None,
) -> dict[str, Any]:
    """Trains a classifier by an objective, or resumes it, and measures it on the test split.

    Args:
      run: from `prepare`.
      objective: reads `image` [B, H, W, C] (augmented), `label` and `index` int32 [B] of a batch,
        and what `examples` and `schedules` add.
      frozen: what the objective reads, e.g. a teacher's variables and a temperature.
      reads: what else than the data the run reads; see `run_state.describe`.
      examples: arrays with one row per training example, e.g. stored teacher logits, beside the
        images; with a `layout.head` in their place.
      schedules: name -> value at a step, given to the objective as float32 [B].
      layout: what of the network is trained, and what is trained beside it; by default the network.

    Returns:
      {"accuracy", "validation_accuracy" (None without one), "num_test", "id"}, JSON-able; all
      of the last step; of a private run also what `dp_sgd.report` says.

    Raises:
      InputError: before anything is written; and what `loop.run` raises.
    """
    hp, mode, layout = run.hp, run.mode, layout or Layout()
    about, reads = run.describe(reads or {})
    train_split, examples = run.splits.train, {"label": run.splits.train.labels, **(examples or {})}
    if not layout.head:
        examples["image"] = train_split.images
    augmentation = config.part(hp, config.Augmentation)
    if augmentation != config.Augmentation():
        objective = Augmented(objective, augmentation)
    private, gradient, several = None, mean_gradient, hp.steps_per_dispatch
    if run.dp:
        _check_fed_from_host(hp)
        given = (hp, run.dp, run.workdir, about, run.network)
        private = dp_sgd.PrivateRun(*given, data=examples, mode=mode)
        about, reads = private.metadata, reads | private.reads
        gradient = PrivateGradient(private.augmentations)
    resident = hp.data_on_device and not schedules  # else the device does not know the step
    update = Update(objective, Optimizer.of(hp), gradient, resident, several > 1)
    state = run_state.initial_state(hp, run.workdir, run.network, layout)

    def take(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {**{k: v[rows] for k, v in examples.items()}, "index": rows.astype(np.int32)}

    def one_batch(step: int):
        rows = batch_rows(hp, step, len(train_split))
        if resident:
            return rows.astype(np.int32)
        scheduled = {
            k: np.full(len(rows), f(step), np.float32) for k, f in (schedules or {}).items()
        }
        return {**take(rows), **scheduled}

    def batch_fn(step: int):
        if private:
            return parallel.feed(private.batch(step, take), mode)
        if several == 1:
            return parallel.feed(one_batch(step), mode)
        steps = range(step, step + dispatch.length(step, several, hp.num_steps))
        return parallel.feed(dispatch.stacked([one_batch(each) for each in steps]), mode)

    def measured(state, split, stopped=lambda: False):
        part = layout.split(state)[0][run_state.PART]
        variables = {"params": part["params"], **part["model_state"]}
        size = hp.eval_batch_size
        return measure(run.network, variables, split, batch_size=size, mode=mode, stopped=stopped)

    validation = run.splits.validation

    def evaluate(state, stopped):
        return measured(state, validation, stopped)

    program = loop.Program(
        parallel.wrap(update, mode, donate=True),
        batch_fn,
        {"frozen": frozen, "data": examples} if resident else frozen,
        mode,
        steps_per_dispatch=several,
    )
    final = loop.run(
        run.workdir,
        state,
        program,
        loop.Checkpoints(layout, about, reads),
        num_steps=hp.num_steps,
        cadence=loop.Cadence.of(hp),
        monitor=loop.Monitor(evaluate, best="accuracy") if len(validation) else None,
        plan=private.plan(frozen) if private else None,
    )
    test = run.splits.test
    accuracy = measured(final, test)["accuracy"]
    held = measured(final, validation)["accuracy"] if len(validation) else None
    if parallel.is_main():
        note = f"; {run.dataset.note}" if run.dataset.note else ""
        print(f"test accuracy {accuracy:.4f} ({len(test)} examples{note})", flush=True)
    return {
        "accuracy": accuracy,
        "validation_accuracy": held,
        "num_test": len(test),
        "id": checkpoint.find(run.workdir)[1]["id"],
        **(dp_sgd.report(run.workdir) if private else {}),
    }


@dataclasses.dataclass(frozen=True)
class Augmented:
    """An objective on augmented images."""

    objective: Objective
    augmentation: config.Augmentation

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """As the objective's, with the same key."""
        how = dataclasses.asdict(self.augmentation)
        images = augment.augment(key, batch["image"], batch["index"], **how)
        return self.objective(params, model_state, frozen, {**batch, "image": images}, key)


def measure(
    network: Network,
    variables: PyTree,
    split: data.Split,
    *,
    batch_size: int,
    mode: str,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Accuracy and cross-entropy of a network over all of a split; see `run_state.evaluate`."""

    def take(rows, mask):
        return {"image": split.images[rows], "label": split.labels[rows], "mask": mask}

    return run_state.evaluate(
        Evaluation(_Classified(network)),
        variables,
        take,
        len(split),
        batch_size=batch_size,
        mode=mode,
        stopped=stopped,
    )


@dataclasses.dataclass(frozen=True)
class _Classified:
    network: Network

    def __call__(self, variables, frozen, batch):
        logits = self.network.apply(variables, batch["image"], where=batch["mask"])
        weight = batch["mask"].astype(jnp.float32)
        return {
            "accuracy": (metrics_lib.correct(logits, batch["label"]), weight),
            "cross_entropy": (cross_entropy(logits, batch["label"], where=batch["mask"]), weight),
        }


def batch_rows(hp: config.Run, step: int, num_examples: int) -> np.ndarray:
    """This process's rows of the batch of a step: a pure function of (seed, step)."""
    rows = sampling.batch_indices(hp.seed, step, hp.batch_size, num_examples)
    return rows[parallel.local_rows(hp.batch_size)]


def _check_fed_from_host(hp: config.Classifier):
    """A private run's batches have sizes of their own, and its ledger counts every step."""
    for name in ("data_on_device", "steps_per_dispatch"):
        if getattr(hp, name) != getattr(config.Classifier(), name):
            raise config.InputError(name, getattr(hp, name), "is not for private training (dp)")
