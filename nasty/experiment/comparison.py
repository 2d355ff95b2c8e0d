"""The paper's comparison: normal and nasty teacher, and students with and without them.

    python -m nasty.experiment --config configs/nasty/digits.py --workdir runs/demo

Per seed: normal teacher → nasty teacher (the normal one is its adversary) → student alone, of the
normal, of the nasty teacher → students of the teachers' own architecture → further students. Then
what the config asks for: the attacker's choice of (α, τ_S) on held-out data, ablations, every
attack on every defence, distillation without data, images reconstructed from the teachers. Every
run is a stage in `<workdir>/runs/`: a finished one is skipped while its settings, data and input
checkpoints stay the same.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from distill_core import checkpoint, config, data, distill, train
from distill_core.config import InputError
from distill_core.experiment import report, stages
from distill_core.experiment.stages import Run, run_directory
from distill_core.models import trust
from distill_core.runtime import process
from distill_core.training import classification
from nasty import train as nasty_train
from nasty.experiment import (
    ablations,
    contest,
    data_free,
    further_results,
    inversion_stage,
    summary,
    throughput,
)


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
    """Of the comparison; the fields at the top are of the teachers' training."""

    student: Student = config.group(Student, help="the students' training, where it differs")
    temperature: float = config.number(0.0, above=True, help="τ of teachers and students")
    omega: float = config.number(0.0, help="ω of the nasty teacher")
    check_model: str | None = config.text(default=None, help="as nasty.train has it")
    check_model_kwargs: Mapping[str, Any] = config.mapping(default={}, help="likewise")
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
    ablations: Mapping[str, Any] = config.mapping(default={}, help="axis: values")
    attacks: Mapping[str, Any] = config.mapping(
        default={}, help="NAME: what it sets of nasty.attack"
    )
    defences: Mapping[str, Any] = config.mapping(
        default={}, help="NAME: what it sets of nasty.train, or top_k"
    )
    data_free: Mapping[str, Any] = config.mapping(default={}, help="what dpdfd.train takes")
    inversion: Mapping[str, Any] = config.mapping(default={}, help="what DeepInversion takes")
    targets: Mapping[str, Any] = config.mapping(
        default={}, help="arm: the paper's accuracy, a fraction"
    )
    max_minutes: float | None = config.number(
        0.0, default=None, above=True, help="after which it stops, everything saved"
    )


_TAKEN = ("teacher", "student", "self", "attacker", "data_free")
_TEACHERS = ("normal", "nasty")
Plan = Mapping[int, Mapping[str, Run]]  # the comparison's runs by seed and arm


