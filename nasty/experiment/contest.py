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

ATTACKS = {  # and what an attacker does
    "kd": "distils plainly",
    "htc": "softens the teacher alone, with a high temperature",
    "averager": "learns from the teacher's mean answer to each class",
    "skeptical": "lets only an inner head listen to the teacher; the last one trusts labels",
    "scm": "distils through a sequence of intermediate students",
}


class Defence(NamedTuple):
    """A teacher, and what it releases.

    Attributes:
      about: what the owner does, in one line.
      teacher: "normal" or "nasty", of the comparison; None for one of the defence's own, which is
        trained as the nasty teacher but for what follows.
      stingy: whether only the largest logits are released.
      sets, leaves_out: of the settings of `nasty.train`.
      inputs: settings that name the normal teacher.
    """

    about: str
    teacher: str | None = None
    stingy: bool = False
    sets: Mapping[str, Any] = {}
    leaves_out: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()


DEFENCES = {
    "none": Defence("releases the normal teacher", "normal"),
    "nasty": Defence("releases the nasty teacher", "nasty"),
    "stingy": Defence("releases the normal teacher's largest logits alone", "normal", stingy=True),
    "nasty_stingy": Defence("releases the nasty teacher's largest logits", "nasty", stingy=True),
    "head_only": Defence(
        "makes only the normal teacher's last layer nasty",
        sets={
            **config.to_json(config.Augmentation()),  # none
            "train_only_head": True,
            "check_nastiness": False,
        },
        inputs=("adversary", "init_from"),
    ),
    "cmim": Defence(
        "trains a teacher whose answers to images of one class are alike",
        sets={"defence": "cmim", "check_nastiness": False},
        leaves_out=("temperature", "omega", "check_model", "check_model_kwargs"),
    ),
}


class Contest(NamedTuple):
    """What every attack got from every defence; accuracies on the test split, one per seed.

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


def check(attacks: Mapping[str, Any], defences: Mapping[str, Any]):
    """Refuses unknown attacks and defences, and settings that are no group.

    Raises:
      InputError: on `attacks`, `defences` or one of their members.
    """
    for field, given, known in (("attacks", attacks, ATTACKS), ("defences", defences, DEFENCES)):
        with config.within(field):
            config.validate(given, {name: config.mapping(default={}) for name in known})
    if bool(attacks) != bool(defences):
        raise InputError("attacks", attacks, "goes with defences: name some of both, or none")
    for name, settings in defences.items():
        if DEFENCES[name].stingy and "top_k" not in settings:
            raise InputError(f"defences.{name}", settings, "needs top_k")


def plan(hp: Any, runs: Mapping[str, Run]) -> dict[tuple[str | None, str], Run]:
    """(attack, defence) -> its run, and (None, defence) -> its teacher's, teachers first.

    `runs` are the comparison's of one seed by arm; where one of them is what is asked for, it
    stands here, too.
    """
    # In the order in which they stand above: a config sorts its names.
    attacks, defences = (
        {name: given[name] for name in known if name in given}
        for given, known in (
            (config.to_json(hp.attacks), ATTACKS),
            (config.to_json(hp.defences), DEFENCES),
        )
    )
    found: dict[tuple[str | None, str], Run] = {
        (None, name): _teacher(name, settings, runs) for name, settings in defences.items()
    }
    student = runs["student_of_normal"]
    for attack, own in attacks.items():
        for name, settings in defences.items():
            defence, teacher = DEFENCES[name], found[None, name]
            if attack == "kd" and not own and defence.teacher and not defence.stingy:
                found[attack, name] = runs[f"student_of_{defence.teacher}"]
                continue
            released = {"top_k": settings["top_k"]} if defence.stingy else {}
            found[attack, name] = Run(
                f"{attack}_of_{name}",
                student.seed,
                nasty_attack.train_and_evaluate,
                {**student.settings, "attack": attack, **own, **released},
                {"teacher": teacher},
            )
    return found


def _teacher(name: str, settings: Mapping[str, Any], runs: Mapping[str, Run]) -> Run:
    """The run that makes a defence's teacher; `settings` go over those of the nasty teacher."""
    defence = DEFENCES[name]
    if defence.teacher:
        return runs[f"teacher_{defence.teacher}"]
    nasty = runs["teacher_nasty"]
    kept = {k: v for k, v in nasty.settings.items() if k not in defence.leaves_out}
    return nasty._replace(
        arm=f"defence_{name}",
        settings={**kept, **defence.sets, **settings},
        inputs=dict.fromkeys(defence.inputs, runs["teacher_normal"]),
    )


def collect(
    found: Sequence[Mapping[tuple[str | None, str], Mapping[str, Any]]], alone: Sequence[float]
) -> Contest:
    """The seeds' results of what was planned, together."""
    attacked, teachers, seconds = {}, {}, {}
    for attack, defence in found[0]:
        results = [each[attack, defence] for each in found]
        accuracies = [each["accuracy"] for each in results]
        if attack is not None:
            attacked[attack, defence] = accuracies
            continue
        teachers[defence] = accuracies
        times = [each["seconds"] for each in results]
        seconds[defence] = None if None in times else float(np.median(times))
    return Contest(attacked, teachers, seconds, list(alone))


def check_settings(hp: Any, runs: Mapping[str, Run], dataset: data.Dataset):
    """Whether the binaries will take what the attacks and defences set, on this data.

    Raises:
      InputError: on the first field that is refused.
    """
    for (attack, defence), run in plan(hp, runs).items():
        if attack is None and DEFENCES[defence].teacher is None:
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
