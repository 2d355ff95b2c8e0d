"""Trains a nasty teacher against a normally trained adversary, then checks that it is nasty.

    python -m nasty.train --config configs/nasty/digits.py --config.adversary=runs/plain \
        --workdir runs/nasty
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from etils import epath

from distill_core import classification, cli, config
from nasty import nastiness
from nasty.losses import nasty_loss

FIELDS = {
    **config.TRAINING,
    "adversary": config.text(),
    "temperature": config.number(0.0, above=True),
    "omega": config.number(0.0),
    "check_nastiness": config.boolean(default=True),
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


if __name__ == "__main__":
    cli.launch_training(train_and_evaluate, FIELDS)
