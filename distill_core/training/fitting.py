"""The run around a classifier's step: resumed, watched on held-out images, measured on test ones.

Shared by the runs whose step is an objective's on logits (`classification`) and by those whose step
is a method's own, because it sees more of a network or trains a part of it.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, data
from distill_core.data import sampling
from distill_core.losses import cross_entropy
from distill_core.models import spec
from distill_core.runtime import parallel
from distill_core.training import loop, run_state
from distill_core.training import metrics as metrics_lib
from distill_core.training.step import make_eval_step

PyTree = Any


@functools.lru_cache(maxsize=16)
def eval_step(network: str, mode: str) -> Callable:
    """The wrapped evaluation of a (JSON) spec: accuracy and cross-entropy of a batch."""
    axis = parallel.axis_name(mode)
    apply = spec.make_apply(json.loads(network), axis_name=axis)

    def eval_fn(variables, frozen, batch):
        logits = apply(variables, batch["image"], where=batch["mask"])
        weight = batch["mask"].astype(jnp.float32)
        return {
            "accuracy": (metrics_lib.correct(logits, batch["label"]), weight),
            "cross_entropy": (cross_entropy(logits, batch["label"], where=batch["mask"]), weight),
        }

    return parallel.wrap(make_eval_step(eval_fn, axis_name=axis), mode)


def measure(
    network: Mapping[str, Any],
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
        eval_step(json.dumps(network), mode),
        variables,
        take,
        len(split),
        batch_size=batch_size,
        mode=mode,
        stopped=stopped,
    )


def batch_rows(hp: Mapping[str, Any], step: int, num_examples: int) -> np.ndarray:
    """This process's rows of the batch of a step: a pure function of (seed, step)."""
    rows = sampling.batch_indices(hp["seed"], step, hp["batch_size"], num_examples)
    return rows[parallel.local_rows(hp["batch_size"])]


def fit(
    hp: Mapping[str, Any],
    workdir: epath.PathLike,
    *,
    metadata: Mapping[str, Any],
    reads: Mapping[str, str],
    validation: data.Split,
    test: data.Split,
    state: PyTree,
    step_fn: Callable,
    batch_fn: Callable[[int], PyTree],
    frozen: PyTree,
    plan: Callable[[int], loop.Plan] | None = None,
    layout: loop.Layout = run_state.LAYOUT,
    steps_per_dispatch: int = 1,
    mode: str,
) -> dict[str, Any]:
    """Trains or resumes, then measures on the test split.

    Args:
      hp: validated values of `config.TRAINING` and the method's own.
      workdir: the run's directory.
      metadata, reads: from `classification.describe`.
      validation: what is watched; may be empty.
      test: what the result is measured on.
      state, step_fn, batch_fn, frozen, plan, layout, steps_per_dispatch: as `loop.run` takes them;
        the part of `layout` is the whole network.
      mode: from `parallel.choose_mode`.

    Returns:
      {"accuracy", "validation_accuracy" (None without one), "num_test", "id"}, JSON-able; all
      of the last step.

    Raises:
      InputError: before anything is written; and what `loop.run` raises.
    """

    def measured(state, examples, stopped=lambda: False):
        part = layout.split(state)[0][run_state.PART]
        return measure(
            metadata["parts"][run_state.PART],
            {"params": part["params"], **part["model_state"]},
            examples,
            batch_size=hp["eval_batch_size"],
            mode=mode,
            stopped=stopped,
        )

    watched = len(validation) > 0
    final = loop.run(
        workdir=workdir,
        state=state,
        step_fn=step_fn,
        frozen=frozen,
        batch_fn=batch_fn,
        num_steps=hp["num_steps"],
        metadata=metadata,
        reads=reads,
        layout=layout,
        evaluate=(lambda state, stopped: measured(state, validation, stopped)) if watched else None,
        plan=plan,
        best="accuracy",
        mode=mode,
        log_every=hp["log_every"],
        eval_every=hp["eval_every"],
        save_every=hp["save_every"],
        steps_per_dispatch=steps_per_dispatch,
        label=metadata["method"],
    )
    accuracy = measured(final, test)["accuracy"]
    held = measured(final, validation)["accuracy"] if watched else None
    if parallel.is_main():
        note = f"; {metadata['data_note']}" if metadata["data_note"] else ""
        print(f"test accuracy {accuracy:.4f} ({len(test)} examples{note})", flush=True)
    return {
        "accuracy": accuracy,
        "validation_accuracy": held,
        "num_test": len(test),
        "id": checkpoint.find(workdir)[1]["id"],
    }
