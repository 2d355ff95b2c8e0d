"""The state of a training run: how it starts, what a checkpoint keeps of it, what it is made from.

Shared by the training of classifiers and of language models.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from distill_core import checkpoint
from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.models import spec
from distill_core.runtime import parallel
from distill_core.training import fits, inputs, loop
from distill_core.training import metrics as metrics_lib
from distill_core.training.step import STREAM_INIT, TrainState, stream_key

PART = "model"
OPTIMIZER_FIELDS = (
    "optimizer",
    "learning_rate",
    "momentum",
    "weight_decay",
    "schedule",
    "drop_steps",
    "drop_factor",
    "num_steps",
)


def initial_state(
    hp: Mapping[str, Any], workdir: epath.PathLike, network: Mapping[str, Any], tx: Any
) -> TrainState:
    """Fresh, or with the weights of `init_from` if the workdir has no checkpoint of its own."""
    rng = jax.random.key(hp["seed"])
    if start := _starting_point(hp, workdir):
        with about("init_from", hp["init_from"]):
            fits.check_start("init_from", hp["init_from"], start.spec, network)
            shapes = spec.variable_shapes(network)
            model_state = checkpoint.fit(hp["init_from"], shapes, start.variables)
        params = model_state.pop("params")
    else:
        params, model_state = spec.init(network, stream_key(rng, STREAM_INIT, 0))
    return TrainState.create(params=params, model_state=model_state, tx=tx, rng=rng)


def starting_network(hp: Mapping[str, Any], workdir: epath.PathLike) -> Mapping[str, Any] | None:
    """The spec of the network whose weights a run starts or goes on from; None from scratch."""
    if has_checkpoint(workdir):
        return checkpoint.find(workdir)[1]["parts"].get(PART)
    start = _starting_point(hp, workdir)
    return None if start is None else start.spec


def _starting_point(
    hp: Mapping[str, Any], workdir: epath.PathLike
) -> checkpoint.LoadedModel | None:
    """What the run's first weights are from; None where they are its own, or fresh."""
    if not hp.get("init_from") or has_checkpoint(workdir):
        return None  # it resumes from its checkpoint; the path may hold something else by now
    with about("init_from", hp["init_from"]):
        return checkpoint.load_model(hp["init_from"])


def check_unchanged(
    hp: Mapping[str, Any],
    workdir: epath.PathLike,
    reads: Mapping[str, checkpoint.LoadedModel | str],
):
    """`loop.run`'s refusal of other data than a run began with, before anything is made of it.

    Else a data set of another size would be refused for what does not fit it. A field that was set
    to something else is left to `loop.run`.
    """
    if has_checkpoint(workdir):
        began = checkpoint.find(workdir)[1]["config"]
        same = {field: each for field, each in reads.items() if began.get(field) == hp[field]}
        inputs.check(workdir, _prints(same), hp, resumes=False)


def _prints(reads: Mapping[str, checkpoint.LoadedModel | str]) -> dict[str, str]:
    return {k: v if isinstance(v, str) else inputs.of_model(v) for k, v in reads.items()}


def split_state(state: TrainState):
    """(parts, train) for the checkpoint."""
    parts = {PART: {"params": state.params, "model_state": state.model_state}}
    return parts, {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}


def merge_state(state: TrainState, parts, train) -> TrainState:
    """The inverse of `split_state`."""
    return state.replace(**parts[PART], **train)


LAYOUT = loop.Layout(split_state, merge_state)


def describe(
    hp: Mapping[str, Any],
    workdir: epath.PathLike,
    *,
    method: str,
    network: Mapping[str, Any],
    reads: Mapping[str, checkpoint.LoadedModel | str],
    note: str = "",
) -> tuple[dict[str, Any], dict[str, str]]:
    """What the checkpoints of a run say of it, and what it reads, by content.

    Args:
      hp: the validated config.
      workdir: the run's directory. Of a run with a checkpoint the ancestors are those that its
        ledger names.
      method: the binary.
      network: the spec of its network.
      reads: field of the config -> the network that it names, or a fingerprint of its data.
      note: belongs beside every number from this data.

    Returns:
      (metadata, inputs), as `loop.run` takes them. The second is for `private/` alone.
    """
    if start := _starting_point(hp, workdir):
        reads = {**reads, "init_from": start}
    models = {k: v for k, v in reads.items() if isinstance(v, checkpoint.LoadedModel)}
    if has_checkpoint(workdir):
        ancestors = checkpoint.find(workdir)[1]["ledger"].get("ancestors", [])
    else:
        once = {each.metadata["id"]: each.metadata["ledger"] for each in models.values()}
        ancestors = [{"id": id, "ledger": ledger} for id, ledger in once.items()]
    about = {
        "method": method,
        "parts": {PART: network},
        "config": json.loads(json.dumps(dict(hp))),
        "data_note": note,
        "ledger": {"mechanisms": [], "ancestors": ancestors},
    }
    return about, _prints(reads)


def evaluate(
    eval_step: Callable,
    variables: Any,
    take: Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]],
    num_examples: int,
    *,
    batch_size: int,
    mode: str,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Means over all examples of a split, each counted once; NaN where no weight is.

    Args:
      eval_step: wrapped, from `make_eval_step`.
      variables: of the network.
      take: `take(rows, mask) -> batch`, those examples; masked ones must not count.
      num_examples: in the split.
      batch_size: global; rounded to the devices.
      mode: as for `parallel.wrap`.
      stopped: asked before every batch.

    Raises:
      StoppedError: if `stopped()`, in a run of one process.
    """
    devices = jax.device_count()
    batch_size = -(-min(batch_size, num_examples) // devices) * devices
    rows_here = parallel.local_rows(batch_size)
    found = []
    for rows, mask in sampling.eval_batches(num_examples, batch_size):
        if stopped() and jax.process_count() == 1:
            raise loop.StoppedError
        batch = take(rows[rows_here], mask[rows_here])
        found.append(eval_step(variables, {}, parallel.feed(batch, mode)))
    totals = metrics_lib.add(jax.device_get(found))
    return {
        name: total / count if count else float("nan") for name, (total, count) in totals.items()
    }


@contextlib.contextmanager
def about(field: str, path: str):
    """Names the field that gave the path of a checkpoint in what is wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(field, path, error.allowed) from None


def has_checkpoint(workdir: epath.PathLike) -> bool:
    """Whether there is a whole one, so that a run would resume from it."""
    try:
        checkpoint.find(workdir)
    except InputError:
        return False
    return True
