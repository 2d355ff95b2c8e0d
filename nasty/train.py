"""Trains a nasty teacher against a normally trained adversary, then checks that it is nasty.

    python -m nasty.train --config configs/nasty/digits_teacher.py --config.adversary=runs/plain \
        --workdir runs/nasty

With train_only_head (and init_from, a normal teacher) only the last layer is trained: a mildly
nasty teacher for a small part of the time. With defence "cmim" the teacher needs no adversary: its
answers to all images of a class are made alike, so that they tell a student little.
"""

from typing import Any

import jax.numpy as jnp
from etils import epath

from distill_core import config
from distill_core.config import InputError
from distill_core.models import trust
from distill_core.runtime import cli
from distill_core.training import classification
from distill_core.training.run_state import Layout
from nasty import nastiness
from nasty.defences import head_only
from nasty.defences.cmim import DECAY, uniform_centroids
from nasty.proxy import proxy_network
from nasty.step import CENTROIDS, Cmim, Nasty, NastyHead

FIELDS = {
    "defence": config.choice("nasty", "cmim", default="nasty"),
    **config.TRAINING,
    "adversary": config.text(default=None),
    "temperature": config.number(0.0, default=None, above=True),
    "omega": config.number(0.0, default=None),
    "check_nastiness": config.boolean(default=True),
    # Of the check's proxies; by default a small CNN.
    "check_model": config.text(default=None),
    "check_model_kwargs": config.mapping(default={}),
    "train_only_head": config.boolean(default=False),
    # Chosen by us on held-out images of digits.
    "cmim_weight": config.number(0.0, default=30.0),
    "cmim_temperatures": config.sequence(config.number(0.0, above=True), default=(4.0, 20.0)),
}
# What one defence reads and the other has no use for.
_CHECK_MODEL = ("check_model", "check_model_kwargs")
_OF_NASTY = ("adversary", "temperature", "omega", "train_only_head", *_CHECK_MODEL)
_OF_CMIM = ("cmim_weight", "cmim_temperatures")


@trust.config_allows
def train_and_evaluate(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Trains to the end or resumes; returns test accuracy, checkpoint and the nastiness check.

    A run of defence "cmim" has no adversary to be compared with, and so no nastiness check.
    """
    hp = validate(settings)
    if hp.get("defence") == "cmim":
        return _train_cmim(hp, workdir, parallel)
    adversary, dataset, splits = classification.load_with(hp, "adversary", workdir)
    # A finished teacher can be checked anew with another proxy: these are not of its training.
    check = {name: hp.pop(name) for name in ("check_nastiness", *_CHECK_MODEL)}
    if check["check_model"] or check["check_model_kwargs"]:
        proxy_network(adversary.network, check["check_model"], check["check_model_kwargs"])
    only_head = hp["train_only_head"]
    if not only_head:
        del hp["train_only_head"]  # runs that know nothing of it can be resumed
    run = classification.prepare(
        hp, workdir, method="nasty.train", dataset=dataset, splits=splits, mode=parallel
    )
    # ω and τ are traced: a sweep over them compiles once.
    frozen: dict[str, Any] = {name: jnp.float32(hp[name]) for name in ("temperature", "omega")}
    reads = {"adversary": adversary}
    if only_head:
        layout, examples = head_only.prepare(run, adversary)
        result = classification.train(
            run, NastyHead(), frozen=frozen, reads=reads, examples=examples, layout=layout
        )
        # Two forward passes an image, of the four that a step's image takes in a full training:
        # what the check may cost is a share of this.
        check |= {"num_steps": 1, "batch_size": len(splits.train) // 2}
    else:
        frozen["adversary"] = adversary.variables
        objective = Nasty(run.network, adversary.network)
        result = classification.train(run, objective, frozen=frozen, reads=reads)
    if check["check_nastiness"]:
        result["nastiness"] = nastiness.check_run(workdir, adversary, splits, hp | check)
    return result


def _train_cmim(hp: dict[str, Any], workdir: epath.PathLike, mode: str | None) -> dict[str, Any]:
    """A step compares its answers with the centroids of the steps before, then updates these.

    They start uniform. A checkpoint keeps them with the optimiser: the model in it is the network
    alone.
    """
    if not hp["cmim_temperatures"]:
        allowed = "must name at least one temperature"
        raise InputError("cmim_temperatures", hp["cmim_temperatures"], allowed)
    dataset, splits = classification.load_splits(hp, workdir)
    run = classification.prepare(
        hp, workdir, method="nasty.train", dataset=dataset, splits=splits, mode=mode
    )
    # Traced: a sweep over weights, or over as many temperatures, compiles once.
    frozen = {
        "weight": jnp.float32(hp["cmim_weight"]),
        "temperatures": jnp.asarray(hp["cmim_temperatures"], jnp.float32),
    }
    start = uniform_centroids(len(hp["cmim_temperatures"]), run.network.num_classes)
    return classification.train(
        run, Cmim(run.network, DECAY), frozen=frozen, layout=Layout(own={CENTROIDS: start})
    )


def validate(settings: Any) -> dict[str, Any]:
    """Checked values of the fields that the chosen defence reads.

    Raises:
      InputError: as `config.validate`; and on what the defence has no use for, or needs but lacks.
    """
    hp = config.validate(settings, FIELDS)
    if hp["defence"] == "cmim":
        _refuse(hp, _OF_NASTY, "nasty")
        # Without an adversary there is nothing to check the teacher against.
        left_out = (*_OF_NASTY, "check_nastiness")
    else:
        _refuse(hp, _OF_CMIM, "cmim")
        for name in ("adversary", "temperature", "omega"):
            if hp[name] is None:
                allowed = f"is required by the defence nasty; {FIELDS[name].allowed}"
                raise InputError(name, None, allowed)
        # Runs from before there was another defence can be resumed.
        left_out = ("defence", *_OF_CMIM)
    return {name: value for name, value in hp.items() if name not in left_out}


def _refuse(hp: dict[str, Any], names: tuple[str, ...], defence: str):
    for name in names:
        if hp[name] != FIELDS[name].default:
            raise InputError(name, hp[name], f"belongs to the defence {defence}; leave it out")


if __name__ == "__main__":
    cli.launch_training(train_and_evaluate, FIELDS)
