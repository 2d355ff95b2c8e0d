"""Converts a teacher into a student without data: privately, if asked to.

    python -m dpdfd.train --config configs/dpdfd/convert_digits.py \
        --config.teacher=runs/plain --workdir runs/student

Without rounds, student and generator alternate: every step asks the teacher about fresh queries of
the generator, under noise on gradients. With rounds, noisy answers are bought for a set of queries,
kept, and trained on many times. The checkpoint holds `student`, `generator` and the ledger.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from distill_core import checkpoint, config, data
from distill_core.config import InputError
from distill_core.data.images.dataset import Dataset
from distill_core.models import spec, trust
from distill_core.runtime import cli, parallel
from distill_core.training import fits, fitting, loop, run_state
from distill_core.training.step import STREAM_INIT, TrainState, stream_key
from dpdfd import conversion, programs, rounds, settings, steps
from dpdfd.answers import MOST_NOISE
from dpdfd.ensemble import provenance
from dpdfd.privacy import odometer
from dpdfd.privacy.bought import Bought
from dpdfd.privacy.budget import Budget
from dpdfd.settings import FIELDS, validate
from dpdfd.warm_start import warm_start

_WARM_START_IMAGES = 10_000


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
    with run_state.about("teacher", hp["teacher"]):
        teacher = checkpoint.load_model(hp["teacher"])
    run_state.check_unchanged(hp, workdir, {"teacher": teacher})
    dataset = _dataset(hp, workdir, teacher)
    student, generator = _specs(hp, teacher)
    measured = {"dataset": dataset.fingerprint()} if dataset else {}
    metadata, reads = run_state.describe(
        hp, workdir, method="dpdfd.train", network=student, reads={**measured, "teacher": teacher}
    )
    decides = {k: v for k, v in hp.items() if k == "num_steps" or k not in config.MAY_CHANGE}
    bought = Bought(workdir, {**decides, "teacher": reads["teacher"]})
    run = _prepare(hp, teacher, student, generator, bought, mode)
    state = _initial_state(run, workdir, student, generator)
    metadata["parts"] = {"student": student, "generator": generator}
    if run.budget.release is not None or hp["num_rounds"]:
        # Noise was scaled, and queries are bought, for this many: it is no run to prolong.
        metadata["config"]["planned_num_steps"] = hp["num_steps"]
    metadata["config"]["noise_multiplier"] = run.budget.noise_multiplier
    metadata["ledger"] = run.budget.ledger(0).to_json()
    metadata["data_note"] = dataset.note if dataset else ""
    metadata["num_examples"] = _num_examples(hp, teacher)
    measure = None if dataset is None else _accuracy(run, student, dataset)
    final = loop.run(
        workdir=workdir,
        state=state,
        step_fn=steps.make_step(run),
        frozen=run.frozen,
        batch_fn=steps.make_batches(run),
        num_steps=hp["num_steps"],
        metadata=metadata,
        reads=reads,
        layout=loop.Layout(
            conversion.split_state,
            lambda *parts: steps.recall(run, conversion.merge_state(*parts)),
        ),
        evaluate=measure,
        evaluated_on="test",
        plan=run.budget.plan(
            workdir,
            run.frozen,
            mode,
            {**metadata["config"], "teacher": reads["teacher"]},
            bought=lambda: run.bought.count() * run.releases_per_round if hp["num_rounds"] else 0,
        ),
        mode=mode,
        log_every=hp["log_every"],
        eval_every=hp["eval_every"],
        save_every=hp["save_every"],
        label="dpdfd.train",
    )
    if not run_state.has_checkpoint(workdir):
        allowed = "is spent: what it buys was drawn and lost before anything was kept; take another"
        raise InputError("epsilon", hp["epsilon"], f"{allowed} workdir")
    _, found = checkpoint.find(workdir)
    result = {
        "id": found["id"],
        "ledger": found["ledger"],
        "noise_multiplier": run.budget.noise_multiplier,
    }
    if measure is not None and dataset is not None:
        result |= {"accuracy": measure(final)["accuracy"], "num_test": len(dataset.test)}
        _say(f"test accuracy {result['accuracy']:.4f} ({len(dataset.test)} examples)")
    return result


def _mode(hp: Mapping[str, Any], mode: str | None) -> str:
    parallel.check_batch_size(hp["batch_size"])
    mode = parallel.choose_mode(mode)
    if hp["mechanism"] == "param":
        parallel.check_per_example(mode)
    return mode


def _dataset(
    hp: Mapping[str, Any], workdir: epath.Path, teacher: checkpoint.LoadedModel
) -> Dataset | None:
    """Only its test split is used, to measure; the conversion itself needs no data."""
    if spec.is_text(teacher.spec):
        raise InputError("teacher", hp["teacher"], "is a language model; images are converted")
    if hp["dataset"] is None:
        return None
    dataset = data.load_dataset(hp["dataset"], data_dir=hp["data_dir"])
    run_state.check_unchanged(hp, workdir, {"dataset": dataset.fingerprint()})
    return fits.data_for("teacher", hp["teacher"], teacher, dataset)


def _specs(hp: Mapping[str, Any], teacher: checkpoint.LoadedModel) -> tuple[dict, dict]:
    """Of student and generator: inputs and classes are the teacher's."""
    names = ("num_classes", "input_shape", "mean", "std", "classes")
    about = {name: teacher.spec[name] for name in names}
    numbered = {k: v for k, v in teacher.spec.items() if k == "classes_named"}
    student = {"model": hp["model"], "model_kwargs": dict(hp["model_kwargs"]), **about}
    student |= numbered
    spec.check(student)
    if set(spec.variable_shapes(student)) != {"params"}:
        allowed = "has statistics of a batch, which mix examples: take norm 'group' or 'none'"
        raise InputError("model", hp["model"], allowed)
    group = hp["generator"]
    settings_of = {name: group[name] for name in ("conditional", "latent_size", "width", "norm")}
    generator = {
        "model": "dpdfd.generator:Generator",
        "model_kwargs": {"image_shape": list(about["input_shape"]), **settings_of},
        "num_classes": about["num_classes"],
        "input_shape": [group["latent_size"]],
        "mean": [0.0] * group["latent_size"],
        "std": [1.0] * group["latent_size"],
        "outputs": "images",
        "labelled": group["conditional"],
        "classes": about["classes"],
        **numbered,
    }
    spec.variable_shapes(generator)  # refuses an image shape that it cannot make
    # Its first layer normalises over height/4 · width/4 values of each image.
    smallest = hp["batch_size"] * (about["input_shape"][0] // 4) * (about["input_shape"][1] // 4)
    if group["norm"] == "batch" and group["every"] and smallest == 1:
        allowed = "leaves the generator's batch normalisation one value per channel: take a larger"
        raise InputError("batch_size", hp["batch_size"], f"{allowed} batch, or another norm")
    return student, generator


def _num_examples(hp: Mapping[str, Any], teacher: checkpoint.LoadedModel) -> int | None:
    """N of the teacher's private data, by its checkpoint; else as the config has it."""
    given, known = hp["num_examples"], teacher.metadata.get("num_examples")
    if None not in (given, known) and given != known:
        allowed = f"the teacher's checkpoint says {known:,}; leave it out"
        raise InputError("num_examples", given, allowed)
    return known if given is None else given


def _prepare(hp, teacher, student, generator, bought, mode) -> steps.Run:
    members, num_examples = 1, _num_examples(hp, teacher)
    if hp["mechanism"] == "answers":
        members = provenance.check(hp["teacher"], teacher)["num_teachers"]
    release = settings.release(hp, num_teachers=members, num_examples=num_examples)
    each, per_round = hp["num_steps"], 0
    if hp["num_rounds"]:
        each = hp["num_steps"] // hp["num_rounds"]
        per_round = hp["num_queries"] // hp["num_rounds"] // hp["batch_size"]

    def releases_at(step: int) -> int:
        return -(-step // each) * per_round if per_round else step

    run = steps.Run(
        hp,
        programs.compile_all(hp, student, generator, teacher.spec, mode),
        {"teacher": teacher.variables},
        mode,
        Budget(hp, release, releases_at, teacher.metadata),
        tuple(teacher.spec["input_shape"]),
        members,
        bought,
    )
    if hp["mechanism"] == "answers" and run.budget.noise_multiplier > MOST_NOISE:
        allowed = f"needs noise above {MOST_NOISE:g} sensitivities, in which no answer is left"
        raise InputError("epsilon", hp["epsilon"], allowed)
    if release is not None and hp["noise_seed"] is None:
        odometer.check(hp["teacher"])
    if hp["prior"]:
        # Refuses what it cannot draw before anything is written.
        steps.prior_images(hp, run.image_shape, 0, 0)
    return run


def _initial_state(run: steps.Run, workdir: epath.Path, student, generator):
    hp = run.hp
    rng = jax.random.key(hp["seed"])
    params, model_state = spec.init(student, stream_key(rng, STREAM_INIT, 0))
    learner = TrainState.create(
        params=params, model_state=model_state, tx=run.programs.student_tx, rng=rng
    )
    num_steps = hp["generator"]["warm_start_steps"]
    begun = run_state.has_checkpoint(workdir)  # then only shapes count
    chosen = {name: hp[name] for name in ("seed", "prior", "prior_extent")}
    made = _first_generator(json.dumps(generator), json.dumps(chosen), 0 if begun else num_steps)
    model_state = jax.tree.map(np.array, made)  # copies: steps may use their arguments up
    params = model_state.pop("params")
    maker = TrainState.create(
        params=params,
        model_state=model_state,
        tx=run.programs.generator_tx,
        rng=jax.random.fold_in(rng, 1),
    )
    bank = {}
    if hp["num_rounds"]:
        bank = rounds.empty_bank(hp["num_queries"], run.image_shape, student["num_classes"])
    return conversion.ConversionState(learner, maker, bank)


@functools.lru_cache(maxsize=2)  # an experiment's arms start from the same
def _first_generator(generator: str, chosen: str, num_steps: int) -> dict[str, Any]:
    """Variables of a (JSON) spec, on the host, warm-started on its seed's images."""
    described, hp = json.loads(generator), json.loads(chosen)
    key = stream_key(jax.random.key(hp["seed"]), STREAM_INIT, 1)
    params, model_state = spec.init(described, key)
    variables = {"params": params, **model_state}
    if num_steps:
        _say(f"warm-starts the generator: {num_steps} steps on images that code draws")
        module: Any = spec.build(described)
        images = steps.prior_images(hp, tuple(module.image_shape), 0, _WARM_START_IMAGES)
        variables = warm_start(module, variables, images, seed=hp["seed"], num_steps=num_steps)
    return jax.tree.map(np.asarray, variables)


def _accuracy(run: steps.Run, student: Mapping[str, Any], dataset: Dataset) -> Callable:
    def measure(state, stopped=lambda: False):
        return fitting.measure(
            student,
            {"params": state.student.params},
            dataset.test,
            batch_size=run.hp["eval_batch_size"],
            mode=run.mode,
            stopped=stopped,
        )

    return measure


def _say(line: str):
    if parallel.is_main():
        print(line, flush=True)


if __name__ == "__main__":
    cli.launch_training(train_and_evaluate, FIELDS)
