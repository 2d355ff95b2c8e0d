"""Trains a language model on text, from its teacher's soft targets if it has one.

    python -m swingdistill.train --config configs/swingdistill/train.py --workdir runs/student \
        --config.teacher=runs/teacher --config.reference=runs/reference

Without a teacher it is plain training: so teachers and references are made.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, config
from distill_core.config import InputError
from distill_core.data.text import corpus as corpora
from distill_core.models import checks, trust
from distill_core.models.network import LoadedModel, text_network
from distill_core.privacy.ledger import check_delta
from distill_core.runtime import cli
from distill_core.step import NextTokens
from distill_core.training import dp_settings, dp_sgd, inputs, language, plain_text, run_state
from swingdistill import evaluate, private_text, released, targets
from swingdistill.scorers import scoring
from swingdistill.step import Swing

METHOD_FIELDS = {
    "alpha": config.number(0.0, 1.0, default=0.7),
    "scorers": config.sequence(config.choice(*scoring.SCORERS), default=("rules", "divergence")),
    "quantiles": config.sequence(config.number(0.0, 1.0), default=(0.99, 0.999)),
    "t_min": config.number(0.0, above=True, default=1.0),
    "t_max": config.number(0.0, above=True, default=16.0),
    "gamma": config.number(0.0, above=True, default=1.0),
    "noise_scale": config.number(0.0, default=1.0),
    "noise_everywhere": config.boolean(default=False),
    "noise_seed": config.integer(0, 2**32 - 1, default=None),
    "clip": config.number(0.0, above=True, default=10.0),
    "variant": config.choice("swing", "anchored", "reference_mix", "mask", default="swing"),
    "teacher_weight": config.number(0.0, 1.0, default=0.0),
    "keep_ce": config.boolean(default=False),
    "epsilon": config.number(0.0, default=0.0),
    "delta": config.number(0.0, 1.0, default=1e-5),
    "entries": config.integer(0, default=0),
}
FIELDS = {
    **private_text.FIELDS,
    **config.MODEL,
    **config.OPTIMIZER,
    **config.RUN,
    "teacher": config.text(default=None),
    "reference": config.text(default=None),
    **dp_settings.FIELDS,
    **METHOD_FIELDS,
}


@trust.config_allows
def train_and_evaluate(
    settings: Any, workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Trains to the end or resumes; returns metrics on the test text and the checkpoint's id.

    The result's `budget` says what noise there was and, with `epsilon` above 0, what (ε, δ) holds
    of which released vectors; with a group `dp` (see `training.dp_sgd`), what holds of a line
    of the training text. There the vocabulary, which has to come from elsewhere, and the text for
    validation count as public.
    """
    hp = config.validate(settings, FIELDS)
    check(hp)
    private = bool(hp["dp"])
    if not private:
        del hp["dp"]  # as before there was such a field
    text = corpora.load_corpus(hp["dataset"]).fingerprint()
    run_state.check_unchanged(hp, workdir, {"dataset": text})
    models = {field: _load(hp, field) for field in ("teacher", "reference")}
    run_state.check_unchanged(hp, workdir, {k: m for k, m in models.items() if m is not None})
    teacher, reference = models.values()
    tokenizer = private_text.get_tokenizer(hp, teacher)
    private_text.check_vocabularies(hp, tokenizer, teacher=teacher, reference=reference)
    texts = private_text.load(hp)
    if hp["epsilon"] and teacher is not None:
        check_delta(hp["delta"], len(texts.train))
    private_text.check_classes(hp, texts.classes, teacher=teacher, reference=reference)
    network = text_network(
        tokenizer,
        hp["length"],
        model=hp["model"],
        model_kwargs=hp["model_kwargs"],
        classes=texts.classes if hp["task"] == "classification" else (),
    )
    checks.check(network)
    if hp["entries"] > network.num_classes:
        allowed = f"must be at most the size of the vocabulary, {network.num_classes:,}"
        raise InputError("entries", hp["entries"], allowed)
    if texts.canaries:
        private_text.secret_candidates(hp, tokenizer, texts.canaries)  # refuses before training
    rows, lines, fill = private_text.to_rows(hp, texts.train, tokenizer, apart=private)
    public, _, _ = private_text.to_rows(hp, texts.validation, tokenizer)
    judged = evaluate.test_rows(hp, texts.test, tokenizer)
    if teacher is None:
        objective, frozen, report, share = NextTokens(network), {}, None, 0.0
    else:
        scores = score_rows(hp, rows, lines, fill, public, teacher, reference)
        share = float(np.mean(scores[rows["weights"] > 0] > 0.5))
        rows, report = targets.with_noise(hp, rows, scores)
        objective, frozen = _student(hp, workdir, network, rows, teacher, reference)
    run = language.Run(hp, workdir, "swingdistill.train", network, rows, public, parallel)
    reads = {
        "dataset": text,
        **{field: m for field, m in models.items() if m is not None},
        "tokenizer": inputs.of_tokenizer(tokenizer),
    }
    description = _describe(hp, report, share)
    id = language.train(run, objective, frozen=frozen, reads=reads, description=description)
    found = evaluate.rows_metrics(checkpoint.load_model(workdir), judged, mode=parallel)
    evaluate.say(found)
    report = dp_sgd.report(workdir) if private else report
    return {**found, "id": id, "budget": report}


