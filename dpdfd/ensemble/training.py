"""Fits an ensemble of teachers on fixed disjoint partitions of the training set.

python -m dpdfd.ensemble --config configs/dpdfd/ensemble_digits.py --workdir runs/ensemble

A record's teacher depends only on the record's index, so that one changed record changes one
teacher. The ensemble itself is as private as its data: only noisy answers, or a noisy mean of its
heads, may be released.
Source: our reconstruction, after Papernot et al., "Semi-supervised Knowledge Transfer for Deep
Learning from Private Training Data", ICLR 2017, with the partitions of `partitions.partition`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath

from distill_core import checkpoint, config, data
from distill_core.models import checks, has_public_part, trust
from distill_core.models.network import Network, image_network
from distill_core.runtime import parallel as parallel_lib
from distill_core.training import classification, linear, loop, run_state
from distill_core.training.optimizers import Optimizer
from distill_core.training.run_state import Layout
from distill_core.training.step import STREAM_INIT, Evaluation, TrainState, Update, stream_key
from dpdfd.ensemble import partition_fit, partitions, provenance
from dpdfd.ensemble.network import answers

MODEL = provenance.ENSEMBLE


@config.settings
class Settings(config.Steps, config.Optimizer, config.Model, config.Data):
    """Of an ensemble; a ridge has no use for batches, steps and an optimiser."""

    num_teachers: int = config.integer(1, help="M, teachers on parts of the data of their own")
    deform: float = config.number(0.0, default=1.0, help="strength of random deformations")
    flip: bool = config.boolean(default=False, help="mirrors half of the images")
    copies: int = config.integer(
        0, default=8, help="of a ridge: deformed images beside each image itself"
    )
    ridge: float = config.number(0.0, default=1e-3, above=True, help="of a ridge: its penalty")
    optimizer: str = config.choice("sgd", "adam", default="adam", help="the update rule")
    learning_rate: float = config.number(0.0, above=True, default=1e-3, help="of the first step")
    batch_size: int = config.integer(1, default=32, help="of each teacher's own examples")
    num_steps: int = config.integer(1, default=1000, help="updates in all")


@trust.config_allows
def train_and_evaluate(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Fits all teachers or resumes; judges their plurality vote and each of them on the test split.

    Linear layers on public features (`scattering`, `dpdfd.features:FeatureRidge`) are fitted in
    closed form, on one device; other networks by `num_steps` updates of the optimiser, `batch_size`
    examples of each teacher's own at a time.

    Args:
      settings: a config or mapping with the fields of `Settings`.
      workdir: where the run lives, local or `gs://…`.
      parallel: how a step is spread over devices, as `--parallel` or `--mesh`.

    Returns:
      {"accuracy", "member_accuracy", "validation_accuracy", "validation_member_accuracy" (None
      without validation examples), "num_test", "id"}, JSON-able.

    Raises:
      InputError: wrong settings, before anything is written; and what `loop.run` raises.
    """
    hp = config.validate(settings, Settings)
    # The claim is that a record changes one teacher.
    config.check_unset(hp, ("clip_norm",), "would couple the teachers: it is of all gradients")
    mode = parallel_lib.choose_mode(parallel)
    parallel_lib.check_no_model(mode)
    dataset, splits = classification.load_splits(hp, workdir)
    partitions.check_public(dataset)
    members = partitions.members_of(splits.train.record, hp.num_teachers)
    own = {"model": hp.model, "model_kwargs": hp.model_kwargs}
    member = image_network(dataset, **own)
    checks.check(member)
    wrapping = {"member": own["model"], "member_kwargs": own["model_kwargs"]}
    wrapping["num_teachers"] = hp.num_teachers
    network = image_network(dataset, model=MODEL, model_kwargs=wrapping)
    checks.check(network)
    is_ridge = linear.is_linear(member)
    fit_mode = "jit" if is_ridge else mode
    if not is_ridge:
        parallel_lib.check_batch_size(hp.batch_size, mode)

    def batch_fn(step):
        if is_ridge:
            return partitions.whole(splits.train, members, step)
        rows = partitions.batch_rows(hp.seed, step, hp.batch_size, members)
        rows = rows[parallel_lib.local_rows(hp.batch_size, fit_mode)]
        batch = {
            "image": splits.train.images[rows],
            "label": splits.train.labels[rows],
            "index": splits.train.index[rows],
        }
        return parallel_lib.feed(batch, fit_mode)

    run = classification.Run(hp, workdir, provenance.METHOD, dataset, splits, network, mode)
    metadata, reads = run.describe({})
    num_steps = hp.num_teachers if is_ridge else hp.num_steps
    metadata["ensemble"] = provenance.describe(len(splits.train), hp.num_teachers, num_steps)
    final = loop.run(
        workdir,
        _first_state(hp, network, is_ridge),
        loop.Program(_step_fn(hp, member, is_ridge, fit_mode), batch_fn, {}, fit_mode),
        loop.Checkpoints(Layout(), metadata, reads),
        num_steps=num_steps,
        cadence=loop.Cadence(hp.log_every, save_every=hp.save_every),
    )
    variables = parallel_lib.place(
        checkpoint.to_host({"params": final.params, **final.model_state}), mode
    )

    def measure(split: data.Split) -> dict[str, float]:
        return run_state.evaluate(
            Evaluation(_Judged(network)),
            variables,
            lambda rows, mask: {
                "image": split.images[rows],
                "label": split.labels[rows],
                "mask": mask,
            },
            len(split),
            batch_size=hp.eval_batch_size,
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


def _first_state(hp: Settings, network: Network, is_ridge: bool) -> TrainState:
    rng = jax.random.key(hp.seed)
    params, model_state = network.init(stream_key(rng, STREAM_INIT, 0))
    tx = optax.identity() if is_ridge else Optimizer.of(hp).make()
    return TrainState.create(params=params, model_state=model_state, tx=tx, rng=rng)


def _step_fn(hp: Settings, member: Network, is_ridge: bool, mode: str) -> Callable:
    copied = {"strength": hp.deform, "flip": hp.flip}
    if is_ridge:
        step = partition_fit.RidgeFit(member, copies=hp.copies, ridge=hp.ridge, **copied)
        return parallel_lib.wrap(step, mode, donate=True)
    objective, optimizer = partition_fit.MemberLoss(member, **copied), Optimizer.of(hp)
    on_cpu = mode == "jit" and jax.default_backend() == "cpu"
    if on_cpu and not has_public_part(member.module()):
        return partition_fit.SeparateUpdate(objective, optimizer)
    update = Update(objective, optimizer, partition_fit.member_gradients)
    return parallel_lib.wrap(update, mode, donate=True)


@dataclasses.dataclass(frozen=True)
class _Judged:
    """Accuracy of the plurality vote, and of a member."""

    network: Network

    def __call__(self, variables, frozen, batch):
        votes = answers(self.network, variables, batch["image"])  # [M, B, K]
        weight = batch["mask"].astype(jnp.float32)
        label = batch["label"][:, None]
        shares = jnp.mean(votes, axis=0)
        right = jnp.take_along_axis(shares, label, axis=-1)[:, 0]
        plural = jnp.argmax(shares, axis=-1) == batch["label"]
        return {
            "accuracy": (plural.astype(jnp.float32), weight),
            "member_accuracy": (right, weight),
        }
