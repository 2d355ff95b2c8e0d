r"""Trains a language model on text, with a teacher's soft targets if it has one.

    python -m swingdistill.train --config configs/swingdistill/train.py --workdir runs/student \
        --config.teacher=runs/teacher --config.reference=runs/reference

Stored answers can replace the teacher: --config.teacher=cache:DIR (see `swingdistill.cache`).
Without a teacher this is plain training, which makes teachers and references. `--preview` shows on
a few lines which tokens count as private, and trains nothing.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, config
from distill_core.config import InputError
from distill_core.data import columns
from distill_core.data.text import tasks as text_tasks
from distill_core.models import trust
from distill_core.models.network import LoadedModel, stored_as
from distill_core.privacy.ledger import check_delta
from distill_core.runtime import cli
from distill_core.runtime import parallel as parallel_lib
from distill_core.step import NextTokens
from distill_core.training import (
    dp_settings,
    dp_sgd,
    fits,
    inputs,
    language,
    plain_text,
    run_state,
    teacher_cache,
)
from swingdistill import evaluate, private_text, released, targets
from swingdistill.cache import student
from swingdistill.recognisers import presidio
from swingdistill.scorers import scoring, shading
from swingdistill.step import Swing


@config.settings
class Method:
    """The method: which tokens are private, and the temperatures and noise of the targets."""

    alpha: float = config.number(0.0, 1.0, default=0.7, help="α, weight of the teacher's targets")
    scorers: tuple[str, ...] = config.sequence(
        config.choice(*scoring.SCORERS),
        default=("rules", "divergence"),
        help="what says which tokens are private; the highest score counts",
    )
    presidio: str | None = config.text(
        default=None,
        help="for the scorer presidio: PATH of Presidio's YAML, or an installed spaCy model",
    )
    quantiles: tuple[float, ...] = config.sequence(
        config.number(0.0, 1.0),
        default=(0.99, 0.999),
        help="of a measure on public text, between which its score rises from 0 to 1",
    )
    t_min: float = config.number(0.0, above=True, default=1.0, help="temperature at score 0")
    t_max: float = config.number(0.0, above=True, default=16.0, help="temperature at score 1")
    gamma: float = config.number(0.0, above=True, default=1.0, help="exponent of the score")
    noise_scale: float = config.number(0.0, default=1.0, help="std of the noise on clipped logits")
    noise_everywhere: bool = config.boolean(default=False, help="adds noise to public tokens, too")
    noise_seed: int | None = config.integer(
        0, 2**32 - 1, default=None, help="of the noise, to reproduce a run that claims no epsilon"
    )
    clip: float = config.number(0.0, above=True, default=10.0, help="bound of noised logits")
    variant: str = config.choice(
        "swing", "anchored", "reference_mix", "mask", default="swing", help="of private targets"
    )
    teacher_weight: float = config.number(
        0.0, 1.0, default=0.0, help="λ of reference_mix: the teacher's share at score 1"
    )
    keep_ce: bool = config.boolean(default=False, help="keeps the labels' loss at private tokens")
    epsilon: float = config.number(0.0, default=0.0, help="a formal budget; 0 for none")
    delta: float = config.number(0.0, 1.0, default=1e-5, help="of the formal budget")
    entries: int = config.integer(
        0, default=0, help="classes released of a noised position; 0 for all"
    )


@config.settings
class Settings(
    Method,
    dp_settings.Private,
    config.Frozen,
    config.Device,
    config.Language,
    config.Update,
    config.Start,
    config.Run,
    config.Optimizer,
    config.Model,
    private_text.Settings,
):
    """A language model's training, with a teacher or on text alone."""

    teacher: str | None = config.text(
        default=None, help="a checkpoint to learn from, or cache:DIR of its stored answers"
    )
    reference: str | None = config.text(
        default=None, help="a checkpoint of public text, for the measures and some variants"
    )


_PREVIEWED = 2000  # lines at the start of the text that a preview chooses from

