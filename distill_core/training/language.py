"""A training run of a language model: rows of tokens, network and batches around an objective.

A method gives an objective, `objective(hidden, embedding, batch, frozen) -> (total, sums)`: the
sum of weight · loss over a batch's tokens, from the trained network's hidden states `[B, L, D]` and
embedding `[V, D]`, and further such sums by name, for the log. `batch` holds rows of the arrays
that the run was given.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint
from distill_core.data import sampling
from distill_core.models import spec
from distill_core.runtime import parallel
from distill_core.training import chunked, dp_sgd, loop, optimizers, run_state
from distill_core.training import gradients as dp_gradient
from distill_core.training.step import make_eval_step, make_train_step

CLASS = "class_"  # prefix of the arrays that say which tokens a metric of their own is wanted for
Rows = Mapping[str, np.ndarray]


def train(
    hp: Mapping[str, Any],
    workdir: epath.PathLike,
    *,
    method: str,
    network: Mapping[str, Any],
    rows: Rows,
    validation: Rows,
    objective: Callable,
    frozen: Any,
    reads: Mapping[str, checkpoint.LoadedModel | str],
    description: str = "",
    mode: str | None = None,
) -> str:
    """Trains a language model by an objective, or resumes it; returns the checkpoint's id.

    Args:
      hp: validated values of `config.MODEL`, `OPTIMIZER` and `RUN`, and the method's own; with a
        group `dp` (see `dp_sgd`) the training is differentially private, and a record is a line.
      workdir: the run's directory.
      method: written into the checkpoint.
      network: spec of the network to train.
      rows: `tokens`, `labels`, `segments` int32 [N, L], `weights` float32 [N, L], and what else the
        objective reads, [N, L] each. With `dp` a row is one whole line (`text_tasks.line_rows`).
      validation: likewise, without the objective's own; see `measure`. Public, also with `dp`.
      objective: see above; a module-level or cached function, since compiled steps are reused.
      frozen: what the objective reads, e.g. a teacher's variables; or a function of the step that
        the run starts from which gives it, called while the run holds its workdir.
      reads: what the run reads; see `run_state.describe`.
      description: a line for the console, printed when all has been checked.
      mode: see `parallel.choose_mode`.

    Raises:
      InputError: before anything is written; and what `loop.run` raises.
    """
    mode = parallel.choose_mode(mode)
    key = json.dumps(dict(network))
    optimizer = json.dumps({name: hp[name] for name in run_state.OPTIMIZER_FIELDS})
    metadata, prints = run_state.describe(hp, workdir, method=method, network=network, reads=reads)
    private = None
    if hp.get("dp"):
        _check_lines(rows["segments"])
        private = dp_sgd.PrivateRun(hp, workdir, metadata, network, data=dict(rows), mode=mode)
        metadata, prints = private.metadata, prints | private.reads
    else:
        parallel.check_batch_size(hp["batch_size"])
    copies = private.augmentations if private else None
    step_fn, tx = _compiled_step(key, optimizer, objective, mode, copies)
    num_rows = len(rows["tokens"])

    def batch_fn(step):
        if private:
            batch = private.batch(
                step, lambda index: {k: array[index] for k, array in rows.items()}
            )
            return parallel.feed(batch, mode)
        index = sampling.batch_indices(hp["seed"], step, hp["batch_size"], num_rows)
        index = index[parallel.local_rows(hp["batch_size"])]
        return parallel.feed({name: array[index] for name, array in rows.items()}, mode)

    def evaluate(state, stopped):
        variables = {"params": state.params, **state.model_state}
        return _measure(key, variables, validation, hp["eval_batch_size"], mode, stopped)

    if private:
        plan = private.plan(frozen)
    else:
        plan = _plan(frozen, metadata["ledger"], hp["num_steps"]) if callable(frozen) else None
    state = run_state.initial_state(hp, workdir, network, tx)
    if description and parallel.is_main():
        print(description, flush=True)
    loop.run(
        workdir=workdir,
        state=state,
        step_fn=step_fn,
        frozen={} if callable(frozen) else frozen,
        batch_fn=batch_fn,
        num_steps=hp["num_steps"],
        metadata=metadata,
        reads=prints,
        layout=run_state.LAYOUT,
        evaluate=evaluate,
        plan=plan,
        best="accuracy",
        mode=mode,
        log_every=hp["log_every"],
        eval_every=hp["eval_every"],
        save_every=hp["save_every"],
        label=method,
    )
    return checkpoint.find(workdir)[1]["id"]


def _plan(frozen: Callable, ledger: Any, num_steps: int) -> Callable[[int], loop.Plan]:
    return lambda start: loop.Plan(frozen(start), lambda step: ledger, num_steps)


@functools.cache
def label_objective(vocab_size: int) -> Callable:
    """An objective: cross-entropy with the labels alone."""
    chunk = chunked.chunk_for(vocab_size)

    def objective(hidden, embedding, batch, frozen):
        values, correct = chunked.cross_entropy_from_hidden(
            hidden, embedding, batch["labels"], chunk=chunk
        )
        weights = batch["weights"]
        return jnp.sum(values * weights), {"accuracy": jnp.sum(correct * weights)}

    return objective


def measure(
    loaded: checkpoint.LoadedModel, rows: Rows, *, batch_size: int = 64, mode: str | None = None
) -> dict[str, float]:
    """Cross-entropy (nats a token) and accuracy of a language model over all weighted tokens.

    Args:
      loaded: the model.
      rows: as in `train`; for each array `class_NAME` (bool [N, L]) there is a metric
        `cross_entropy_NAME` over those tokens alone, NaN if there are none.
      batch_size: of the forward passes.
      mode: see `parallel.choose_mode`.
    """
    mode = parallel.choose_mode(mode)
    variables = parallel.place(loaded.variables, mode)
    return _measure(json.dumps(dict(loaded.spec)), variables, rows, batch_size, mode)


def _check_lines(segments: np.ndarray):
    """A claim about lines needs rows of one whole line each."""
    known = np.where(segments >= 0, segments, segments.max(1, keepdims=True))
    if (known != known[:, :1]).any() or len(np.unique(known[:, 0])) < len(known):
        raise ValueError("rows: got several lines in a row, or a line in several; see line_rows")


def _measure(key, variables, rows, batch_size, mode, stopped=lambda: False):
    names = ["tokens", "labels", "segments", "weights"]
    names += [name for name in rows if name.startswith(CLASS)]

    def take(index, mask):
        batch = {name: rows[name][index] for name in names}
        return {**batch, "weights": batch["weights"] * mask[:, None]}

    step = _compiled_measure(key, mode)
    num = len(rows["tokens"])
    return run_state.evaluate(
        step, variables, take, num, batch_size=batch_size, mode=mode, stopped=stopped
    )


@functools.lru_cache(maxsize=16)
def _compiled_step(
    network: str, optimizer: str, objective: Callable, mode: str, copies: int | None
):
    axis = parallel.axis_name(mode)
    hidden_fn = spec.make_hidden(json.loads(network))
    tx = optimizers.make_optimizer(**json.loads(optimizer))

    def loss_fn(params, model_state, frozen, batch, key):
        variables = {"params": params, **model_state}
        hidden, embedding = hidden_fn(variables, batch["tokens"], batch["segments"])
        total, sums = objective(hidden, embedding, batch, frozen)
        weight = jnp.sum(batch["weights"])
        known = jnp.where(weight > 0, weight, 1.0)
        sums = {name: (value[None] / known, weight[None]) for name, value in sums.items()}
        return total[None] / known, weight[None], model_state, sums

    gradient_fn = dp_gradient.gradient_fn(copies) if copies else None
    step = make_train_step(loss_fn, tx, axis_name=axis, gradient_fn=gradient_fn)
    return parallel.wrap(step, mode, donate=True), tx


@functools.lru_cache(maxsize=16)
def _compiled_measure(network: str, mode: str):
    described = json.loads(network)
    hidden_fn, chunk = spec.make_hidden(described), chunked.chunk_for(described["num_classes"])

    def eval_fn(variables, frozen, batch):
        states, embedding = hidden_fn(variables, batch["tokens"], batch["segments"])
        values, correct = chunked.cross_entropy_from_hidden(
            states, embedding, batch["labels"], chunk=chunk
        )
        weights = batch["weights"]
        found = {"cross_entropy": (values, weights), "accuracy": (correct, weights)}
        for name, mask in batch.items():
            if name.startswith(CLASS):
                found[f"cross_entropy_{name.removeprefix(CLASS)}"] = (values, weights * mask)
        return found

    return parallel.wrap(make_eval_step(eval_fn, axis_name=parallel.axis_name(mode)), mode)