@trust.config_allows
def run(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[tuple[str, int], dict[str, Any]]:
    """Runs or completes the experiment; writes results.json, report.html and the figures.

    After `max_minutes` it stops as on a signal, everything saved: the same call goes on.

    Returns each run of the comparison's result by (arm, seed).
    """
    hp = config.validate(settings, Settings)
    workdir, began = epath.Path(workdir), time.monotonic()
    _check(hp)
    dataset, _ = classification.load_splits(hp)
    plan = {seed: paper_stages(hp, seed) for seed in hp.seeds}
    first = plan[hp.seeds[0]]
    _check_networks(hp, first, dataset)  # before hours of teachers, not after them
    contest.check_settings(hp, first, dataset)
    if hp.data_free:
        data_free.check(hp.data_free)
    runner = stages.Runner(workdir, dataset.fingerprint(), parallel)
    with process.stop_after(hp.max_minutes):
        results = runner.complete_all(each for runs in plan.values() for each in runs.values())
        choice = {}
        for teacher in _TEACHERS if hp.attack_alphas else ():
            arm = f"student_of_{teacher}"
            choice[teacher] = _attackers_choice(hp, first[arm], runner)
            for seed, runs in plan.items():
                found = runner.complete(ablations.student_stage(runs[arm], **choice[teacher]))
                results[f"attacker_of_{teacher}", seed] = found
        for teacher in _TEACHERS if hp.data_free else ():
            results |= runner.complete_all(
                _data_free_stage(hp, runs[f"teacher_{teacher}"], f"data_free_of_{teacher}")
                for runs in plan.values()
            )
        axes = [name for name in ablations.AXES if name in hp.ablations]
        sweeps = {name: _sweep(name, hp.ablations[name], plan, runner) for name in axes}
        fought = _contest(hp, plan, results, runner) if hp.attacks else None
        inverted = None
        if hp.inversion:
            inverted = runner.complete(inversion_stage.stage(hp.inversion, first))

    minutes = (time.monotonic() - began) / 60
    further = further_results.collect(
        results,
        seed=hp.seeds[0],
        sweeps=sweeps,
        fought=fought,
        inverted=inverted,
        targets=hp.targets,
    )
    device, *others = jax.devices()
    if peak := throughput.peak(device.device_kind):
        arms = ("teacher_normal", "student_alone")
        pair = (checkpoint.load_model(run_directory(workdir, arm, hp.seeds[0])) for arm in arms)
        try:
            table = throughput.table(results, hp, *pair, peak=peak * (1 + len(others)))
            further.tables.append(report.Table(*table))
        except Exception as error:  # it is not worth the results beside it
            reason = f"{type(error).__name__}: {error}"
            print(f"table of speed left out: {' '.join(reason.split())[:300]}", file=sys.stderr)
    found = summary.report_of(workdir, hp, dataset, results, choice, further, minutes)
    report.publish(found, workdir)
    return results


def paper_stages(hp: Settings, seed: int) -> dict[str, Run]:
    """The seven runs of one seed and those of further students by arm; inputs come first."""
    values, own_fields = config.to_json(hp), config.fields(config.Training)
    teacher = {name: value for name, value in values.items() if name in own_fields}
    student = teacher | values["student"]
    softened = {"temperature": hp.temperature}
    undermining = softened | {"omega": hp.omega}
    undermining |= {k: values[k] for k in ("check_model", "check_model_kwargs") if values[k]}
    distilled = softened | {"alpha": hp.alpha}
    # Networks that are compared share a seed; a teacher, its adversary and its students do not.
    seeds = [{"seed": 10 * seed + k} for k in range(4)]
    fit, undermine, copy = (m.train_and_evaluate for m in (train, nasty_train, distill))
    normal = Run("teacher_normal", seed, fit, teacher | seeds[0], {})
    undermining = teacher | undermining | seeds[1]
    nasty = Run("teacher_nasty", seed, undermine, undermining, {"adversary": normal})
    found = [normal, nasty]
    networks = {"student": student | seeds[2], "self": teacher | seeds[3]}
    for name, own in values["students"].items():
        networks[name] = student | _student_settings(name, own, student) | seeds[2]
    for name, network in networks.items():
        if name != "self":  # the teacher itself is what its network learns alone
            found.append(Run(f"{name}_alone", seed, fit, network, {}))
        for kind, each in zip(_TEACHERS, (normal, nasty), strict=True):
            arm = f"{name}_of_{kind}"
            found.append(Run(arm, seed, copy, network | distilled, {"teacher": each}))
    return {run.arm: run for run in found}


def _student_settings(name: str, own: Any, student: Mapping[str, Any]) -> dict[str, Any]:
    """What a further student changes in the settings of the student."""
    if name in _TAKEN:
        raise InputError(f"students.{name}", own, "is the name of an arm; take another")
    if not isinstance(own, Mapping) or "model" not in own:
        raise InputError(f"students.{name}", own, "must be a group of settings, with model")
    with config.within(f"students.{name}"):
        found = config.to_json(config.validate({**student, **own}, config.Training))
    return {field: found[field] for field in own}


def _check_networks(hp: Settings, stages: Mapping[str, Run], dataset: data.Dataset):
    """Whether the networks of teachers and students can be trained on this data."""
    _check_network(stages["teacher_normal"], dataset)
    with config.within("student"):
        _check_network(stages["student_alone"], dataset)
    for name in hp.students:
        with config.within(f"students.{name}"):
            _check_network(stages[f"{name}_alone"], dataset)


def _check_network(run: Run, dataset: data.Dataset):
    classification.check(config.part_of(run.settings, config.Training), dataset)


def _attackers_choice(hp: Settings, base: Run, runner: stages.Runner) -> dict[str, float]:
    """The (α, τ_S) of the best student on held-out data, tried on one seed."""
    grid = [
        {"alpha": alpha, "temperature": temperature}
        for alpha in hp.attack_alphas
        for temperature in hp.attack_temperatures
    ]
    tried = [runner.complete(ablations.student_stage(base, **each)) for each in grid]
    return grid[int(np.argmax([each["validation_accuracy"] for each in tried]))]


def _sweep(name: str, given: Any, plan: Plan, runner: stages.Runner) -> list[ablations.Point]:
    """The points of one ablation, over all seeds."""
    points = []
    for value in ablations.values_of(name, config.to_json(given)):
        accuracies: dict[str, list[float]] = {}
        for runs in plan.values():
            for series, run in ablations.AXES[name].stages(runs, value).items():
                accuracies.setdefault(series, []).append(runner.complete(run)["accuracy"])
        points.append(ablations.Point(value, accuracies))
    return points


def _contest(hp: Settings, plan: Plan, results, runner: stages.Runner) -> contest.Contest:
    """Every attack on every defence, over all seeds."""
    found = [
        {place: runner.complete(run) for place, run in contest.all_stages(hp, runs).items()}
        for runs in plan.values()
    ]
    return contest.collect(found, [results["student_alone", seed]["accuracy"] for seed in plan])


def _data_free_stage(hp: Settings, teacher: Run, arm: str) -> Run:
    """The student that is distilled from one teacher's checkpoint alone."""
    own = {"seed": 10 * teacher.seed + 4, "dataset": hp.dataset, "data_dir": hp.data_dir}
    settings = {**config.to_json(hp.data_free), **own}
    return Run(arm, teacher.seed, data_free.train_and_evaluate, settings, {"teacher": teacher})


def _check(hp: Settings):
    stages.check_seeds(hp.seeds)
    if bool(hp.attack_alphas) != bool(hp.attack_temperatures):
        raise InputError("attack_alphas", hp.attack_alphas, "goes with attack_temperatures")
    if hp.attack_alphas and not hp.num_validation:
        allowed = "must be above 0: the attacker's choice is made on held-out examples"
        raise InputError("num_validation", hp.num_validation, allowed)
    ablations.check(hp.ablations)
    inversion_stage.check(hp.inversion)
    contest.check(hp.attacks, hp.defences)
