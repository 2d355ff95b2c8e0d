r"""Attacks a teacher: distils a student from it by a method other than plain distillation.

    python -m nasty.attack --config configs/nasty/attack_digits.py --config.teacher=runs/nasty \
        --config.attack=htc --workdir runs/attack

The attacks are htc, averager, scm and skeptical, and kd, which is plain distillation. The student
of skeptical needs an auxiliary head (model nasty.attacks.skeptical:SkepticalCNN). With `top_k` the
teacher is stingy: the student sees only its largest logits.
"""

from typing import Any

import jax.numpy as jnp
from etils import epath

from distill_core import config, evaluate
from distill_core.models import trust
from distill_core.models.network import stored_as
from distill_core.runtime import cli
from distill_core.training import classification, inputs
from nasty.attacks import scm
from nasty.attacks.averager import class_means
from nasty.attacks.skeptical import check_auxiliary
from nasty.defences.stingy import check_top_k, release_top_k
from nasty.step import Attack, Averager, Skeptical


@config.settings
class Settings(config.Frozen, config.Training):
    """Settings of an attack."""

    teacher: str = config.text(help="the attacked checkpoint")
    attack: str = config.choice(
        "kd", "htc", "averager", "skeptical", "scm", help="how the student is distilled"
    )
    temperature: float = config.number(0.0, above=True, default=4.0, help="τ of the distillation")
    alpha: float = config.number(0.0, 1.0, default=0.9, help="α, weight of the teacher's answers")
    top_k: int | None = config.integer(
        1, default=None, help="logits that a stingy teacher releases of each answer"
    )
    multiplier: float = config.number(0.0, default=1.0, help="of htc: m, factor of its KL")
    self_weight: float = config.number(0.0, 1.0, default=0.3, help="of skeptical: β")
    delay_steps: int = config.integer(
        0, default=0, help="of skeptical: steps before it listens to the teacher"
    )
    num_intermediates: int = config.integer(1, default=2, help="of scm: students between")


_OF_ONE_ATTACK = {
    "multiplier": "htc",
    "self_weight": "skeptical",
    "delay_steps": "skeptical",
    "num_intermediates": "scm",
}


@trust.config_allows
def train_and_evaluate(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Attacks to the end or resumes; returns the student's test accuracy and the checkpoint."""
    hp = validate(settings)
    teacher, dataset, splits = classification.load_with(hp, "teacher", workdir)
    check_top_k(hp.top_k, dataset.num_classes)
    attack = hp.attack
    if attack == "scm":

        def distil(stage, place, source):
            # Only the attacked teacher is stingy; the attacker's own students are not.
            top_k = hp.top_k if source is teacher else None
            reads: dict[str, Any] = {"teacher": teacher}
            if source is not teacher:
                reads = {"teacher": inputs.of_model(teacher), "intermediate": source}
            run = _prepare(stage, place, dataset, splits, parallel)
            asked = stored_as(source, hp.frozen_dtype)
            return _train(run, Attack(run.network, asked.network, top_k), asked, reads)

        return scm.train_in_sequence(hp, workdir, teacher, distil)
    run = _prepare(hp, workdir, dataset, splits, parallel)
    asked = stored_as(teacher, hp.frozen_dtype)
    reads, schedules = {"teacher": teacher}, None
    if attack == "averager":
        answers = jnp.asarray(evaluate.compute_logits(asked, splits.train.images))
        answers = release_top_k(answers, hp.top_k)
        frozen = _traced(hp, "temperature", "alpha")
        frozen["class_means"] = jnp.asarray(class_means(answers, splits.train.labels))
        return classification.train(run, Averager(run.network), frozen=frozen, reads=reads)
    if attack == "skeptical":
        check_auxiliary(run.network)
        # Of the step, so that a resumed run wakes at the same one.
        schedules = {"awake": lambda step: step >= hp.delay_steps}
        objective = Skeptical(run.network, asked.network, hp.top_k)
    else:
        objective = Attack(run.network, asked.network, hp.top_k, htc=attack == "htc")
    return _train(run, objective, asked, reads, schedules)


def _prepare(hp, workdir, dataset, splits, mode) -> classification.Run:
    return classification.prepare(
        hp, workdir, method="nasty.attack", dataset=dataset, splits=splits, mode=mode
    )


def _train(run: classification.Run, objective, teacher, reads, schedules=None) -> dict[str, Any]:
    """Distils from a network that answers the student's images."""
    frozen = _traced(run.hp, "temperature", "alpha", "multiplier", "self_weight")
    frozen["teacher"] = teacher.variables
    return classification.train(run, objective, frozen=frozen, reads=reads, schedules=schedules)


def _traced(hp: Any, *names: str) -> dict[str, Any]:
    """Values, not constants: attacks that differ only in them share one compiled step."""
    return {name: jnp.float32(getattr(hp, name)) for name in names}


def validate(settings: Any) -> Settings:
    """Checked settings.

    Raises:
      InputError: as `config.validate`; and on what belongs to another attack.
    """
    hp = config.validate(settings, Settings)
    for name, attack in _OF_ONE_ATTACK.items():
        if hp.attack != attack:
            config.check_unset(hp, (name,), f"belongs to the attack {attack}")
    return hp


if __name__ == "__main__":
    cli.launch_training(train_and_evaluate, Settings)
