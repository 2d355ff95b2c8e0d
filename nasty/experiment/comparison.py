"""The paper's comparison: normal and nasty teacher, and students with and without them.

    python -m nasty.experiment --config configs/nasty/digits.py --workdir runs/demo

Per seed: normal teacher → nasty teacher (the normal one is its adversary) → student alone, of the
normal, of the nasty teacher → students of the teachers' own architecture → further students. Then
what the config asks for: the attacker's choice of (α, τ_S) on held-out data, ablations, every
attack on every defence, distillation without data, images reconstructed from the teachers. Every
run is a stage in `<workdir>/runs/`: a finished one is skipped while its settings, data and input
checkpoints stay the same.
"""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from distill_core import config, data, distill, train
from distill_core.config import InputError
from distill_core.experiment import report, speed, stages
from distill_core.experiment.stages import Run
from distill_core.models import trust
from distill_core.runtime import process
from distill_core.training import classification
from nasty import train as nasty_train
from nasty.experiment import (
    ablations,
    contest,
    data_free,
    further_results,
    inversion,
    summary,
)
from nasty.experiment.ablations import Ablations
from nasty.experiment.inversion import Inversion


@config.settings
class Student(config.Optimizer, config.Model):
    """What differs between a student's training and a teacher's."""

    num_steps: int = config.integer(1, help="updates in all")
    batch_size: int = config.integer(1, help="over all devices")


@config.settings
class Settings(
    config.Classifier,
    config.Augmentation,
    config.Evaluated,
    config.Length,
    config.Optimizer,
    config.Model,
    config.Data,
):
    """Settings of the comparison; the fields at the top are those of the teachers' training."""

    student: Student = config.group(Student, help="the students' training, where it differs")
    temperature: float = config.number(0.0, above=True, help="τ of teachers and students")
    omega: float = config.number(0.0, help="ω of the nasty teacher")
    check_model: str | None = config.text(default=None, help="as in nasty.train")
    check_model_kwargs: Mapping[str, Any] = config.mapping(default={}, help="as in nasty.train")
    alpha: float = config.number(0.0, 1.0, default=0.9, help="α of the students")
    seeds: tuple[int, ...] = config.sequence(config.integer(0), help="one comparison each")
    attack_alphas: tuple[float, ...] = config.sequence(
        config.number(0.0, 1.0), default=(), help="α that the attacker tries on held-out data"
    )
    attack_temperatures: tuple[float, ...] = config.sequence(
        config.number(0.0, above=True), default=(), help="τ_S that the attacker tries"
    )
    students: Mapping[str, Any] = config.mapping(
        default={}, help="NAME: what a further student sets of its training"
    )
    self_distillation: bool = config.boolean(
        default=True, help="whether students of the teacher's own architecture are trained, too"
    )
    ablations: Ablations | None = config.group(Ablations, default=None, help="axis: values")
    attacks: Mapping[str, Any] = config.mapping(
        default={}, help="NAME: what it sets of nasty.attack"
    )
    defences: Mapping[str, Any] = config.mapping(
        default={}, help="NAME: what it sets of nasty.train, or top_k"
    )
    data_free: Mapping[str, Any] = config.mapping(default={}, help="what dpdfd.train takes")
    inversion: Inversion | None = config.group(
        Inversion, default=None, help="images reconstructed from the teachers"
    )
    targets: Mapping[str, Any] = config.mapping(
        default={}, help="arm: the paper's accuracy, a fraction"
    )
    max_minutes: float | None = config.number(
        0.0, default=None, above=True, help="after which it stops, everything saved"
    )


_TAKEN = ("teacher", "student", "self", "attacker", "data_free")
_TEACHERS = ("normal", "nasty")


