"""Fits an ensemble of teachers on fixed disjoint partitions of the training set.

python -m dpdfd.ensemble --config configs/dpdfd/ensemble_digits.py --workdir runs/ensemble

A record's teacher follows from its index alone, so that one changed record changes one teacher.
The ensemble itself is as private as its data: what may be released of it are its noisy answers.
Source: our reconstruction, after Papernot et al., "Semi-supervised Knowledge Transfer for Deep
Learning from Private Training Data", ICLR 2017, with the partitions of `partitions.partition`.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath
from flax import linen as nn
from flax.core import FrozenDict

from distill_core import checkpoint, config, data, models
from distill_core.config import InputError
from distill_core.data.images.preprocess import check_range, preprocess
from distill_core.models import spec, trust
from distill_core.runtime import parallel as parallel_lib
from distill_core.training import classification, loop, optimizers, run_state
from distill_core.training.step import STREAM_INIT, TrainState, make_eval_step, stream_key
from dpdfd.ensemble import partition_fit, partitions, provenance
from dpdfd.ensemble.partitions import partition
from dpdfd.features import FeatureRidge

__all__ = ["FIELDS", "KINDS", "Ensemble", "make_answers", "partition", "train_and_evaluate"]

Array = jax.Array
KINDS = ("votes", "probabilities")
MODEL = provenance.ENSEMBLE

FIELDS = {
    **config.DATA,
    **config.MODEL,
    "num_teachers": config.integer(1),
    # Random deformations: how strong, and, for a ridge, how many beside each image itself.
    "deform": config.number(0.0, default=1.0),
    "flip": config.boolean(default=False),
    "copies": config.integer(0, default=8),
    "ridge": config.number(0.0, default=1e-3, above=True),
    # Of members that are trained by gradients; batches are of each teacher.
    **config.OPTIMIZER,
    "optimizer": config.choice("sgd", "adam", default="adam"),
    "learning_rate": config.number(0.0, above=True, default=1e-3),
    "batch_size": config.integer(1, default=32),
    "num_steps": config.integer(1, default=1000),
    **{name: config.RUN[name] for name in ("seed", "eval_batch_size", "log_every", "save_every")},
}


class Ensemble(nn.Module):
    """M networks of one kind; its `params` are theirs, stacked on axis 0 under "members".

    Attributes:
      num_classes: K.
      num_teachers: M.
      member: name of a network without batch statistics, as `models.create_model` takes it.
      member_kwargs: its settings.
    """

    num_classes: int
    num_teachers: int
    member: str
    member_kwargs: Mapping[str, Any]

    def __post_init__(self):
        # Modules are hashed; JSON gives dictionaries and lists.
        object.__setattr__(self, "member_kwargs", _hashable(self.member_kwargs))
        super().__post_init__()

    def __call__(self, x: Array) -> Array:
        """Preprocessed images float32 [B, H, W, C] to the log of the mean probability [B, K]."""
        log_probs = jax.nn.log_softmax(self._logits(x), axis=-1)
        return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(float(self.num_teachers))

    def answers(self, x: Array, kind: str = "votes") -> Array:
        """What each teacher says of preprocessed images [B, H, W, C].

        Args:
          x: float32 images.
          kind: "votes", one-hot, or "probabilities".

        Returns:
          float32 [M, B, K]; rows add up to 1.

        Raises:
          InputError: another kind.
        """
        if kind not in KINDS:
            raise InputError("kind", kind, f"must be one of {', '.join(KINDS)}")
        logits = self._logits(x)
        if kind == "votes":
            return jax.nn.one_hot(jnp.argmax(logits, axis=-1), self.num_classes)
        return jax.nn.softmax(logits, axis=-1)

    @nn.compact
    def _logits(self, x: Array) -> Array:
        """float32 [M, B, K]."""
        member = models.create_model(
            self.member, num_classes=self.num_classes, **self.member_kwargs
        ).clone(parent=None)  # a network of its own: its parameters come stacked

        def init(key: Array):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(self.num_teachers))
            return jax.vmap(lambda key: _own_params(self.member, member, key, x.shape[1:]))(keys)

        stacked = self.param("members", init)
        inputs = partition_fit.public_part(member, x)
        return partition_fit.map_members(
            lambda params: partition_fit.member_logits(member, params, inputs), stacked, member
        )


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return FrozenDict({name: _hashable(each) for name, each in value.items()})
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _own_params(name: str, member: nn.Module, key: Array, input_shape: tuple[int, ...]):
    params, others = models.init_model(member, key, input_shape)
    if others:
        allowed = f"a teacher of an ensemble keeps no {', '.join(others)}: take norm group or none"
        raise InputError("model", name, allowed)
    return params


def make_answers(network: Mapping[str, Any]) -> Callable[..., Array]:
    """`answers(variables, images, *, kind="votes") -> float32 [M, B, K]`; preprocessing is inside.

    Pure and jit-safe (`kind` is static); images are uint8 or floats in [0, 1], [B, H, W, C].

    Args:
      network: an ensemble's spec, e.g. `load_model(path).spec`.

    Raises:
      InputError: field "teacher", the network is no ensemble.
    """
    module: Any = None if spec.is_text(network) else spec.build(network)
    if not hasattr(module, "answers"):
        raise InputError("teacher", network["model"], f"must be an ensemble, {MODEL}")
    mean, std, shape = network["mean"], network["std"], tuple(network["input_shape"])

    def answers(variables, images, *, kind: str = "votes") -> Array:
        if tuple(images.shape[1:]) != shape:
            raise ValueError(f"images {tuple(images.shape)}: this ensemble takes [B, {shape}]")
        check_range(images, jnp.floating, 0, 1, "images that are floats")
        return module.apply(variables, preprocess(images, mean, std), kind, method="answers")

    return answers


@trust.config_allows
def train_and_evaluate(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Fits all teachers or resumes; judges their plurality vote and each of them on the test split.

    A `dpdfd.features:FeatureRidge` is fitted in closed form, on one device; other networks by
    `num_steps` updates of the optimiser, `batch_size` examples of each teacher's own at a time.

    Returns:
      {"accuracy", "member_accuracy", "validation_accuracy", "validation_member_accuracy" (None
      without validation examples), "num_test", "id"}, JSON-able.

    Raises:
      InputError: wrong settings, before anything is written; and what `loop.run` raises.
    """
    hp = config.validate(settings, FIELDS)
    mode = parallel_lib.choose_mode(parallel)
    dataset, splits = classification.load_splits(hp, workdir)
    partitions.check_public(dataset)
    members = partitions.members_of(splits.train.record, hp["num_teachers"])
    one = spec.image_spec(model=hp["model"], model_kwargs=hp["model_kwargs"], dataset=dataset)
    spec.check(one)
    wrapping = {"member": hp["model"], "member_kwargs": hp["model_kwargs"]}
    wrapping["num_teachers"] = hp["num_teachers"]
    network = spec.image_spec(model=MODEL, model_kwargs=wrapping, dataset=dataset)
    spec.check(network)
    is_ridge = isinstance(spec.build(one), FeatureRidge)
    fit_mode = "jit" if is_ridge else mode
    if not is_ridge:
        parallel_lib.check_batch_size(hp["batch_size"])
    step_fn, tx = _compiled(json.dumps(one), json.dumps(hp), fit_mode)

    def batch_fn(step):
        if is_ridge:
            return partitions.whole(splits.train, members, step)
        rows = partitions.batch_rows(hp["seed"], step, hp["batch_size"], members)
        rows = rows[parallel_lib.local_rows(hp["batch_size"])]
        batch = {
            "image": splits.train.images[rows],
            "label": splits.train.labels[rows],
            "index": splits.train.index[rows],
        }
        return parallel_lib.feed(batch, fit_mode)

    rng = jax.random.key(hp["seed"])
    params, model_state = spec.init(network, stream_key(rng, STREAM_INIT, 0))
    metadata, reads = classification.describe(
        hp,
        workdir,
        method=provenance.METHOD,
        dataset=dataset,
        splits=splits,
        network=network,
        reads={},
    )
    num_steps = hp["num_teachers"] if is_ridge else hp["num_steps"]
    metadata["ensemble"] = provenance.describe(len(splits.train), hp["num_teachers"], num_steps)
    final = loop.run(
        workdir=workdir,
        state=TrainState.create(params=params, model_state=model_state, tx=tx, rng=rng),
        step_fn=step_fn,
        frozen={},
        batch_fn=batch_fn,
        num_steps=num_steps,
        metadata=metadata,
        reads=reads,
        layout=run_state.LAYOUT,
        mode=fit_mode,
        log_every=hp["log_every"],
        save_every=hp["save_every"],
        label="teachers",
    )
    variables = parallel_lib.place(checkpoint.to_host({"params": final.params}), mode)

    def measure(split: data.Split) -> dict[str, float]:
        return run_state.evaluate(
            _eval_step(json.dumps(network), mode),
            variables,
            lambda rows, mask: {
                "image": split.images[rows],
                "label": split.labels[rows],
                "mask": mask,
            },
            len(split),
            batch_size=hp["eval_batch_size"],
            mode=mode,
        )

    found = measure(splits.test)
    held = measure(splits.validation) if len(splits.validation) else {}
    if parallel_lib.is_main():
        note = f"; {dataset.note}" if dataset.note else ""
        print(
            f"test accuracy of the vote {found['accuracy']:.4f}, of a teacher "
            f"{found['member_accuracy']:.4f} ({len(splits.test)} examples{note})",
            flush=True,
        )
    return {
        **found,
        **{f"validation_{name}": held.get(name) for name in found},
        "num_test": len(splits.test),
        "id": checkpoint.find(workdir)[1]["id"],
    }


