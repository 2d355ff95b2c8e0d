"""The state of a training run: how it starts, what a checkpoint keeps of it, what it is made from.

Shared by the training of classifiers and of language models.
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from distill_core import checkpoint, loop, parallel, spec
from distill_core import metrics as metrics_lib
from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.training import STREAM_INIT, TrainState, stream_key

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
    if hp["init_from"] and not has_checkpoint(workdir):
        with about("init_from", hp["init_from"]):
            found = checkpoint.load_model(hp["init_from"]).variables
            model_state = checkpoint.fit(hp["init_from"], spec.variable_shapes(network), found)
        params = model_state.pop("params")
    else:
        params, model_state = spec.init(network, stream_key(rng, STREAM_INIT, 0))
    return TrainState.create(params=params, model_state=model_state, tx=tx, rng=rng)


def starting_point(hp: Mapping[str, Any], workdir: epath.PathLike) -> list[dict[str, Any]]:
    """{"digest", "ledger"} of the checkpoint that the run's first weights are from, if any.

    Of a run with a checkpoint of its own: all ancestors that its ledger names, for the path may
    hold something else by now.
    """
    if has_checkpoint(workdir):
        return list(checkpoint.find(workdir)[1]["ledger"].get("ancestors", []))
    if not hp["init_from"]:
        return []
    with about("init_from", hp["init_from"]):
        found = checkpoint.load_model(hp["init_from"]).metadata
    return [_ancestor(found)]


def split_state(state: TrainState):
    """(parts, train) for the checkpoint."""
    parts = {PART: {"params": state.params, "model_state": state.model_state}}
    return parts, {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}


def merge_state(state: TrainState, parts, train) -> TrainState:
    """The inverse of `split_state`."""
    return state.replace(**parts[PART], **train)


def metadata(
    hp: Mapping[str, Any],
    *,
    method: str,
    network: Mapping[str, Any],
    note: str = "",
    ancestors: Sequence[Mapping[str, Any]] = (),
    extra: Mapping[str, np.ndarray] | None = None,
    start: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What the checkpoints of a run say of it.

    Args:
      hp: the validated config.
      method: the binary.
      network: the spec of its network.
      note: belongs beside every number from this data.
      ancestors: metadata of the checkpoints that this one is made from.
      extra: arrays that it is made from. Both are kept by content: when the run is resumed, a path
        may hold something else.
      start: what `starting_point` gave; stands in the ledger beside the ancestors.
    """
    known = {each["digest"] for each in ancestors}
    digests = [each["digest"] for each in ancestors]
    digests += [checkpoint.digest(dict(extra))] if extra else []
    inputs = {"inputs": digests} if digests else {}
    return {
        "method": method,
        "parts": {PART: network},
        "config": {**json.loads(json.dumps(dict(hp))), **inputs},
        "data_note": note,
        "ledger": {
            "mechanisms": [],
            "ancestors": [
                *map(_ancestor, ancestors),
                *(dict(each) for each in start if each["digest"] not in known),
            ],
        },
    }


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


def _ancestor(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """How a ledger names a checkpoint that a run is made from."""
    return {"digest": metadata["digest"], "ledger": metadata["ledger"]}


def has_checkpoint(workdir: epath.PathLike) -> bool:
    """Whether there is a whole one, so that a run would resume from it."""
    try:
        checkpoint.find(workdir)
    except InputError:
        return False
    return True
