"""Attacks a teacher: distils a student from it by another way than plain distillation.

    python -m nasty.attack --config configs/nasty/attack_digits.py --config.teacher=runs/nasty \
        --config.attack=htc --workdir runs/attack

Attacks: kd (plain distillation), htc, averager, scm, and skeptical, whose student needs an
auxiliary head (model nasty.attacks.skeptical:SkepticalCNN). With top_k the teacher is stingy.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from etils import epath

from distill_core import checkpoint, config, evaluate
from distill_core.losses import distillation_loss
from distill_core.models import trust
from distill_core.runtime import cli
from distill_core.training import classification, inputs
from nasty.attacks import scm, skeptical_training
from nasty.attacks.averager import class_means
from nasty.attacks.htc import htc_loss
from nasty.defences.stingy import check_top_k, release_top_k

FIELDS = {
    **config.TRAINING,
    "teacher": config.text(),
    "attack": config.choice("kd", "htc", "averager", "skeptical", "scm"),
    "temperature": config.number(0.0, above=True, default=4.0),
    "alpha": config.number(0.0, 1.0, default=0.9),
    "top_k": config.integer(1, default=None),  # the teacher's defence: releases only so many
    "multiplier": config.number(0.0, default=1.0),  # htc
    "self_weight": config.number(0.0, 1.0, default=0.3),  # skeptical
    "delay_steps": config.integer(0, default=0),  # skeptical
    "num_intermediates": config.integer(1, default=2),  # scm
}
_OF_ONE_ATTACK = {
    "multiplier": "htc",
    "self_weight": "skeptical",
    "delay_steps": "skeptical",
    "num_intermediates": "scm",
}


def kd(logits, teacher_logits, labels, frozen):
    """Plain distillation."""
    return distillation_loss(
        logits, teacher_logits, labels, temperature=frozen["temperature"], alpha=frozen["alpha"]
    )


def htc(logits, teacher_logits, labels, frozen):
    """The high temperature on the teacher alone."""
    return htc_loss(
        logits,
        teacher_logits,
        labels,
        temperature=frozen["temperature"],
        alpha=frozen["alpha"],
        multiplier=frozen["multiplier"],
    )


def averager(logits, images, labels, frozen, extra):
    """Plain distillation from the class means of the teacher's answers."""
    return kd(logits, frozen["class_means"][labels], labels, frozen)


@functools.cache
def live_objective(network: str, top_k: int | None, loss: Callable) -> Callable:
    """A loss against a teacher of this (JSON) spec, run on the student's images and then released.

    `loss(logits, teacher_logits, labels, frozen)` is one of this file.
    """
    apply = classification.cached_apply(network)

    def objective(logits, images, labels, frozen, extra):
        answers = apply(frozen["teacher"], images)
        released = answers if top_k is None else release_top_k(answers, top_k)
        return loss(logits, released, labels, frozen)

    return objective


@trust.config_allows
def train_and_evaluate(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Attacks to the end or resumes; returns the student's test accuracy and the checkpoint."""
    hp = validate(settings)
    teacher, dataset, splits = classification.load_with(hp, "teacher", workdir)
    check_top_k(hp["top_k"], dataset.num_classes)
    train = functools.partial(
        classification.train,
        method="nasty.attack",
        dataset=dataset,
        splits=splits,
        mode=parallel,
    )
    values = _traced(hp, "temperature", "alpha", "multiplier")
    match hp["attack"]:
        case "kd" | "htc":
            loss = kd if hp["attack"] == "kd" else htc
            return train(hp, workdir, **_against(teacher, loss, hp["top_k"], values))
        case "averager":
            answers = evaluate.compute_logits(teacher, splits.train.images)
            if hp["top_k"] is not None:
                answers = release_top_k(jnp.asarray(answers), hp["top_k"])
            means = {"class_means": jnp.asarray(class_means(answers, splits.train.labels))}
            frozen = {**_traced(hp, "temperature", "alpha"), **means}
            reads = {"teacher": teacher}
            return train(hp, workdir, objective=averager, frozen=frozen, reads=reads)
        case "skeptical":
            return skeptical_training.train(
                hp,
                workdir,
                method="nasty.attack",
                dataset=dataset,
                splits=splits,
                teacher=teacher,
                mode=parallel,
            )
        case _:

            def distil(stage, place, source):
                # Only the attacked teacher is stingy; the attacker's own students are not.
                top_k = hp["top_k"] if source is teacher else None
                run = _against(source, kd, top_k, values)
                if source is not teacher:
                    run["reads"] = {"teacher": inputs.of_model(teacher), "intermediate": source}
                return train(stage, place, **run)

            return scm.train_in_sequence(hp, workdir, teacher, distil)


def _against(
    teacher: checkpoint.LoadedModel, loss: Callable, top_k: int | None, values: Mapping[str, Any]
) -> dict[str, Any]:
    """What `classification.train` needs to know of a teacher."""
    return {
        "objective": live_objective(json.dumps(teacher.spec), top_k, loss),
        "frozen": {**values, "teacher": teacher.variables},
        "reads": {"teacher": teacher},
    }


def _traced(hp: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Values, not constants: attacks that differ only in them share one compiled step."""
    return {name: jnp.float32(hp[name]) for name in names}


def validate(settings: Any) -> dict[str, Any]:
    """Checked values of `FIELDS`.

    Raises:
      InputError: as `config.validate`; and on what belongs to another attack.
    """
    hp = config.validate(settings, FIELDS)
    for name, attack in _OF_ONE_ATTACK.items():
        if hp["attack"] != attack and hp[name] != FIELDS[name].default:
            raise config.InputError(name, hp[name], f"belongs to the attack {attack}")
    return hp


if __name__ == "__main__":
    cli.launch_training(train_and_evaluate, FIELDS)
