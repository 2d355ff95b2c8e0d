"""The comparison: what a student reveals of its teacher's private text, with and without Swing.

    python -m swingdistill.experiment --config configs/swingdistill/records.py --workdir runs/swing

First one reference on text that the teachers never see; then, per seed of secrets, a teacher on
private text with canaries and its students, one per arm. Every run is a stage in `<workdir>/runs/`:
a finished one is skipped while its settings, text and input checkpoints stay the same.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from distill_core import checkpoint, config
from distill_core.config import InputError
from distill_core.experiment import report, stages
from distill_core.experiment.stages import Run
from distill_core.models import trust
from distill_core.training import dp_settings, plain_text
from swingdistill import evaluate, private_text, train
from swingdistill.attacks import membership
from swingdistill.experiment import arms, attack_study, scorer_study, summary


@config.settings
class Student(config.Optimizer, config.Model):
    """The students' training, where it differs from the teacher's."""

    num_steps: int = config.integer(1, help="updates in all")
    batch_size: int = config.integer(1, help="over all devices")


@config.settings
class Settings(
    train.Method,
    dp_settings.Private,
    config.Evaluated,
    config.Language,
    config.Length,
    config.Optimizer,
    config.Model,
    private_text.Text,
):
    """The comparison; the training fields at the top are those of teacher and reference."""

    student: Student = config.group(Student, help="the students' training, where it differs")
    dp_batch_size: int | None = config.integer(
        1, default=None, help="of the arm dp_sgd, which there is with a group dp"
    )
    dp_num_steps: int | None = config.integer(1, default=None, help="likewise")
    dp_learning_rate: float | None = config.number(
        0.0, above=True, default=None, help="likewise; by default the students'"
    )
    seeds: tuple[int, ...] = config.sequence(config.integer(0), help="of secrets, one teacher each")
    ablations: bool = config.boolean(default=True, help="runs the further arms with the first seed")
    decoys: bool = config.boolean(default=True, help="runs the arms that see decoys for canaries")
    sweep: tuple[float, ...] = config.sequence(
        config.number(0.0, above=True), default=(), help="noise scales to try"
    )
    num_samples: int = config.integer(
        1, default=10_000, help="candidates a secret is ranked among where not all can be asked"
    )
    uniform_temperature: float = config.number(
        0.0, above=True, default=4.0, help="of the arm that softens every token alike"
    )


_METHOD = tuple(config.fields(train.Method))


@trust.config_allows
def run(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[tuple[str, int], dict[str, Any]]:
    """Runs or completes the experiment; writes results.json, report.html and the figures.

    Args:
      settings: a config or mapping with the fields of `Settings`.
      workdir: where the run lives, local or `gs://…`.
      parallel: how a step is spread over devices, as `--parallel` or `--mesh`.

    Returns:
      Each run's result by (arm, seed).
    """
    hp = config.validate(settings, Settings)
    _check(hp)
    workdir, began = epath.Path(workdir), time.monotonic()
    data = "".join(private_text.fingerprints(hp).values())
    runner = stages.Runner(workdir, data, parallel)
    plan = runs(hp)
    results = runner.complete_all(plan)
    for each in attacks(hp, plan):
        for arm, found in runner.complete(each).items():
            key = (arm, 0 if arm == "reference" else each.seed)
            if key in results:  # not what a stage says of itself
                results[key]["attacks"] = found
    study = {each.seed: runner.complete(each) for each in studies(hp, plan)}
    minutes = (time.monotonic() - began) / 60
    report.publish(summary.report_of(hp, results, study, minutes), workdir)
    return results


def runs(hp: Settings) -> list[Run]:
    """All training runs, in an order in which inputs come first.

    Every seed has its own secrets, teacher and students. All share one reference and its
    vocabulary, which is made from the reference's half of the text: no word is in it because the
    teacher's half has it.
    """
    base = _base(hp) | {"num_samples": hp.num_samples}
    plain = _without(base, _METHOD)
    own = {"half": "second", "transfer_set": "public", "canary_seed": 0, "seed": 0}
    reference = Run("reference", 0, train_and_measure, plain | own | {"public_text": True}, {})
    found = [reference]
    is_path = hp.tokenizer is not None and hp.tokenizer not in plain_text.TRAINERS
    vocabulary = {} if is_path else {"tokenizer": reference}
    for seed in hp.seeds:
        own = {"half": "first", "transfer_set": "private", "canary_seed": seed}
        settings = _without(plain | own | {"seed": 10 * seed + 1}, vocabulary)
        teacher = Run("teacher", seed, train_and_measure, settings, vocabulary)
        found.append(teacher)
        inputs = {"teacher": teacher, "reference": reference, **vocabulary}
        settings = base | config.to_json(hp.student) | own | {"seed": 10 * seed + 2}
        if hp.noise_seed is not None:
            settings["noise_seed"] = (hp.noise_seed + settings["seed"]) % 2**32
        for name, arm in arms.students(hp).items():
            if arm.every_seed or seed == hp.seeds[0]:
                found.append(_student(name, seed, arm, settings, inputs))
    return found


def studies(hp: Settings, plan: Sequence[Run]) -> list[Run]:
    """What each scorer finds, and sample sentences, for every seed's teacher."""
    reference = next(run for run in plan if run.arm == "reference")
    found = []
    for teacher in (run for run in plan if run.arm == "teacher"):
        own = {"half": "first", "transfer_set": "private", "canary_seed": teacher.seed}
        inputs = {"teacher": teacher, "reference": reference}
        found.append(Run("scorers", teacher.seed, scorer_study.study, _base(hp) | own, inputs))
    return found