def check(hp: Mapping[str, Any]):
    """What the fields must be to one another.

    Raises:
      InputError: naming the field.
    """
    if hp["t_min"] > hp["t_max"]:
        raise InputError("t_max", hp["t_max"], f"must be at least t_min, {hp['t_min']}")
    low_high = hp["quantiles"]
    if len(low_high) != 2 or not low_high[0] < low_high[1]:
        raise InputError("quantiles", low_high, "must be two in ascending order, in [0, 1]")
    for pattern in hp["expressions"]:
        try:
            re.compile(pattern)
        except re.error as error:
            allowed = f"must be regular expressions ({error})"
            raise InputError("expressions", pattern, allowed) from None
    if hp.get("dp") and hp["teacher"] is not None:
        allowed = "is for training on labels alone: a teacher saw the private text without noise"
        raise InputError("dp", hp["dp"], allowed)
    plain_text.check_private(hp)
    if hp["teacher"] is None:
        return
    asks = asks_reference(hp)
    if asks and hp["reference"] is None:
        raise InputError("reference", None, f"{asks[0]} needs one: a checkpoint on public text")
    if not hp["epsilon"]:
        return
    if not hp["entries"]:
        raise InputError("entries", 0, "a formal budget needs the number of released entries")
    if hp["variant"] in ("reference_mix", "mask"):
        allowed = (
            "with epsilon must be swing or anchored: how much reference_mix mixes in follows the "
            "scores, after the noise, and mask releases the teacher's logits without any"
        )
        raise InputError("variant", hp["variant"], allowed)


def asks_reference(hp: Mapping[str, Any]) -> list[str]:
    """Which of the settings need a reference."""
    asks = [name for name in hp["scorers"] if name in scoring.MEASURES]
    asks += [hp["variant"]] if hp["variant"] in ("anchored", "reference_mix") else []
    return asks + (["entries"] if hp["entries"] else [])


def score_rows(hp, rows, lines, fill, public, teacher, reference) -> np.ndarray:
    """s of every token of the training text, float32 [N, L]: the highest of the config's scorers.

    The ramps lie between quantiles of `public`, held-out text without canaries.
    """
    bounds = scoring.measure_bounds(
        hp["scorers"], public, hp["quantiles"], teacher=teacher, reference=reference
    )
    each = scoring.score(
        hp["scorers"],
        rows,
        lines,
        fill,
        teacher=teacher,
        reference=reference,
        bounds=bounds,
        expressions=hp["expressions"],
        whole_line=hp["task"] == "classification",
    )
    return np.max([np.zeros_like(rows["weights"]), *each.values()], axis=0)


def _describe(hp, report, share: float) -> str:
    """What a run learns from, in one line."""
    if hp["teacher"] is None:
        return "no teacher: learns from the text alone"
    found = " and ".join(hp["scorers"]) or "nobody"
    found += f" ({share:.2%} of the tokens)" if hp["scorers"] else ""
    budget = ", ".join(f"{name} {value}" for name, value in (report or {}).items())
    return (
        f"teacher {hp['teacher']}; private by {found}; {hp['variant']}, temperatures "
        f"{hp['t_min']:g} to {hp['t_max']:g}; budget: {budget or 'none'}"
    )


def _student(hp, workdir, network, rows, teacher, reference):
    """(objective, frozen) of a run with a teacher; `frozen` as `language.train` takes it."""
    formal = bool(hp["epsilon"])  # what is noised is made beforehand, once; the rest is plain
    plain = formal or hp["variant"] == "mask"
    needs = not formal and (hp["variant"] in ("anchored", "reference_mix") or hp["entries"])
    noisy = bool(hp["noise_scale"]) and not plain
    objective = Swing(
        network,
        teacher.network,
        reference.network if needs else None,
        "swing" if plain else hp["variant"],
        (hp["entries"] or None) if needs else None,
        hp["keep_ce"],
        noisy,
    )
    numbers = ("alpha", "t_min", "t_max", "gamma", "clip", "teacher_weight")
    frozen = {name: jnp.float32(hp[name]) for name in numbers}
    frozen["teacher"] = teacher.variables
    if needs:
        frozen["reference"] = reference.variables
    if not (noisy or formal):
        return objective, frozen

    def open_frozen(start: int):
        key = targets.noise_key(hp, workdir, start, rows, teacher, reference)
        if not formal:
            return {**frozen, "noise_key": key}
        given = {"entries": hp["entries"], "variant": hp["variant"], "numbers": numbers_of}
        return {**frozen, "released": released.table(key, rows, teacher, reference, **given)}

    numbers_of = {name: frozen[name] for name in ("t_min", "t_max", "gamma", "clip")}
    return objective, open_frozen


def _load(hp, field: str) -> LoadedModel | None:
    if hp[field] is None:
        return None
    with run_state.about(field, hp[field]):
        loaded = checkpoint.load_model(hp[field])
    if not loaded.network.is_text:
        raise InputError(field, hp[field], "must be a language model's checkpoint, not of images")
    return loaded


if __name__ == "__main__":
    cli.launch_training(train_and_evaluate, FIELDS)
