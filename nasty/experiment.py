"""The paper's comparison: normal and nasty teacher, and students with and without them.

    python -m nasty.experiment --config configs/nasty/digits.py --workdir runs/demo

Per seed: normal teacher → nasty teacher (the normal one is its adversary) → student alone, of the
normal, of the nasty teacher → students of the teachers' own architecture; then, if asked for, the
attacker's choice of (α, τ_S) on held-out data. Every run is a stage in `<workdir>/runs/`: a
finished one is skipped while its settings, data and input checkpoints stay the same.
"""

import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from distill_core import classification, cli, config, distill, stages, train
from distill_core.config import InputError
from distill_core.stages import Run, run_directory
from nasty import summary
from nasty import train as nasty_train

_NETWORK = {**config.MODEL, **config.OPTIMIZER}
_STUDENT_ONLY = {**_NETWORK, "num_steps": config.integer(1), "batch_size": config.integer(1)}
FIELDS = {
    **{name: field for name, field in config.TRAINING.items() if name not in ("seed", "init_from")},
    **{f"student_{name}": field for name, field in _STUDENT_ONLY.items()},
    "temperature": config.number(0.0, above=True),
    "omega": config.number(0.0),
    "alpha": config.number(0.0, 1.0, default=0.9),
    "seeds": config.sequence(config.integer(0)),
    "attack_alphas": config.sequence(config.number(0.0, 1.0), default=()),
    "attack_temperatures": config.sequence(config.number(0.0, above=True), default=()),
}


def run(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[tuple[str, int], dict[str, Any]]:
    """Runs or completes the experiment; writes results.json, report.html and the figures.

    Returns each run's result by (arm, seed).
    """
    hp = config.validate(settings, FIELDS)
    _check(hp)
    dataset, _ = classification.load_splits(hp)
    workdir, began = epath.Path(workdir), time.monotonic()
    for stage in paper_stages(hp, workdir, hp["seeds"][0]):
        # Before hours of teachers, not after them.
        classification.check(stage.settings, dataset)
    fingerprint = dataset.fingerprint()

    def complete(stage: Run) -> dict[str, Any]:
        return stages.complete(stage, workdir, fingerprint, parallel)

    results = {}
    for seed in hp["seeds"]:
        for stage in paper_stages(hp, workdir, seed):
            results[stage.arm, seed] = complete(stage)
    attack = {}
    for teacher in ("normal", "nasty") if hp["attack_alphas"] else ():
        chosen = _attackers_choice(hp, workdir, teacher, complete)
        for seed in hp["seeds"]:
            found = complete(attack_stage(hp, workdir, seed, teacher, *chosen))
            results[f"attacker_of_{teacher}", seed] = found
        attack[teacher] = dict(zip(("alpha", "temperature"), chosen, strict=True))

    minutes = (time.monotonic() - began) / 60
    rows, gates = summary.rows_and_gates(results, hp, attack)
    normal, nasty = (
        run_directory(workdir, f"teacher_{kind}", hp["seeds"][0]) for kind in ("normal", "nasty")
    )
    figures = summary.draw_figures(workdir, dataset, rows, normal, nasty, hp["temperature"])
    summary.write(workdir, hp, dataset, rows, gates, figures, minutes)
    return results


def paper_stages(hp: Mapping[str, Any], workdir: epath.Path, seed: int) -> list[Run]:
    """The seven runs of one seed, in an order in which inputs come first."""
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
    ]


def attack_stage(
    hp: Mapping[str, Any],
    workdir: epath.Path,
    seed: int,
    teacher: str,
    alpha: float,
    temperature: float,
) -> Run:
    """The student of one teacher at one (α, τ_S); that of the paper's table where they agree."""
    arm = f"student_of_{teacher}"
    (stage,) = (s for s in paper_stages(hp, workdir, seed) if s.arm == arm)
    if (alpha, temperature) == (hp["alpha"], hp["temperature"]):
        return stage
    return stage._replace(
        arm=f"{arm}_alpha{alpha:g}_temperature{temperature:g}",
        settings=stage.settings | {"alpha": alpha, "temperature": temperature},
    )


def _attackers_choice(hp, workdir, teacher, complete) -> tuple[float, float]:
    """The (α, τ_S) of the best student on held-out data, tried on the first seed."""
    accuracies = {}
    for alpha in hp["attack_alphas"]:
        for temperature in hp["attack_temperatures"]:
            stage = attack_stage(hp, workdir, hp["seeds"][0], teacher, alpha, temperature)
            accuracies[alpha, temperature] = complete(stage)["validation_accuracy"]
    return max(accuracies, key=lambda choice: accuracies[choice])


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


if __name__ == "__main__":
    cli.launch_training(run, FIELDS)
