"""A training run of a classifier whose step is a method's own: resumed, watched and measured.

For steps that `distill_core.classification.train` has no place for, because they see more of a
network than its logits, or train a part of it.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from distill_core import (
    checkpoint,
    classification,
    config,
    data,
    loop,
    parallel,
    run_state,
    train,
)

PyTree = Any


def describe(
    hp: Mapping[str, Any],
    workdir: epath.PathLike,
    *,
    method: str,
    dataset: data.Dataset,
    splits: classification.Splits,
    network: Mapping[str, Any],
    ancestors: tuple[Mapping[str, Any], ...],
) -> dict[str, Any]:
    """The metadata of the run's checkpoints.

    Raises:
      InputError: the workdir holds a run of other settings; so said before any of them is used.
    """
    metadata = run_state.metadata(
        hp,
        method=method,
        network=network,
        note=dataset.note,
        ancestors=ancestors,
        start=run_state.starting_point(hp, workdir),
    )
    metadata["num_examples"] = len(splits.train)
    if run_state.has_checkpoint(workdir):
        config.check_resume(checkpoint.find(workdir)[1]["config"], metadata["config"])
    return metadata


def compiled(hp: Mapping[str, Any], network: Mapping[str, Any], mode: str) -> tuple[Callable, Any]:
    """(evaluation step of the network, optimiser), as plain training has them."""
    _, eval_step, tx = classification.compiled(
        json.dumps(network),
        json.dumps({name: hp[name] for name in run_state.OPTIMIZER_FIELDS}),
        train.objective,
        hp["crop_padding"],
        hp["flip"],
        mode,
    )
    return eval_step, tx


def fit(
    hp: Mapping[str, Any],
    workdir: epath.PathLike,
    *,
    metadata: Mapping[str, Any],
    splits: classification.Splits,
    eval_step: Callable,
    state: PyTree,
    step_fn: Callable,
    batch_fn: Callable[[int], PyTree],
    frozen: PyTree,
    split: Callable[[PyTree], tuple[dict, PyTree]] = run_state.split_state,
    merge: Callable[[PyTree, dict, PyTree], PyTree] = run_state.merge_state,
    mode: str,
) -> dict[str, Any]:
    """Trains or resumes, then measures on the test split.

    Args:
      hp: validated values of `config.TRAINING` and the method's own.
      workdir: the run's directory.
      metadata: from `describe`.
      splits: as `classification.load_splits` gives them.
      eval_step: from `compiled`.
      state, step_fn, batch_fn, frozen, split, merge: as `loop.run` takes them; the part of `split`
        is the whole network.
      mode: from `parallel.choose_mode`.

    Returns:
      As `classification.train` does.

    Raises:
      InputError: before anything is written; and what `loop.run` raises.
    """

    def measure(state, examples, stopped=lambda: False):
        part = split(state)[0][run_state.PART]

        def take(rows, mask):
            return {"image": examples.images[rows], "label": examples.labels[rows], "mask": mask}

        return run_state.evaluate(
            eval_step,
            {"params": part["params"], **part["model_state"]},
            take,
            len(examples),
            batch_size=hp["eval_batch_size"],
            mode=mode,
            stopped=stopped,
        )

    watched = len(splits.validation) > 0
    final = loop.run(
        workdir=workdir,
        state=state,
        step_fn=step_fn,
        frozen=frozen,
        batch_fn=batch_fn,
        num_steps=hp["num_steps"],
        metadata=metadata,
        split=split,
        merge=merge,
        evaluate=(lambda state, stopped: measure(state, splits.validation, stopped))
        if watched
        else None,
        best="accuracy",
        mode=mode,
        log_every=hp["log_every"],
        eval_every=hp["eval_every"],
        save_every=hp["save_every"],
        label=metadata["method"],
    )
    accuracy = measure(final, splits.test)["accuracy"]
    held = measure(final, splits.validation)["accuracy"] if watched else None
    if parallel.is_main():
        note = f"; {metadata['data_note']}" if metadata["data_note"] else ""
        print(f"test accuracy {accuracy:.4f} ({len(splits.test)} examples{note})", flush=True)
    return {
        "accuracy": accuracy,
        "validation_accuracy": held,
        "num_test": len(splits.test),
        "digest": checkpoint.find(workdir)[1]["digest"],
    }