@trust.config_allows
def run(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[tuple[str, int], dict[str, Any]]:
    """Runs or completes the experiment; writes results.json, report.html and the figures.

    After `max_minutes` it stops as on a signal, everything saved: the same call goes on.

    Args:
      settings: a config or mapping with the fields of `Settings`.
      workdir: where the run lives, local or `gs://…`.
      parallel: how a step is spread over devices, as `--parallel` or `--mesh`.

    Returns:
      Each run of the comparison's result by (arm, seed).
    """
    hp = config.validate(settings, Settings)
    workdir, began = epath.Path(workdir), time.monotonic()
    stages.check_seeds(hp.seeds)
    dataset, _ = classification.load_splits(hp)
    plan = {seed: paper_runs(hp, seed) for seed in hp.seeds}
    first = plan[hp.seeds[0]]
    _check(hp, first, dataset)  # before hours of teachers, not after them
    runner = stages.Runner(workdir, dataset.fingerprint(), parallel)
    arms = [summary.arm_of(arm, run) for arm, run in first.items()]
    with process.stop_after(hp.max_minutes):
        results = runner.complete_all(each for runs in plan.values() for each in runs.values())
        for teacher in _TEACHERS if hp.attack_alphas else ():
            arm, base = f"attacker_of_{teacher}", f"student_of_{teacher}"
            chosen = _attackers_choice(hp, first[base], runner)
            about = f"at the attacker's α, τ_S; by teacher_{teacher}"
            runs = {
                seed: ablations.student(each[base], **chosen)._replace(about=about)
                for seed, each in plan.items()
            }
            results |= {(arm, seed): runner.complete(each) for seed, each in runs.items()}
            arms.append(summary.arm_of(arm, runs[hp.seeds[0]], chosen_on="held-out examples"))
        for teacher in _TEACHERS if hp.data_free else ():
            runs = [_data_free(hp, each[f"teacher_{teacher}"], teacher) for each in plan.values()]
            results |= runner.complete_all(runs)
            arms.append(summary.arm_of(runs[0].arm, runs[0], ("model",), data="none"))
        sweeps = {
            name: [_point(name, value, plan, runner) for value in values]
            for name, values in ablations.values_of(hp.ablations).items()
        }
        fought = inverted = None
        if hp.attacks:
            found = [
                {place: runner.complete(each) for place, each in contest.plan(hp, runs).items()}
                for runs in plan.values()
            ]
            fought = contest.collect(
                found, [results["student_alone", seed]["accuracy"] for seed in plan]
            )
        if hp.inversion:
            inverted = runner.complete(inversion.stage(hp.inversion, first))

    minutes = (time.monotonic() - began) / 60
    further = further_results.collect(
        results,
        seed=hp.seeds[0],
        sweeps=sweeps,
        fought=fought,
        inverted=inverted,
        targets=hp.targets,
        num_test=len(dataset.test),
    )
    further.tables.append(speed.table(results))
    found = summary.report_of(workdir, hp, dataset, results, arms, further, minutes)
    report.publish(found, workdir)
    return results


def paper_runs(hp: Settings, seed: int) -> dict[str, Run]:
    """The seven runs of one seed and those of further students by arm; inputs come first."""
    values, own_fields = config.to_json(hp), config.fields(config.Training)
    teacher = {name: value for name, value in values.items() if name in own_fields}
    student = teacher | values["student"]
    undermining = {"temperature": hp.temperature, "omega": hp.omega}
    undermining |= {k: values[k] for k in ("check_model", "check_model_kwargs") if values[k]}
    distilled = {"temperature": hp.temperature, "alpha": hp.alpha}
    # Networks that are compared share a seed; a teacher, its adversary and its students do not.
    seeds = [{"seed": 10 * seed + k} for k in range(4)]
    fit, undermine, copy = (m.train_and_evaluate for m in (train, nasty_train, distill))
    about = "trained plainly; the nasty one's adversary"
    normal = Run("teacher_normal", seed, fit, teacher | seeds[0], {}, about=about)
    settings, about = teacher | undermining | seeds[1], "trained to be accurate and teach nobody"
    nasty = Run("teacher_nasty", seed, undermine, settings, {"adversary": normal}, about=about)
    found = [normal, nasty]
    # Name of the network in its arms -> (what it is, settings).
    networks = {"student": ("student", student | seeds[2])}
    if hp.self_distillation:
        networks["self"] = ("teacher's network", teacher | seeds[3])
    for name, own in values["students"].items():
        further = _further_student(name, own, student)
        networks[name] = (str(further["model"]), further | seeds[2])
    for name, (what, network) in networks.items():
        if name != "self":  # the teacher itself is what its network learns alone
            about = f"{what}, from labels alone"
            found.append(Run(f"{name}_alone", seed, fit, network, {}, about=about))
        for kind, each in zip(_TEACHERS, (normal, nasty), strict=True):
            arm, about = f"{name}_of_{kind}", f"{what}, taught by {each.arm}"
            taught = {"teacher": each}
            found.append(Run(arm, seed, copy, network | distilled, taught, about=about))
    return {run.arm: run for run in found}


def _further_student(name: str, own: Any, student: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a further student: those of the student, but for its `own`."""
    if name in _TAKEN:
        raise InputError(f"students.{name}", own, "is the name of an arm; take another")
    if not isinstance(own, Mapping) or "model" not in own:
        raise InputError(f"students.{name}", own, "must be a group of settings, with model")
    with config.within(f"students.{name}"):
        return config.to_json(config.validate({**student, **own}, config.Training))


def _attackers_choice(hp: Settings, base: Run, runner: stages.Runner) -> dict[str, float]:
    """The (α, τ_S) of the best student on held-out data, tried on one seed."""
    grid = [
        {"alpha": alpha, "temperature": temperature}
        for alpha in hp.attack_alphas
        for temperature in hp.attack_temperatures
    ]
    tried = [runner.complete(ablations.student(base, **each)) for each in grid]
    return grid[int(np.argmax([each["validation_accuracy"] for each in tried]))]


def _point(
    name: str, value: Any, plan: Mapping[int, Mapping[str, Run]], runner: stages.Runner
) -> ablations.Point:
    """One value of an ablation, over all seeds."""
    accuracies: dict[str, list[float]] = {}
    for runs in plan.values():
        for series, run in ablations.AXES[name].runs(runs, value).items():
            accuracies.setdefault(series, []).append(runner.complete(run)["accuracy"])
    return ablations.Point(value, accuracies)


def _data_free(hp: Settings, teacher: Run, kind: str) -> Run:
    """The student that is distilled from one teacher's checkpoint alone."""
    own = {"seed": 10 * teacher.seed + 4, "dataset": hp.dataset, "data_dir": hp.data_dir}
    settings, binary = {**config.to_json(hp.data_free), **own}, data_free.train_and_evaluate
    arm, about = f"data_free_of_{kind}", f"taught by {teacher.arm}, without any data"
    return Run(arm, teacher.seed, binary, settings, {"teacher": teacher}, about=about)


def _check(hp: Settings, runs: Mapping[str, Run], dataset: data.Dataset):
    """Refuses what a later run would; `runs` are those of one seed by arm."""
    if bool(hp.attack_alphas) != bool(hp.attack_temperatures):
        raise InputError("attack_alphas", hp.attack_alphas, "goes with attack_temperatures")
    if hp.attack_alphas and not hp.num_validation:
        allowed = "must be above 0: the attacker's choice is made on held-out examples"
        raise InputError("num_validation", hp.num_validation, allowed)
    groups = {"": "teacher_normal", "student": "student_alone"}
    groups |= {f"students.{name}": f"{name}_alone" for name in hp.students}
    for group, arm in groups.items():
        with config.within(group) if group else contextlib.nullcontext():
            classification.check(config.part_of(runs[arm].settings, config.Training), dataset)
    ablations.values_of(hp.ablations)
    contest.check(hp.attacks, hp.defences)
    contest.check_settings(hp, runs, dataset)
    if hp.data_free:
        data_free.check(hp.data_free)
