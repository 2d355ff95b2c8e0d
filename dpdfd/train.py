r"""Converts a teacher into a student without data, privately if a privacy unit is set.

    python -m dpdfd.train --config configs/dpdfd/convert_digits.py \
        --config.teacher=runs/plain --workdir runs/student

Without rounds (`num_rounds`), student and generator alternate: every step asks the teacher about
fresh queries of the generator, under noise on the gradients. With rounds, noisy answers are bought
for a set of queries, stored, and used for training many times. The checkpoint holds `student`,
`generator` and the ledger.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from distill_core import checkpoint, config, data
from distill_core.config import InputError
from distill_core.data.images.dataset import Dataset
from distill_core.models import count_parameters, trust
from distill_core.runtime import cli, parallel
from distill_core.training import classification, fits, loop, run_state
from dpdfd import answers, conversion, settings, step
from dpdfd.conversion import Prior, Run
from dpdfd.ensemble import mean, provenance
from dpdfd.priors.bought_moments import bought_moments
from dpdfd.privacy import odometer
from dpdfd.privacy.bought import Bought
from dpdfd.privacy.budget import Budget
from dpdfd.privacy.exact_noise import MOST_NOISE
from dpdfd.settings import Settings, validate


@trust.config_allows
def train_and_evaluate(
    given: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Converts to the end or resumes; returns the checkpoint's id and what was spent.

    Returns:
      {"id", "noise_multiplier", "ledger"} and, where the config has a data set, "accuracy" and
      "num_test" on its test split.

    Raises:
      InputError: before anything is written; and what `loop.run` raises.
    """
    hp = validate(given)
    workdir, mode = epath.Path(workdir), _mode(hp, parallel)
    with run_state.about("teacher", hp.teacher):
        teacher = checkpoint.load_model(hp.teacher)
    run_state.check_unchanged(hp, workdir, {"teacher": teacher})
    dataset = _dataset(hp, workdir, teacher)
    averages = hp.mechanism == "parameters"
    asked = mean.member_of(hp.teacher, teacher) if averages else teacher
    chosen = conversion.choose(hp, asked)
    measured = {"dataset": dataset.fingerprint()} if dataset else {}
    metadata, reads = run_state.describe(
        hp,
        workdir,
        method="dpdfd.train",
        network=chosen.student,
        reads={**measured, "teacher": teacher},
        note=dataset.note if dataset else "",
    )
    decides = metadata["config"].items()
    decides = {k: v for k, v in decides if k == "num_steps" or k not in config.MAY_CHANGE}
    decides |= {"teacher": reads["teacher"]}
    bought = Bought(workdir, decides)
    run = _prepare(hp, teacher, chosen, bought, mode)
    begun = run_state.has_checkpoint(workdir)
    if not begun:
        noised = asked.network if averages else chosen.student
        run.budget.say(count_parameters(noised.shapes()["params"]))
    if run.budget.moments and dataset:
        run = _with_moments(run, workdir, dataset, {**decides, "dataset": reads["dataset"]})
    if averages:
        asked = _released(run, teacher, asked, workdir, decides)
    state = conversion.first_state(run, asked, begun=begun)
    parts = {"student": chosen.student, "generator": chosen.generator}
    metadata["parts"] = {name: network.to_json() for name, network in parts.items()}
    if run.budget.release is not None or hp.num_rounds:
        # Noise was scaled, and queries are bought, for this many: it is no run to prolong.
        metadata["config"]["planned_num_steps"] = hp.num_steps
    metadata["config"]["noise_multiplier"] = run.budget.noise_multiplier
    metadata["ledger"] = run.budget.ledger(int(averages)).to_json()
    metadata["num_examples"] = _num_examples(hp, teacher)
    frozen = {"teacher": asked.variables}
    measure = None if dataset is None else _accuracy(run, dataset)
    final = loop.run(
        workdir,
        state,
        loop.Program(_step_fn(run), _batch_fn(run), frozen, mode),
        loop.Checkpoints(answers.Layout(run), metadata, reads),
        num_steps=hp.num_steps,
        cadence=config.part(hp, loop.Cadence),
        monitor=None if measure is None else loop.Monitor(measure, split="test"),
        plan=run.budget.plan(
            workdir,
            frozen,
            mode,
            {**metadata["config"], "teacher": reads["teacher"]},
            bought=lambda: run.bought.count() * run.releases_per_round if hp.num_rounds else 0,
        ),
    )
    if not run_state.has_checkpoint(workdir):
        allowed = "is spent: what it buys was drawn and lost before anything was kept; take another"
        raise InputError("epsilon", hp.epsilon, f"{allowed} workdir")
    _, found = checkpoint.find(workdir)
    result = {
        "id": found["id"],
        "ledger": found["ledger"],
        "noise_multiplier": run.budget.noise_multiplier,
    }
    if measure is not None and dataset is not None:
        result |= {"accuracy": measure(final)["accuracy"], "num_test": len(dataset.test)}
        fits.say(f"test accuracy {result['accuracy']:.4f} ({len(dataset.test)} examples)")
    return result


def _mode(hp: Settings, mode: str | None) -> str:
    mode = parallel.choose_mode(mode)
    parallel.check_no_model(mode)
    parallel.check_batch_size(hp.batch_size, mode)
    if hp.mechanism == "param":
        parallel.check_per_example(mode)
    return mode


