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
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from distill_core import checkpoint, config, distill, train
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

_NETWORK = {**config.MODEL, **config.OPTIMIZER}
_STUDENT_ONLY = {**_NETWORK, "num_steps": config.integer(1), "batch_size": config.integer(1)}
FIELDS = {
    **{name: field for name, field in config.TRAINING.items() if name not in ("seed", "init_from")},
    **{f"student_{name}": field for name, field in _STUDENT_ONLY.items()},
    "temperature": config.number(0.0, above=True),
    "omega": config.number(0.0),
    "check_model": config.text(default=None),  # as nasty.train has them
    "check_model_kwargs": config.mapping(default={}),
    "alpha": config.number(0.0, 1.0, default=0.9),
    "seeds": config.sequence(config.integer(0)),
    "attack_alphas": config.sequence(config.number(0.0, 1.0), default=()),
    "attack_temperatures": config.sequence(config.number(0.0, above=True), default=()),
    "students": config.mapping(default={}),  # name: what it sets of a student's training
    "ablations": config.mapping(default={}),  # axis: values
    "attacks": config.mapping(default={}),  # name: what it sets of nasty.attack
    "defences": config.mapping(default={}),  # name: what it sets of nasty.train; top_k
    "data_free": config.mapping(default={}),  # what dpdfd.train takes
    "inversion": config.mapping(default={}),  # what nasty.experiment.inversion.invert takes
    "targets": config.mapping(default={}),  # arm: the paper's accuracy, a fraction
    "max_minutes": config.number(0.0, default=None, above=True),
}
_TAKEN = ("teacher", "student", "self", "attacker", "data_free")
Complete = Callable[[Run], dict[str, Any]]


