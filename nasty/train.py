"""Trains a nasty teacher against a normally trained adversary, then checks that it is nasty.

    python -m nasty.train --config configs/nasty/digits.py --config.adversary=runs/plain \
        --workdir runs/nasty

With train_only_head (and init_from, a normal teacher) only the last layer is trained: a mildly
nasty teacher for a small part of the time.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from etils import epath

from distill_core import classification, cli, config
from nasty import nastiness
from nasty.defences import head_only
from nasty.losses import nasty_loss

FIELDS = {
    **config.TRAINING,
    "adversary": config.text(),
    "temperature": config.number(0.0, above=True),
    "omega": config.number(0.0),
    "check_nastiness": config.boolean(default=True),
    "train_only_head": config.boolean(default=False),
}


@functools.cache
def objective_against(network: str) -> Callable:
    """The nasty loss against an adversary of this (JSON) spec, run on the teacher's images."""
    apply = classification.cached_apply(network)

    def objective(logits, images, labels, frozen, extra):
        adversary_logits = apply(frozen["adversary"], images)
        return nasty_loss(
            logits,
            adversary_logits,
            labels,
            temperature=frozen["temperature"],
            omega=frozen["omega"],
        )

    return objective


def train_and_evaluate(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Trains to the end or resumes; returns test accuracy, checkpoint and the nastiness check."""
    hp = config.validate(settings, FIELDS)
    dataset, splits = classification.load_splits(hp)
    adversary = classification.load_network(hp["adversary"], field="adversary", dataset=dataset)
    if hp["train_only_head"]:
        return _train_only_head(hp, workdir, dataset, splits, adversary, parallel)
    del hp["train_only_head"]  # runs that know nothing of it can be resumed
    # ω and τ are traced: a sweep over them compiles once.
    frozen = {
        "adversary": adversary.variables,
        "temperature": jnp.float32(hp["temperature"]),
        "omega": jnp.float32(hp["omega"]),
    }
    result = classification.train(
        hp,
        workdir,
        method="nasty.train",
        dataset=dataset,
        splits=splits,
        objective=objective_against(json.dumps(adversary.spec)),
        frozen=frozen,
        ancestors=(adversary.metadata,),
        mode=parallel,
    )
    if hp["check_nastiness"]:
        result["nastiness"] = nastiness.check_run(workdir, adversary, splits, hp)
    return result


def _train_only_head(hp, workdir, dataset, splits, adversary, parallel) -> dict[str, Any]:
    result = head_only.train(
        hp,
        workdir,
        method="nasty.train",
        dataset=dataset,
        splits=splits,
        adversary=adversary,
        mode=parallel,
    )
    if hp["check_nastiness"]:
        # Two forward passes an image, of the four that a step's image takes in a full training:
        # what the check may cost is a share of this.
        done = {"num_steps": 1, "batch_size": len(splits.train) // 2}
        result["nastiness"] = nastiness.check_run(workdir, adversary, splits, {**hp, **done})
    return result


if __name__ == "__main__":
    cli.launch_training(train_and_evaluate, FIELDS)
