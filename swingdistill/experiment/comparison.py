"""The comparison: what a student keeps of its teacher's private text, with and without Swing.

    python -m swingdistill.experiment --config configs/swingdistill/records.py --workdir runs/swing

Per seed of secrets: a teacher on private text with canaries → its students, one an arm; before, one
reference on text that the teacher never sees. Every run is a stage in `<workdir>/runs/`: a finished
one is skipped while its settings, text and input checkpoints stay the same.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from distill_core import checkpoint, config
from distill_core.config import InputError
from distill_core.data.text import corpus as corpora
from distill_core.experiment import report
from distill_core.experiment.stages import run_stage
from distill_core.models import trust
from distill_core.training import plain_text
from swingdistill import evaluate, train
from swingdistill.experiment import arms as arms_lib
from swingdistill.experiment import scorer_study, summary

_NETWORK = {
    **config.MODEL,
    **config.OPTIMIZER,
    "num_steps": config.integer(1),
    "batch_size": config.integer(1),
}
_SET_HERE = (
    *("seed", "init_from", "teacher", "reference", "half", "transfer_set", "canary_seed"),
    "public_text",
)
FIELDS = {
    **{name: field for name, field in train.FIELDS.items() if name not in _SET_HERE},
    **{f"student_{name}": field for name, field in _NETWORK.items()},
    # Of the arm dp_sgd, which there is with a group dp; None: as the students.
    "dp_batch_size": config.integer(1, default=None),
    "dp_num_steps": config.integer(1, default=None),
    "dp_learning_rate": config.number(0.0, above=True, default=None),
    "seeds": config.sequence(config.integer(0)),
    "ablations": config.boolean(default=True),
    "decoys": config.boolean(default=True),
    "sweep": config.sequence(config.number(0.0, above=True), default=()),
    "uniform_temperature": config.number(0.0, above=True, default=4.0),
}
# These change no number, and input checkpoints are known by their ids, not by path.
_NOT_IN_DIGEST = ("log_every", "eval_every", "save_every", "eval_batch_size")


class Run(NamedTuple):
    """One training run: its settings, and the settings that name input checkpoints."""

    arm: str
    seed: int
    settings: dict[str, Any]
    inputs: dict[str, epath.Path]


@trust.config_allows
def run(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[tuple[str, int], dict[str, Any]]:
    """Runs or completes the experiment; writes results.json, report.html and the figures.

    Returns each run's result by (arm, seed).
    """
    hp = config.validate(settings, FIELDS)
    _check(hp)
    workdir, began = epath.Path(workdir), time.monotonic()
    corpus = corpora.load_corpus(hp["dataset"])
    fingerprint = corpus.fingerprint()
    results = {}
    for each in runs(hp, workdir):
        directory = _directory(workdir, each.arm, each.seed)
        results[each.arm, each.seed] = _complete(each, directory, fingerprint, parallel)
    study = {seed: _study(hp, workdir, seed, fingerprint) for seed in hp["seeds"]}
    minutes = (time.monotonic() - began) / 60
    report.publish(summary.report_of(hp, results, study, minutes), workdir)
    return results


def runs(hp: Mapping[str, Any], workdir: epath.Path) -> list[Run]:
    """All training runs, in an order in which inputs come first.

    Every seed has its own secrets, teacher and students; the first also has the ablations, the
    decoys and the sweep. All share one reference and its vocabulary, which is made from the
    reference's half of the text: no word in it is there because the teacher's half has it.
    """
    base = _base(hp)
    student = base | {name: hp[f"student_{name}"] for name in _NETWORK}
    first = hp["seeds"][0]
    plain = {name: value for name, value in base.items() if name not in train.METHOD_FIELDS}
    reference = Run(
        "reference",
        0,
        plain
        | {"half": "second", "transfer_set": "public", "canary_seed": 0, "seed": 0}
        | {"public_text": True},
        {},
    )
    found = [reference]
    public = {"reference": _directory(workdir, "reference", 0)}
    vocabulary = {} if _is_path(hp["tokenizer"]) else {"tokenizer": public["reference"]}
    settings_of = arms_lib.ablations(hp)
    for seed in hp["seeds"]:
        own = {"half": "first", "transfer_set": "private", "canary_seed": seed}
        settings = _without(plain | own | {"seed": 10 * seed + 1}, vocabulary)
        found.append(Run("teacher", seed, settings, vocabulary))
        inputs = {"teacher": _directory(workdir, "teacher", seed), **public, **vocabulary}
        mine = {arm: settings_of[arm] for arm in arms_lib.HEADLINE}
        if seed == first and hp["ablations"]:
            mine |= settings_of
        if seed == first:
            mine |= arms_lib.sweep(hp["sweep"], hp["t_min"])
        own["seed"] = 10 * seed + 2
        if hp["noise_seed"] is not None:
            own["noise_seed"] = (hp["noise_seed"] + own["seed"]) % 2**32
        for arm, changes in mine.items():
            found.append(_student(arm, seed, student | own | changes, inputs))
        if hp["dp"]:
            found.append(_private(hp, seed, student | own, inputs))
        if seed == first and hp["decoys"]:
            own["transfer_set"] = "decoy"
            for arm, like in arms_lib.decoys().items():
                if like in settings_of:
                    found.append(_student(arm, seed, student | own | settings_of[like], inputs))
    return found


def _base(hp: Mapping[str, Any]) -> dict[str, Any]:
    """What all training runs have in common; `dp` is one arm's alone."""
    return {name: hp[name] for name in train.FIELDS if name in hp and name != "dp"}


