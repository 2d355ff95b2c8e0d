r"""Trains a nasty teacher against a normally trained adversary, then checks that it is nasty.

    python -m nasty.train --config configs/nasty/digits_teacher.py --config.adversary=runs/plain \
        --workdir runs/nasty

With `train_only_head`, and a normal teacher as `init_from`, only the last layer is trained: this
gives a mildly nasty teacher in a small part of the time. The defence "cmim" needs no adversary: it
makes the teacher's answers to all images of a class alike, so that they tell a student little.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from etils import epath

from distill_core import checkpoint, config
from distill_core.config import InputError
from distill_core.models import trust
from distill_core.models.network import stored_as
from distill_core.runtime import cli
from distill_core.training import classification
from distill_core.training.run_state import Layout
from nasty import nastiness
from nasty.defences import head_only
from nasty.defences.cmim import DECAY, uniform_centroids
from nasty.step import CENTROIDS, Cmim, Nasty, NastyHead


@config.settings
class Settings(config.Frozen, config.Training):
    """Settings of a nasty teacher."""

    defence: str = config.choice("nasty", "cmim", default="nasty", help="how to be undistillable")
    adversary: str | None = config.text(
        default=None, help="of nasty: the checkpoint of a normal network to get away from"
    )
    temperature: float | None = config.number(
        0.0, default=None, above=True, help="of nasty: τ, softens both sides"
    )
    omega: float | None = config.number(
        0.0, default=None, help="of nasty: ω, weight of the adversarial term"
    )
    train_only_head: bool = config.boolean(
        default=False, help="of nasty: trains the last layer of init_from alone"
    )
    check_nastiness: bool = config.boolean(
        default=True, help="of nasty: tries at the end whether students are damaged"
    )
    check_model: str | None = config.text(
        default=None, help="network of the check's students; by default a small CNN"
    )
    check_model_kwargs: Mapping[str, Any] = config.mapping(default={}, help="its settings")
    # Chosen by us on held-out images of digits.
    cmim_weight: float = config.number(0.0, default=30.0, help="of cmim: of the divergences")
    cmim_temperatures: tuple[float, ...] = config.sequence(
        config.number(0.0, above=True), default=(4.0, 20.0), help="of cmim: at which they are taken"
    )


# What one defence reads and the other has no use for.
_OF_NASTY = (
    *("adversary", "temperature", "omega", "train_only_head"),
    *("check_model", "check_model_kwargs", "frozen_dtype"),
)
_OF_CMIM = ("cmim_weight", "cmim_temperatures")


@trust.config_allows
def train_and_evaluate(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Trains to the end or resumes; returns test accuracy, checkpoint and the nastiness check.

    A run of defence "cmim" has no adversary to be compared with, and so no nastiness check.
    """
    hp = validate(settings)
    if hp.defence == "cmim":
        return _train_cmim(hp, workdir, parallel)
    adversary, dataset, splits = classification.load_with(hp, "adversary", workdir)
    if hp.check_model or hp.check_model_kwargs:
        nastiness.proxy_network(adversary.network, hp.check_model, hp.check_model_kwargs)
    run = classification.prepare(
        hp, workdir, method="nasty.train", dataset=dataset, splits=splits, mode=parallel
    )
    # ω and τ are traced: a sweep over them compiles once.
    frozen: dict[str, Any] = {
        "temperature": jnp.float32(hp.temperature),
        "omega": jnp.float32(hp.omega),
    }
    reads, trained_on = {"adversary": adversary}, hp.num_steps * hp.batch_size
    if hp.train_only_head:
        config.check_unset(hp, ("frozen_dtype",), "the adversary is asked once, before training")
        layout, examples = head_only.prepare(run, adversary)
        result = classification.train(
            run, NastyHead(), frozen=frozen, reads=reads, examples=examples, layout=layout
        )
        # Two forward passes an image, of the four that a step's image takes in a full training:
        # what the check may cost is a share of this.
        trained_on = len(splits.train) // 2
    else:
        asked = stored_as(adversary, hp.frozen_dtype)
        frozen["adversary"] = asked.variables
        objective = Nasty(run.network, asked.network)
        result = classification.train(run, objective, frozen=frozen, reads=reads)
    if hp.check_nastiness:
        found = nastiness.check(
            checkpoint.load_model(workdir),
            adversary,
            splits.train,
            splits.validation,
            temperature=hp.temperature or 0.0,  # which the defence nasty requires
            training_examples=trained_on,
            model=hp.check_model,
            model_kwargs=hp.check_model_kwargs,
        )
        result["nastiness"] = nastiness.say(workdir, found)
    return result


def _train_cmim(hp: Settings, workdir: epath.PathLike, mode: str | None) -> dict[str, Any]:
    """A step compares its answers with the centroids of the steps before, then updates these.

    They start uniform. A checkpoint keeps them with the optimiser: the model in it is the network
    alone.
    """
    if not hp.cmim_temperatures:
        allowed = "must name at least one temperature"
        raise InputError("cmim_temperatures", hp.cmim_temperatures, allowed)
    dataset, splits = classification.load_splits(hp, workdir)
    run = classification.prepare(
        hp, workdir, method="nasty.train", dataset=dataset, splits=splits, mode=mode
    )
    # Traced: a sweep over weights, or over as many temperatures, compiles once.
    frozen = {
        "weight": jnp.float32(hp.cmim_weight),
        "temperatures": jnp.asarray(hp.cmim_temperatures, jnp.float32),
    }
    start = uniform_centroids(len(hp.cmim_temperatures), run.network.num_classes)
    return classification.train(
        run, Cmim(run.network, DECAY), frozen=frozen, layout=Layout(own={CENTROIDS: start})
    )


def validate(settings: Any) -> Settings:
    """Checked settings.

    Raises:
      InputError: as `config.validate`; and on what the defence has no use for, or needs but lacks.
    """
    hp, fields = config.validate(settings, Settings), config.fields(Settings)
    other = "nasty" if hp.defence == "cmim" else "cmim"
    names = _OF_NASTY if other == "nasty" else _OF_CMIM
    config.check_unset(hp, names, f"belongs to the defence {other}; leave it out")
    for name in ("adversary", "temperature", "omega") if hp.defence == "nasty" else ():
        if getattr(hp, name) is None:
            allowed = f"is required by the defence nasty; {fields[name].allowed}"
            raise InputError(name, None, allowed)
    return hp


if __name__ == "__main__":
    cli.launch_training(train_and_evaluate, Settings)
