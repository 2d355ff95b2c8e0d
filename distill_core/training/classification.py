"""Runs that train an image classifier: data, network, batches and evaluation around an objective.

Plain training, distillation, nasty teachers and every attack on them differ in their objective, in
what it reads, and perhaps in which part of the network is trained.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, config, data
from distill_core.data.images import augment
from distill_core.losses import cross_entropy
from distill_core.models import checks
from distill_core.models.network import LoadedModel, Network, image_network
from distill_core.runtime import parallel
from distill_core.training import dp_sgd, feeding, fits, linear, loop, run_state
from distill_core.training import metrics as metrics_lib
from distill_core.training.dp_settings import FULL, Dp
from distill_core.training.gradients import LinearGradient, PrivateGradient
from distill_core.training.optimizers import Averaged
from distill_core.training.run_state import Layout
from distill_core.training.step import Evaluation, Objective, Outputs, Update

PyTree = Any


class Splits(NamedTuple):
    """What a run trains on, is monitored on and is tested on."""

    train: data.Split
    validation: data.Split
    test: data.Split


def load_splits(
    hp: config.Data, workdir: epath.PathLike | None = None
) -> tuple[data.Dataset, Splits]:
    """The config's data set, with `num_validation` training examples held out.

    Which examples are held out does not depend on the run's seed: no teacher or student of an
    experiment sees them. With `train_share` below 1 the run trains on that share of the rest;
    larger shares contain the smaller ones.

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
      InputError: as `load_splits`; and on the field: no such classifier, not the one that the run
        in `workdir` began with, or other classes or inputs than the data set's.
    """
    dataset = _load(hp, workdir)
    with run_state.about(field, getattr(hp, field)):
        loaded = checkpoint.load_model(getattr(hp, field))
    run_state.check_unchanged(hp, workdir, {field: loaded})
    dataset = fits.data_for(field, getattr(hp, field), loaded, dataset)
    return loaded, dataset, _split(hp, dataset)


def _load(hp: config.Data, workdir: epath.PathLike | None) -> data.Dataset:
    memory = getattr(hp, "image_memory", None)
    dataset = data.load_dataset(hp.dataset, data_dir=hp.data_dir, memory=memory)
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

    Weights belong with the constants that standardised their pixels: a run that starts from another
    network (`init_from`), or resumes in `workdir`, has that network's. `mode` comes from
    `parallel.choose_mode`. Batches of `private` training have no fixed size.

    Raises:
      InputError: on `batch_size`, `crop_padding`, `model`, `model_kwargs` or `init_from`; on
        `dataset` where the run in `workdir` began with images of other channels.
    """
    augment.check_padding(hp.crop_padding, *dataset.train.images.shape[1:3])
    mode = mode or parallel.choose_mode()
    parallel.check_no_model(mode)
    if not private:
        parallel.check_batch_size(hp.batch_size, mode)
    network = image_network(
        dataset, model=hp.model, model_kwargs=hp.model_kwargs, compute_dtype=hp.compute_dtype
    )
    start = None if workdir is None else run_state.starting_network(hp, workdir, mode)
    if start is not None and not start.is_text:
        theirs, ours = start.input_shape[-1], network.input_shape[-1]
        if theirs != ours:
            raise _other_channels(hp, workdir, dataset.name, theirs, ours)
        network = dataclasses.replace(network, mean=start.mean, std=start.std)
    checks.check(network)
    if not private:
        checks.check_statistics(network, hp.batch_size, mode)
    return network