def _private(hp, seed, settings, inputs) -> Run:
    given = {"dp": hp["dp"], "teacher": None, "reference": None}
    for name in ("batch_size", "num_steps", "learning_rate"):
        if hp[f"dp_{name}"] is not None:
            given[name] = hp[f"dp_{name}"]
    return _student(arms_lib.PRIVATE, seed, settings | given, inputs)


def _student(arm, seed, settings, inputs) -> Run:
    """A run with those `inputs` that it asks for; `settings` may say that it has no teacher."""
    kept = dict(inputs)
    if "teacher" in settings:  # it learns from labels alone, whatever the method's settings are
        del kept["teacher"], kept["reference"]
        settings = _without(settings, train.METHOD_FIELDS)
    else:
        if kept.pop("tokenizer", None):  # it has its teacher's
            settings = _without(settings, ("tokenizer",))
        if not train.asks_reference(settings):
            del kept["reference"]
    return Run(arm, seed, _without(settings, inputs), kept)


def _without(settings: Mapping[str, Any], names) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _is_path(tokenizer: str | None) -> bool:
    return tokenizer is not None and tokenizer not in plain_text.TRAINERS


def _complete(each: Run, directory, fingerprint: str, mode: str | None) -> dict[str, Any]:
    paths = {name: str(path) for name, path in each.inputs.items()}

    def train_and_measure():
        found = train.train_and_evaluate(each.settings | paths, directory, parallel=mode)
        bits = evaluate.exposures(checkpoint.load_model(directory), each.settings)
        return {**found, "exposure": {str(level): values for level, values in bits.items()}}

    return run_stage(
        directory,
        config={"binary": "swingdistill.train", **_known_by(each.settings)},
        data=fingerprint,
        inputs=[checkpoint.find(path)[1]["id"] for path in paths.values()],
        run=train_and_measure,
        say=_say,
    ).result


def _study(hp, workdir, seed: int, fingerprint: str) -> dict[str, Any]:
    """What each scorer finds, and sample sentences, for one seed."""
    own = {"half": "first", "transfer_set": "private", "canary_seed": seed}
    settings = _base(hp) | own
    paths = {
        "teacher": _directory(workdir, "teacher", seed),
        "reference": _directory(workdir, "reference", 0),
    }
    return run_stage(
        _directory(workdir, "scorers", seed),
        config={"study": "scorers", **_known_by(settings)},
        data=fingerprint,
        inputs=[checkpoint.find(path)[1]["id"] for path in paths.values()],
        run=lambda: scorer_study.study(settings, *paths.values()),
        say=_say,
    ).result


def _known_by(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _NOT_IN_DIGEST}


def _directory(workdir: epath.Path, arm: str, seed: int) -> epath.Path:
    return epath.Path(workdir) / "runs" / arm / f"seed{seed}"


def _check(hp: Mapping[str, Any]):
    if not hp["seeds"]:
        raise InputError("seeds", hp["seeds"], "must name at least one seed of secrets")
    if not hp["canaries_per_level"]:
        allowed = "must be at least 1: exposure is measured on planted canaries"
        raise InputError("canaries_per_level", 0, allowed)
    if jax.process_count() > 1:
        allowed = "an experiment runs on one host; start the training binaries on several"
        raise InputError("multihost", jax.process_count(), allowed)
    train.check({**_base(hp), "teacher": "given", "reference": "given"})


def _say(line: str):
    print(line, file=sys.stderr, flush=True)