# Whoever sets one of these without a teacher has forgotten the teacher.
_OF_STUDENTS = (
    "epsilon", "entries", "variant", "teacher_weight", "keep_ce", "noise_everywhere", "noise_seed",
    "frozen_dtype",
)  # fmt: skip


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
    hp = config.validate(settings, Settings)
    check(hp)
    private, placing = hp.dp is not None, parallel_lib.placing(parallel_lib.choose_mode(parallel))
    text = private_text.fingerprints(hp)
    run_state.check_unchanged(hp, workdir, text)
    models = load_models(hp, placing)
    run_state.check_unchanged(hp, workdir, models)
    tokenizer, texts, asked, shared = load_text(hp, models)
    teacher = asked.get("teacher")
    plain_text.check_in_memory(hp, texts.train)
    if hp.epsilon and teacher:
        check_delta(hp.delta, len(texts.train))
    classes = texts.classes if hp.task == "classification" else ()
    of_teacher = models["teacher"].network if teacher else None
    network = plain_text.make_network(hp, workdir, tokenizer, classes, of_teacher, mode=parallel)
    if hp.entries > shared:
        allowed = f"must be at most the size of the vocabulary, {shared:,}"
        raise InputError("entries", hp.entries, allowed)
    if texts.canaries:
        private_text.secret_candidates(hp, tokenizer, texts.canaries)  # refuses before training
    encoded = private_text.to_rows(hp, texts.train, tokenizer, apart=private)
    public = private_text.to_rows(hp, texts.validation, tokenizer, of="validation")
    judged = evaluate.test_rows(hp, texts.test, tokenizer)
    private_text.check_ids(hp, [encoded.rows, public.rows], tokenizer, shared)
    rows, report, description = encoded.rows, None, "no teacher: learns from the text alone"
    objective, frozen = NextTokens(network), {}
    if teacher:
        rows, report, share = _with_targets(hp, encoded, public, asked, shared, parallel)
        description = (
            _warning(hp, models) + _describe(hp, report, share) + _unread_spans(hp, encoded)
        )
        asking = dataclasses.replace(network, vocab_size=shared)
        objective, frozen = _student(hp, workdir, asking, (rows, encoded.digest), asked)
    held = public.rows
    run = language.Run(hp, workdir, "swingdistill.train", network, rows, held, parallel, hp.dp)
    reads = {**text, **models, "tokenizer": inputs.of_tokenizer(tokenizer)}
    id = language.train(run, objective, frozen=frozen, reads=reads, description=description)
    loaded = checkpoint.load_model(workdir, sharding=placing)
    found = evaluate.test_metrics(loaded, judged, mode=parallel)
    if hp.use == "best":
        fits.say(f"the best validation step counts: {loaded.metadata['step']} of {hp.num_steps}")
    evaluate.say(found)
    report = dp_sgd.report(workdir) if private else report
    return {**found, "id": id, "step": loaded.metadata["step"], "budget": report}


@trust.config_allows
def preview(settings: Any):
    """shows which tokens of a few lines count as private, trains nothing and writes nothing"""
    hp = config.validate(settings, Settings)
    check(hp)
    tokenizer, texts, models, _ = load_text(hp, load_models(hp))
    text = private_text.to_rows(hp, tuple(texts.train[:_PREVIEWED]), tokenizer)
    public = private_text.to_rows(hp, tuple(texts.validation), tokenizer, of="validation")
    asks = hp.teacher and not teacher_cache.is_cache(hp.teacher)
    names = hp.scorers if asks else [n for n in hp.scorers if n in scoring.TEXT_SCORERS]
    scores = score(hp, names, text, public, models)
    if parallel_lib.is_main():
        shading.show(text, scores, f"scores of {' and '.join(names) or 'nobody'}")


def load_text(hp: Settings, models: Mapping[str, LoadedModel]):
    """(tokenizer, texts) of a run, and its teacher and reference as `over_shared_tokens`."""
    private = hp.dp is not None
    tokenizer = private_text.get_tokenizer(hp, models.get("teacher"), private=private)
    texts = private_text.load(hp)
    for name, model in models.items():
        private_text.check_classes(hp, texts.classes, name, getattr(hp, name), model)
    return tokenizer, texts, *private_text.over_shared_tokens(hp, models, tokenizer)