def attacks(hp: Settings, plan: Sequence[Run]) -> list[Run]:
    """Extraction and membership inference, for every seed's teacher and students.

    A student on decoys is asked about the canaries of its teacher, as all others are; and so, with
    the first seed, is the reference, which saw nothing of them.
    """
    reference = next(run for run in plan if run.arm == "reference")
    found = []
    for seed in hp.seeds:
        asked = {run.arm: run for run in plan if run.seed == seed and run is not reference}
        asked |= {"reference": reference} if seed == hp.seeds[0] else {}
        own = {"half": "first", "transfer_set": "private", "canary_seed": seed}
        settings = _base(hp) | own | {"arms": list(asked)}
        inputs = asked | {"reference": reference}
        found.append(Run("attacks", seed, attack_study.study, settings, inputs))
    return found


def train_and_measure(
    settings: Mapping[str, Any], workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """`swingdistill.train`, and how much of the canaries it gives away: `evaluate.described`."""
    settings = dict(settings)
    num_samples = settings.pop("num_samples")  # not of the training
    found = train.train_and_evaluate(settings, workdir, parallel=parallel)
    text = config.part_of(settings, private_text.Settings)
    ranks = evaluate.ranks(checkpoint.load_model(workdir), text, num_samples=num_samples)
    return {**found, **evaluate.described(ranks)}


def _base(hp: Settings) -> dict[str, Any]:
    """What all training runs have in common; `dp` is one arm's alone."""
    values, known = config.to_json(hp), config.fields(train.Settings)
    return {name: value for name, value in values.items() if name in known and name != "dp"}


def _student(name: str, seed: int, arm: arms.Arm, settings, inputs: Mapping[str, Run]) -> Run:
    """A run with those of the `inputs` that it needs."""
    settings, kept = _without(settings | arm.changes, inputs), dict(inputs)
    if arm.taught:
        kept.pop("tokenizer", None)  # it has its teacher's
        if not train.asks_reference(config.part_of(settings, train.Method)):
            del kept["reference"]
    else:
        settings = _without(settings, _METHOD)
        del kept["teacher"], kept["reference"]
    return Run(name, seed, train_and_measure, settings, kept)


def _without(settings: Mapping[str, Any], names) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _check(hp: Settings):
    stages.check_seeds(hp.seeds)
    if not hp.canaries_per_level:
        allowed = "must be at least 1: exposure is measured on planted canaries"
        raise InputError("canaries_per_level", 0, allowed)
    membership.other_lines(config.part_of(_base(hp), private_text.Settings))
    given = {**_base(hp), "teacher": "given", "reference": "given"}
    train.check(config.validate(given, train.Settings))
