"""Every attack on every defence: what a student gets out of each teacher, by each way to distil.

A defence is a teacher and what it releases; an attack is a way to distil from that. All attackers
have the comparison's student, data and number of steps, but for what their own settings change.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distill_core import config, data
from distill_core.config import InputError
from distill_core.experiment.stages import Run
from distill_core.training import classification
from nasty import attack as nasty_attack
from nasty import train as nasty_train
from nasty.attacks.skeptical import check_auxiliary
from nasty.defences.stingy import check_top_k

ATTACKS = ("kd", "htc", "averager", "skeptical", "scm")
# Whose network: a run of the comparison, or a teacher of the defence's own.
DEFENCES = {
    "none": "teacher_normal",
    "nasty": "teacher_nasty",
    "stingy": "teacher_normal",
    "nasty_stingy": "teacher_nasty",
    "head_only": None,
    "cmim": None,
}
_STINGY = ("stingy", "nasty_stingy")
# The comparison's students of the same teachers are attacks of plain distillation.
_STUDENTS = {"none": "student_of_normal", "nasty": "student_of_nasty"}


class Contest(NamedTuple):
    """What every attack got from every defence; accuracies on the test split, one a seed.

    Attributes:
      attacked: (attack, defence) -> the students' accuracies.
      teachers: defence -> the teachers' own.
      seconds: defence -> time to make the teacher, the median over seeds; None where unknown.
      alone: of the student that had no teacher.
    """

    attacked: dict[tuple[str, str], list[float]]
    teachers: dict[str, list[float]]
    seconds: dict[str, float | None]
    alone: list[float]

    @property
    def attacks(self) -> list[str]:
        return list(dict.fromkeys(attack for attack, _ in self.attacked))

    @property
    def defences(self) -> list[str]:
        return list(self.teachers)


def check(attacks: Mapping[str, Any], defences: Mapping[str, Any]):
    """Refuses unknown attacks and defences, and settings that are no group.

    Raises:
      InputError: on `attacks`, `defences` or one of their members.
    """
    for field, given, known in (("attacks", attacks, ATTACKS), ("defences", defences, DEFENCES)):
        for name, settings in given.items():
            if name not in known:
                allowed = f"no such name; {config.suggest(name, known)}"
                raise InputError(f"{field}.{name}", settings, allowed)
            if not isinstance(settings, Mapping):
                raise InputError(f"{field}.{name}", settings, "must be a group of settings, or {}")
    if bool(attacks) != bool(defences):
        raise InputError("attacks", attacks, "goes with defences: name some of both, or none")
    for name in _STINGY:
        if name in defences and "top_k" not in defences[name]:
            raise InputError(f"defences.{name}", defences[name], "needs top_k")


def teacher_stage(defence: str, settings: Mapping[str, Any], stages: Mapping[str, Run]) -> Run:
    """The run that makes a defence's teacher.

    Args:
      defence: one of `DEFENCES`.
      settings: the defence's own, over those of the comparison's teachers.
      stages: the comparison's runs of one seed by arm.
    """
    arm = DEFENCES[defence]
    if arm is not None:
        return stages[arm]
    normal, nasty = stages["teacher_normal"], stages["teacher_nasty"]
    made = nasty._replace(arm=f"defence_{defence}")
    if defence == "cmim":
        own = {"defence": "cmim", "check_nastiness": False}
        left_out = ("temperature", "omega", "check_model", "check_model_kwargs")
        known = {k: v for k, v in nasty.settings.items() if k not in left_out}
        return made._replace(settings={**known, **own, **settings}, inputs={})
    plain = config.to_json(config.Augmentation())
    own = plain | {"train_only_head": True, "check_nastiness": False}
    inputs = {"adversary": normal, "init_from": normal}
    return made._replace(settings={**nasty.settings, **own, **settings}, inputs=inputs)


def attack_stage(
    attack: str,
    settings: Mapping[str, Any],
    defence: str,
    released: Mapping[str, Any],
    teacher: Run,
    stages: Mapping[str, Run],
) -> Run:
    """The run of one attack on one defence.

    Args:
      attack, settings: one of `ATTACKS`, and what it sets of `nasty.attack`.
      defence, released: one of `DEFENCES`, and its settings, of which `top_k` counts here.
      teacher: the defence's run.
      stages: the comparison's runs of one seed by arm.
    """
    if attack == "kd" and not settings and defence in _STUDENTS:
        return stages[_STUDENTS[defence]]
    student = stages["student_of_normal"]
    own = {"attack": attack, **settings}
    if defence in _STINGY:
        own["top_k"] = released["top_k"]
    return Run(
        f"{attack}_of_{defence}",
        student.seed,
        nasty_attack.train_and_evaluate,
        {**student.settings, **own},
        {"teacher": teacher},
    )


def all_stages(hp: Any, stages: Mapping[str, Run]) -> dict[tuple[str | None, str], Run]:
    """(attack, defence) -> its run, and (None, defence) -> its teacher's, teachers first."""
    # In the order in which they stand above: a config sorts its names.
    given = {"defences": config.to_json(hp.defences), "attacks": config.to_json(hp.attacks)}
    defences = {k: given["defences"][k] for k in DEFENCES if k in given["defences"]}
    attacks = {k: given["attacks"][k] for k in ATTACKS if k in given["attacks"]}
    teachers = {
        defence: teacher_stage(defence, settings, stages) for defence, settings in defences.items()
    }
    found: dict[tuple[str | None, str], Run] = {(None, name): run for name, run in teachers.items()}
    for attack, own in attacks.items():
        for defence, released in defences.items():
            found[attack, defence] = attack_stage(
                attack, own, defence, released, teachers[defence], stages
            )
    return found


def collect(
    found: Sequence[Mapping[tuple[str | None, str], Mapping[str, Any]]], alone: Sequence[float]
) -> Contest:
    """The seeds' results of `all_stages`, together."""
    attacked, teachers, seconds = {}, {}, {}
    for place in found[0]:
        accuracies = [results[place]["accuracy"] for results in found]
        attack, defence = place
        if attack is not None:
            attacked[attack, defence] = accuracies
            continue
        teachers[defence] = accuracies
        times = [results[place]["seconds"] for results in found]
        known = [each for each in times if each is not None]
        seconds[defence] = float(np.median(known)) if len(known) == len(times) else None
    return Contest(attacked, teachers, seconds, list(alone))


def check_settings(hp: Any, stages: Mapping[str, Run], dataset: data.Dataset):
    """Whether the binaries will take what the attacks and defences set, on this data.

    Raises:
      InputError: on the first field that is refused.
    """
    for (attack, defence), run in all_stages(hp, stages).items():
        if attack is None and DEFENCES[defence] is None:
            where, validate = f"defences.{defence}", nasty_train.validate
        elif attack is not None and run.binary is nasty_attack.train_and_evaluate:
            where, validate = f"attacks.{attack}", nasty_attack.validate
        else:
            continue
        paths = {name: each.arm for name, each in run.inputs.items()}  # nothing is there yet
        try:
            found = validate({**run.settings, **paths})
            network = classification.check(found, dataset)
            if attack == "skeptical":
                check_auxiliary(network)
            check_top_k(getattr(found, "top_k", None), dataset.num_classes)
        except InputError as error:
            where = f"defences.{defence}" if error.field == "top_k" else where
            raise InputError(f"{where}.{error.field}", error.given, error.allowed) from None