def _dataset(hp: Settings, workdir: epath.Path, teacher: checkpoint.LoadedModel) -> Dataset | None:
    """Only its test split is used, to measure; the conversion itself needs no data."""
    if teacher.network.is_text:
        raise InputError("teacher", hp.teacher, "is a language model; images are converted")
    if hp.dataset is None:
        return None
    dataset = data.load_dataset(hp.dataset, data_dir=hp.data_dir)
    run_state.check_unchanged(hp, workdir, {"dataset": dataset.fingerprint()})
    return fits.data_for("teacher", hp.teacher, teacher, dataset)


def _num_examples(hp: Settings, teacher: checkpoint.LoadedModel) -> int | None:
    """N of the teacher's private data, by its checkpoint; else as the config has it."""
    given, known = hp.num_examples, teacher.metadata.get("num_examples")
    if None not in (given, known) and given != known:
        allowed = f"the teacher's checkpoint says {known:,}; leave it out"
        raise InputError("num_examples", given, allowed)
    return known if given is None else given


def _prepare(
    hp: Settings,
    teacher: checkpoint.LoadedModel,
    chosen: step.Conversion,
    bought: Bought,
    mode: str,
) -> Run:
    members, num_examples = 1, _num_examples(hp, teacher)
    if hp.mechanism in ("answers", "parameters"):
        members = provenance.check(hp.teacher, teacher)["num_teachers"]
    release = settings.release(hp, num_teachers=members, num_examples=num_examples)
    each, per_round = hp.num_steps, 0
    if hp.num_rounds:
        each = hp.num_steps // hp.num_rounds
        per_round = (hp.num_queries or 0) // hp.num_rounds // hp.batch_size

    def releases_at(step: int) -> int:
        if hp.mechanism == "parameters":
            return 1
        return -(-step // each) * per_round if per_round else step

    budget = Budget(hp, release, releases_at, teacher.metadata)
    if hp.mechanism == "answers" and budget.noise_multiplier > MOST_NOISE:
        allowed = f"needs noise above {MOST_NOISE:g} sensitivities, in which no answer is left"
        raise InputError("epsilon", hp.epsilon, allowed)
    if hp.mechanism == "parameters" and budget.noise_multiplier > mean.MOST_NOISE:
        raise InputError("epsilon", hp.epsilon, f"needs noise above {mean.MOST_NOISE:g} norms")
    if (release is not None or budget.moments) and hp.noise_seed is None:
        odometer.check(hp.teacher)
    if hp.prior:
        # Refuses what it cannot draw before anything is written.
        shape = chosen.student.input_shape
        Prior.of(hp, None).draw(hp.seed, shape, 0, 0)
    return Run(hp, chosen, mode, budget, bought, members)


def _released(run: Run, teacher, member, workdir: epath.Path, decides) -> checkpoint.LoadedModel:
    """The noisy mean of the teacher's heads; charged to its account when it is bought."""
    seed, private = run.hp.noise_seed, np.random.default_rng(run.hp.noise_seed).bytes
    found = mean.released_mean(
        teacher,
        member,
        workdir,
        decides,
        norm=run.hp.norm,
        noise_multiplier=run.budget.noise_multiplier,
        charge=run.budget.charge_once,
        random=os.urandom if seed is None else private,
    )
    run.budget.read_conversions()
    return found


def _with_moments(run: Run, workdir: epath.Path, dataset: Dataset, decides) -> Run:
    """The run with the moments of the private images that its prior draws from."""
    charged = run.budget.moments
    assert charged is not None
    if len(dataset.train) != charged.num_examples:
        allowed = f"has {len(dataset.train):,} training images; the teacher saw "
        allowed += f"{charged.num_examples:,}: moments are bought of the same records"
        raise InputError("dataset", run.hp.dataset, allowed)
    found = bought_moments(
        run.hp,
        workdir,
        dataset.train,
        num_classes=run.conversion.student.num_classes,
        noise_multiplier=charged.std / charged.sensitivity,
        decides=decides,
        charge=run.budget.charge_once,
    )
    run.budget.read_conversions()
    return dataclasses.replace(run, moments=found)


def _batch_fn(run: Run) -> Callable[[int], tuple[int, Any]]:
    """step -> (step, this process's places in the batch); all else is drawn on the devices."""
    index = np.arange(run.hp.batch_size, dtype=np.int32)
    mine = index[parallel.local_rows(run.hp.batch_size, run.mode)]
    return lambda number: (number, parallel.feed({"index": mine}, run.mode))


def _step_fn(run: Run) -> Callable:
    """One step of the loop: a round if one is due, the student's step, then the generator's."""
    hp, every = run.hp, run.hp.generator.every
    alternate, replay, generator_step = (
        run.program(function, donate=True)
        for function in (step.alternate, step.replay_step, step.generator_step)
    )

    def step_fn(state, frozen, numbered):
        number, batch = numbered
        if hp.num_rounds:
            if number % run.steps_per_round == 0:
                state = answers.buy(run, state, frozen, number // run.steps_per_round)
            state, metrics = replay(state, {}, batch)
        else:
            run.budget.reserve(number, 16)
            state, metrics = alternate(state, frozen, batch)
        if every and (number + 1) % every == 0:
            guide = frozen if hp.guide == "teacher" else {}
            state, made = generator_step(state, guide, batch)
            metrics = {**metrics, **made}
        return state, metrics

    return step_fn


def _accuracy(run: Run, dataset: Dataset) -> Callable:
    def measure(state, stopped=lambda: False):
        return classification.measure(
            run.conversion.student,
            {"params": state.student.params, **state.student.model_state},
            dataset.test,
            batch_size=run.hp.eval_batch_size,
            mode=run.mode,
            stopped=stopped,
        )

    return measure


if __name__ == "__main__":
    cli.launch_training(train_and_evaluate, Settings)