@trust.config_allows
def run(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[tuple[str, int], dict[str, Any]]:
    """Runs or completes the experiment; writes results.json, report.html and the figures.

    After `max_minutes` it stops as on a signal, everything saved: the same call goes on.

    Returns each run of the comparison's result by (arm, seed).
    """
    hp = config.validate(settings, FIELDS)
    workdir, began = epath.Path(workdir), time.monotonic()
    _check(hp)
    dataset, _ = classification.load_splits(hp)
    plan = {seed: _by_arm(paper_stages(hp, workdir, seed)) for seed in hp["seeds"]}
    first = plan[hp["seeds"][0]]
    for stage in first.values():
        # Before hours of teachers, not after them.
        with _named(stage.arm):
            classification.check(stage.settings, dataset)
    contest.check_settings(hp, first, workdir, dataset)
    if hp["data_free"]:
        data_free.check(hp["data_free"])
    fingerprint = dataset.fingerprint()

    def complete(stage: Run) -> dict[str, Any]:
        return stages.complete(stage, workdir, fingerprint, parallel)

    with process.stop_after(hp["max_minutes"]):
        results = {
            (arm, seed): complete(stage)
            for seed, runs in plan.items()
            for arm, stage in runs.items()
        }
        choice = {}
        for teacher in ("normal", "nasty") if hp["attack_alphas"] else ():
            arm = f"student_of_{teacher}"
            choice[teacher] = _attackers_choice(hp, first[arm], complete)
            for seed, runs in plan.items():
                found = complete(ablations.student_stage(runs[arm], **choice[teacher]))
                results[f"attacker_of_{teacher}", seed] = found
        for teacher in ("normal", "nasty") if hp["data_free"] else ():
            for seed in hp["seeds"]:
                stage = _data_free_stage(hp, workdir, seed, teacher)
                results[stage.arm, seed] = complete(stage)
        axes = [name for name in ablations.AXES if name in hp["ablations"]]
        sweeps = {name: _sweep(hp, name, plan, workdir, complete) for name in axes}
        fought = _contest(hp, plan, workdir, results, complete) if hp["attacks"] else None
        inverted = complete(inversion_stage.stage(hp, workdir)) if hp["inversion"] else None

    minutes = (time.monotonic() - began) / 60
    further = further_results.collect(
        results,
        seed=hp["seeds"][0],
        sweeps=sweeps,
        fought=fought,
        inverted=inverted,
        targets=hp["targets"],
    )
    device, *others = jax.devices()
    if peak := throughput.peak(device.device_kind):
        arms = ("teacher_normal", "student_alone")
        pair = (checkpoint.load_model(run_directory(workdir, arm, hp["seeds"][0])) for arm in arms)
        try:
            table = throughput.table(results, hp, *pair, peak=peak * (1 + len(others)))
            further.tables.append(report.Table(*table))
        except Exception as error:  # it is not worth the results beside it
            reason = f"{type(error).__name__}: {error}"
            print(f"table of speed left out: {' '.join(reason.split())[:300]}", file=sys.stderr)
    found = summary.report_of(workdir, hp, dataset, results, choice, further, minutes)
    report.publish(found, workdir)
    return results


def paper_stages(hp: Mapping[str, Any], workdir: epath.Path, seed: int) -> list[Run]:
    """The seven runs of one seed and those of further students; inputs come first."""
    teacher = {name: hp[name] for name in config.TRAINING if name in hp}
    student = teacher | {name: hp[f"student_{name}"] for name in _STUDENT_ONLY}
    softened = {"temperature": hp["temperature"]}
    distilled = softened | {"alpha": hp["alpha"]}
    # Networks that are compared share a seed; a teacher, its adversary and its students do not.
    seeds = [{"seed": 10 * seed + k} for k in range(4)]
    normal, nasty = (
        run_directory(workdir, f"teacher_{kind}", seed) for kind in ("normal", "nasty")
    )
    fit, undermine, copy = (m.train_and_evaluate for m in (train, nasty_train, distill))
    of_normal, of_nasty = {"teacher": normal}, {"teacher": nasty}
    undermining = softened | {"omega": hp["omega"]}
    undermining |= {k: hp[k] for k in ("check_model", "check_model_kwargs") if hp.get(k)}
    further = []
    for name, own in hp["students"].items():
        mine = student | _student_settings(name, own, student) | seeds[2]
        further += [
            Run(f"{name}_alone", seed, fit, mine, {}),
            Run(f"{name}_of_normal", seed, copy, mine | distilled, of_normal),
            Run(f"{name}_of_nasty", seed, copy, mine | distilled, of_nasty),
        ]
    return [
        Run("teacher_normal", seed, fit, teacher | seeds[0], {}),
        Run(
            "teacher_nasty",
            seed,
            undermine,
            teacher | undermining | seeds[1],
            {"adversary": normal},
        ),
        Run("student_alone", seed, fit, student | seeds[2], {}),
        Run("student_of_normal", seed, copy, student | distilled | seeds[2], of_normal),
        Run("student_of_nasty", seed, copy, student | distilled | seeds[2], of_nasty),
        Run("self_of_normal", seed, copy, teacher | distilled | seeds[3], of_normal),
        Run("self_of_nasty", seed, copy, teacher | distilled | seeds[3], of_nasty),
        *further,
    ]


def _student_settings(name: str, own: Any, student: Mapping[str, Any]) -> dict[str, Any]:
    """What a further student changes in the settings of the student."""
    if name in _TAKEN:
        raise InputError(f"students.{name}", own, "is the name of an arm; take another")
    if not isinstance(own, Mapping) or "model" not in own:
        raise InputError(f"students.{name}", own, "must be a group of settings, with model")
    with config.within(f"students.{name}"):
        found = config.validate({**student, **own}, config.TRAINING)
    return {field: found[field] for field in own}


@contextlib.contextmanager
def _named(arm: str):
    """Names the student's own fields in what is wrong with one of its runs."""
    try:
        yield
    except InputError as error:
        if arm.startswith(("student_", "self_")) and error.field in _STUDENT_ONLY:
            name = f"student_{error.field}"
            raise InputError(name, error.given, error.allowed) from None
        raise


def _by_arm(runs: list[Run]) -> dict[str, Run]:
    return {run.arm: run for run in runs}


def _attackers_choice(hp: Mapping[str, Any], base: Run, complete: Complete) -> dict[str, float]:
    """The (α, τ_S) of the best student on held-out data, tried on one seed."""
    grid = [
        {"alpha": alpha, "temperature": temperature}
        for alpha in hp["attack_alphas"]
        for temperature in hp["attack_temperatures"]
    ]
    held = [complete(ablations.student_stage(base, **each))["validation_accuracy"] for each in grid]
    return grid[int(np.argmax(held))]


def _sweep(hp, name: str, plan, workdir: epath.Path, complete: Complete) -> list[ablations.Point]:
    """The points of one ablation, over all seeds."""
    points = []
    for value in ablations.values_of(name, hp["ablations"][name]):
        accuracies: dict[str, list[float]] = {}
        for runs in plan.values():
            for series, stage in ablations.AXES[name].stages(runs, workdir, value).items():
                accuracies.setdefault(series, []).append(complete(stage)["accuracy"])
        points.append(ablations.Point(value, accuracies))
    return points


def _contest(hp, plan, workdir: epath.Path, results, complete: Complete) -> contest.Contest:
    """Every attack on every defence, over all seeds."""
    found = [
        {place: complete(stage) for place, stage in contest.all_stages(hp, runs, workdir).items()}
        for runs in plan.values()
    ]
    return contest.collect(found, [results["student_alone", seed]["accuracy"] for seed in plan])


def _data_free_stage(hp: Mapping[str, Any], workdir: epath.Path, seed: int, teacher: str) -> Run:
    """The student that is distilled from one teacher's checkpoint alone."""
    own = {"seed": 10 * seed + 4, "dataset": hp["dataset"], "data_dir": hp["data_dir"]}
    place = run_directory(workdir, f"teacher_{teacher}", seed)
    settings = {**hp["data_free"], **own}
    binary = data_free.train_and_evaluate
    return Run(f"data_free_of_{teacher}", seed, binary, settings, {"teacher": place})


def _check(hp: Mapping[str, Any]):
    if not hp["seeds"]:
        raise InputError("seeds", hp["seeds"], "must name at least one seed")
    if bool(hp["attack_alphas"]) != bool(hp["attack_temperatures"]):
        raise InputError("attack_alphas", hp["attack_alphas"], "goes with attack_temperatures")
    if hp["attack_alphas"] and not hp["num_validation"]:
        allowed = "must be above 0: the attacker's choice is made on held-out examples"
        raise InputError("num_validation", hp["num_validation"], allowed)
    if jax.process_count() > 1:
        allowed = "an experiment runs on one host; start the training binaries on several"
        raise InputError("multihost", jax.process_count(), allowed)
    ablations.check(hp["ablations"])
    inversion_stage.check(hp["inversion"])
    contest.check(hp["attacks"], hp["defences"])