def _other_channels(hp: Any, workdir: Any, name: str, theirs: int, ours: int) -> config.InputError:
    """Names `dataset` where the run resumes, `init_from` where it starts from that network."""
    if not run_state.has_checkpoint(workdir):
        allowed = f"takes images of {theirs} channels; those of {name} have {ours}"
        return config.InputError("init_from", hp.init_from, allowed)
    began = checkpoint.find(workdir)[1]["config"].get("dataset")
    allowed = (
        f"this run was started with {began!r}, whose images have {theirs} channels; those of "
        f"{name} have {ours}; keep that data set or use another workdir"
    )
    return config.InputError("dataset", hp.dataset, allowed)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that can begin or resume, as far as its settings and data tell."""

    hp: Any
    workdir: epath.PathLike
    method: str
    dataset: data.Dataset
    splits: Splits
    network: Network
    mode: str
    dp: Dp | None = None

    @functools.cached_property
    def on_features(self) -> bool:
        """Whether it trains a linear layer on features that are computed once.

        That is so for all records in every step, unaugmented, of such a network; its objective is
        then an `OfLogits` that reads `features` [B, D] in place of `image`.
        """
        plain = config.part(self.hp, config.Augmentation) == config.Augmentation()
        full = self.dp is not None and self.dp.sampling == FULL and self.dp.augmentations == 1
        return full and plain and linear.is_linear(self.network)

    def describe(self, reads: Mapping[str, LoadedModel | str]):
        """(metadata, inputs) of the run; see `run_state.describe`."""
        metadata, prints = run_state.describe(
            self.hp,
            self.workdir,
            method=self.method,
            network=self.network,
            reads={"dataset": self.dataset.fingerprint(), **reads},
            note=self.dataset.note,
            mode=self.mode,
        )
        return {**metadata, "num_examples": len(self.splits.train)}, prints


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
    """Checks all but what the objective reads; raises InputError as `check` does.

    `dataset` and `splits` come from `load_splits`; with `dp` training is differentially private
    (see `dp_sgd`).
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
    """Trains a classifier with an objective, or resumes it, and measures it on the test split.

    Args:
      run: from `prepare`.
      objective: reads `image` [B, H, W, C] (augmented), `label` and `index` int32 [B] of a batch,
        and what `examples` and `schedules` add; with `run.on_features`, those in place of images.
      frozen: what the objective reads, e.g. a teacher's variables and a temperature.
      reads: what the run reads besides the data; see `run_state.describe`.
      examples: arrays with one row per training example, e.g. stored teacher logits, in addition to
        the images; with a `layout.head`, in place of them.
      schedules: name -> function of the step, whose value the objective gets as float32 [B].
      layout: which part of the network is trained, and what is trained with it; by default all.

    Returns:
      {"accuracy", "validation_accuracy" (None without one), "num_test", "id"} of the last step, for
      JSON; of a private run also what `dp_sgd.report` returns.

    Raises:
      InputError: before anything is written; and what `loop.run` raises.
    """
    hp, mode, layout = run.hp, run.mode, layout or Layout()
    metadata, reads = run.describe(reads or {})
    train_split, examples = run.splits.train, {"label": run.splits.train.labels, **(examples or {})}
    if not layout.head:
        examples["image"] = train_split.images
    augmentation = config.part(hp, config.Augmentation)
    if augmentation != config.Augmentation():
        objective = Augmented(objective, augmentation)
    private, changing = None, {*run.network.shapes(), *layout.own} - {"params"}
    if run.dp:
        feeding.check_private(hp)
    optimizer, gradient = feeding.recipe(hp, set() if layout.head else changing, mode)
    if run.dp:
        given = (hp, run.dp, run.workdir, metadata, run.network)
        private = dp_sgd.PrivateRun(*given, data=examples, mode=mode)
        metadata, reads = private.metadata, reads | private.reads
        gradient = (
            LinearGradient()
            if run.on_features
            else PrivateGradient(run.dp.augmentations, run.dp.microbatch_size)
        )
        optimizer = private.optimizer
    layout = dataclasses.replace(layout, averages=isinstance(optimizer, Averaged))
    resident = hp.data_on_device and not schedules  # else the device does not know the step
    update = Update(objective, optimizer, gradient, resident, hp.steps_per_dispatch > 1)
    state = run_state.initial_state(
        hp, run.workdir, run.network, layout, optimizer=optimizer, mode=mode
    )
    variables = {"params": state.params, **state.model_state}

    def take(rows: np.ndarray) -> dict[str, np.ndarray]:
        if run.on_features:
            return {"label": examples["label"][rows], "features": _features(run, variables, rows)}
        return {**{k: v[rows] for k, v in examples.items()}, "index": rows.astype(np.int32)}

    def take_at(rows: np.ndarray, step: int) -> dict[str, np.ndarray]:
        scheduled = (schedules or {}).items()
        return {**take(rows), **{k: np.full(len(rows), f(step), np.float32) for k, f in scheduled}}

    if private:
        batch_fn = functools.partial(private.batch, take=take)
    else:
        batch_fn = feeding.batches(hp, len(train_split), take_at, mode, resident=resident)

    def evaluate(state, stopped=lambda: False, split=run.splits.validation):
        part = layout.split(state)[0][run_state.PART]
        variables = {"params": part["params"], **part["model_state"]}
        size = hp.eval_batch_size
        return measure(run.network, variables, split, batch_size=size, mode=mode, stopped=stopped)

    program = loop.Program(
        parallel.wrap(update, mode, donate=True),
        batch_fn,
        {"frozen": frozen, "data": examples} if resident else frozen,
        mode,
        steps_per_dispatch=hp.steps_per_dispatch,
        ahead=private is None,
        work=feeding.work("images", 1, update, hp, take_at),
    )
    final = loop.run(
        run.workdir,
        state,
        program,
        loop.Checkpoints(layout, metadata, reads),
        num_steps=hp.num_steps,
        cadence=config.part(hp, loop.Cadence),
        monitor=loop.Monitor(evaluate, best="accuracy") if len(run.splits.validation) else None,
        plan=private.plan(frozen) if private else None,
    )
    test = run.splits.test
    accuracy = evaluate(final, split=test)["accuracy"]
    held = evaluate(final)["accuracy"] if len(run.splits.validation) else None
    note = f"; {run.dataset.note}" if run.dataset.note else ""
    fits.say(f"test accuracy {accuracy:.4f} ({len(test)} examples{note})")
    return {
        "accuracy": accuracy,
        "validation_accuracy": held,
        "num_test": len(test),
        "id": checkpoint.find(run.workdir)[1]["id"],
        **(dp_sgd.report(run.workdir) if private else {}),
    }


def _features(run: Run, variables: PyTree, rows: np.ndarray) -> np.ndarray:
    """Features float32 [r, D] of training images."""
    found = linear.features(run.network, variables, run.splits.train.images[rows])
    fits.say(f"{found.shape[1]:,} features of each record are computed once, not in every step")
    return found


@dataclasses.dataclass(frozen=True)
class Augmented:
    """An objective on augmented images."""

    objective: Objective
    augmentation: config.Augmentation

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """The objective's outputs, with the same key."""
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