def _with_targets(hp: Settings, text, public, models, shared: int, mode: str | None):
    """(rows with scores, noise and a cache's answers; a table's report; share of private tokens)"""
    rows, cache = text.rows, None
    if teacher_cache.is_cache(hp.teacher):
        cache = student.check(hp)
        student.check_fits(hp, cache, rows, shared)
    if cache and cache.manifest.release:
        rows, report = student.with_release(hp, cache, rows)
        return rows, report, _share_private(rows, rows["scores"])
    scores = score(hp, hp.scorers, text, public, models, mode)
    share = _share_private(rows, scores)
    rows, report = targets.with_noise(hp, rows, scores)
    return student.with_answers(hp, cache, rows) if cache else rows, report, share


def score(hp: Settings, names, text, public, models, mode: str | None = None):
    """The highest score of each token, float32 [N, L]; says what the recognisers found."""
    asked = scoring.Asked(
        tuple(names), hp.quantiles, hp.task == "classification", hp.expressions, hp.presidio
    )
    scores, said = scoring.highest(asked, text, public, models, mode)
    if parallel_lib.is_main():
        for line in said:
            print(line, flush=True)
    return scores


def _share_private(rows, scores) -> float:
    """Of the tokens that count, how many score above ½."""
    size, private, count = text_tasks.chunk_rows(rows["tokens"].shape[1]), 0, 0
    both = {"weights": rows["weights"], "scores": scores}
    for chunk in columns.in_chunks(both, both, size):
        where = chunk["weights"] > 0
        private, count = private + int(np.sum(chunk["scores"][where] > 0.5)), count + where.sum()
    return float(private / count)


def check(hp: Settings):
    """Refuses settings that do not go together: InputError on the field."""
    if hp.t_min > hp.t_max:
        raise InputError("t_max", hp.t_max, f"must be at least t_min, {hp.t_min}")
    low_high = hp.quantiles
    if len(low_high) != 2 or not low_high[0] < low_high[1]:
        raise InputError("quantiles", low_high, "must be two in ascending order, in [0, 1]")
    for pattern in hp.expressions:
        try:
            re.compile(pattern)
        except re.error as error:
            allowed = f"must be regular expressions ({error})"
            raise InputError("expressions", pattern, allowed) from None
    if "presidio" in hp.scorers:
        presidio.check(hp.presidio)
    if hp.dp and hp.teacher is not None:
        allowed = "is for training on labels alone: a teacher saw the private text without noise"
        raise InputError("dp", config.to_json(hp.dp), allowed)
    plain_text.check_start(hp)
    plain_text.check_private(hp)
    if hp.teacher is None:
        config.check_unset(hp, _OF_STUDENTS, "belongs to a student: it needs a teacher")
        return
    if teacher_cache.is_cache(hp.teacher) and student.check(hp).manifest.release:
        return  # all was decided when it was written
    asks = asks_reference(hp)
    if asks and hp.reference is None:
        raise InputError("reference", None, f"{asks[0]} needs one: a checkpoint on public text")
    if not hp.epsilon:
        return
    if not hp.entries:
        raise InputError("entries", 0, "a formal budget needs the number of released entries")
    if hp.variant in ("reference_mix", "mask"):
        allowed = (
            "with epsilon must be swing or anchored: how much reference_mix mixes in follows the "
            "scores, after the noise, and mask releases the teacher's logits without any"
        )
        raise InputError("variant", hp.variant, allowed)


def asks_reference(hp: Method) -> list[str]:
    """The settings that need a reference."""
    asks = [name for name in hp.scorers if name in scoring.MEASURES]
    asks += [hp.variant] if hp.variant in ("anchored", "reference_mix") else []
    return asks + (["entries"] if hp.entries else [])