@functools.lru_cache(maxsize=4)
def _compiled(member: str, settings: str, mode: str):
    """(wrapped step, optimiser) of a member's JSON spec and a run's JSON settings."""
    hp, one = json.loads(settings), json.loads(member)
    module = spec.build(one)
    augmentation = {"strength": hp["deform"], "flip": hp["flip"]}
    if isinstance(module, FeatureRidge):
        step = partition_fit.make_ridge_step(
            module, one, copies=hp["copies"], ridge=hp["ridge"], **augmentation
        )
        return parallel_lib.wrap(step, mode, donate=True), optax.identity()
    tx = optimizers.make_optimizer(**{name: hp[name] for name in run_state.OPTIMIZER_FIELDS})
    on_cpu = mode == "jit" and jax.default_backend() == "cpu"
    if on_cpu and not partition_fit.has_public_part(module):
        return partition_fit.make_separate_gradient_step(module, one, tx, **augmentation), tx
    step = partition_fit.make_gradient_step(
        module, one, tx, axis_name=parallel_lib.axis_name(mode), **augmentation
    )
    return parallel_lib.wrap(step, mode, donate=True), tx


@functools.lru_cache(maxsize=4)
def _eval_step(network: str, mode: str) -> Callable:
    answers = make_answers(json.loads(network))

    def eval_fn(variables, frozen, batch):
        votes = answers(variables, batch["image"])  # [M, B, K]
        weight = batch["mask"].astype(jnp.float32)
        label = batch["label"][:, None]
        shares = jnp.mean(votes, axis=0)
        right = jnp.take_along_axis(shares, label, axis=-1)[:, 0]
        plural = jnp.argmax(shares, axis=-1) == batch["label"]
        return {
            "accuracy": (plural.astype(jnp.float32), weight),
            "member_accuracy": (right, weight),
        }

    step = make_eval_step(eval_fn, axis_name=parallel_lib.axis_name(mode))
    return parallel_lib.wrap(step, mode)