def _describe(hp, report, share: float) -> str:
    """In one line, what a student learns from."""
    found = f"{' and '.join(hp.scorers)} ({share:.2%} of the tokens)" if hp.scorers else "nobody"
    budget = ", ".join(f"{name} {value}" for name, value in (report or {}).items())
    return (
        f"teacher {hp.teacher}; private by {found}; {hp.variant}, temperatures "
        f"{hp.t_min:g} to {hp.t_max:g}; budget: {budget or 'none'}"
    )


def _unread_spans(hp, text: private_text.Encoded) -> str:
    """A further line, if the user's text has private spans that no scorer reads."""
    annotated = text.span_kinds() - {private_text.CANARY}
    reads = {"spans", "oracle"} & set(hp.scorers) or not hp.scorers
    if reads or not annotated or hp.dataset == "records":
        return ""
    return "\nthe text's private spans are not read: no scorer is `spans`"


def _student(hp, workdir, network, text, models):
    """(objective, frozen) of a run with a teacher; `frozen` as `language.train` takes it.

    `text` holds the rows and a function that gives the digest of their content.
    """
    rows, digest = text
    asked = {name: stored_as(model, hp.frozen_dtype) for name, model in models.items()}
    formal = bool(hp.epsilon)  # what is noised is made beforehand, once; the rest is plain
    plain = formal or hp.variant == "mask"
    needs = not formal and (hp.variant in ("anchored", "reference_mix") or hp.entries)
    noisy = bool(hp.noise_scale) and not plain
    cached = teacher_cache.is_cache(hp.teacher)
    objective = Swing(
        network,
        None if cached else asked["teacher"].network,
        asked["reference"].network if needs else None,
        "swing" if plain else hp.variant,
        (hp.entries or None) if needs else None,
        hp.keep_ce,
        noisy,
    )
    names = ("alpha", "t_min", "t_max", "gamma", "clip", "teacher_weight")
    numbers = {name: jnp.float32(getattr(hp, name)) for name in names}
    frozen = numbers if cached else {**numbers, "teacher": asked["teacher"].variables}
    if needs:
        frozen["reference"] = asked["reference"].variables
    if not (noisy or formal) or (formal and cached):
        return objective, frozen

    def open_frozen(start: int):
        key = targets.noise_key(hp, workdir, start, digest(), models)
        if not formal:
            return {**frozen, "noise_key": key}
        given = {"entries": hp.entries, "variant": hp.variant, "numbers": numbers}
        return {**frozen, "released": released.table(key, rows, **models, **given)}

    return objective, open_frozen


def _warning(hp: Settings, models: Mapping[str, LoadedModel]) -> str:
    """A line, or "", if the reference saw the secrets of the run or of its teacher."""
    if "reference" not in models:
        return ""
    theirs = models["reference"].metadata.get("config", {})
    for given in (config.to_json(hp), models["teacher"].metadata.get("config", {})):
        try:
            why = private_text.reference_saw(given, theirs)
        except InputError:  # files of another run that are gone
            continue
        if why:
            return (
                f"warning: reference {hp.reference} {why}: what it knows itself it does not call "
                "private; train one with --config.half=second --config.transfer_set=public\n"
            )
    return ""


def load_models(hp: Settings, sharding: Any = None) -> dict[str, LoadedModel]:
    """The teacher and the reference, those that there are, read as `load_model` says."""
    given = {name: getattr(hp, name) for name in ("teacher", "reference")}
    return {name: _load(name, path, sharding) for name, path in given.items() if path is not None}


def _load(field: str, path: str, sharding: Any) -> LoadedModel:
    if field == "teacher" and teacher_cache.is_cache(path):
        return teacher_cache.read(field, path).model
    with run_state.about(field, path):
        loaded = checkpoint.load_model(path, sharding=sharding)
    if not loaded.network.is_text:
        raise InputError(field, path, "must be a language model's checkpoint, not of images")
    if loaded.network.chat_templates:
        fits.say(f"{field} {path}: its chat template is not used; text is taken as it stands")
    return loaded


if __name__ == "__main__":
    cli.launch_training(train_and_evaluate, Settings, preview=preview)
