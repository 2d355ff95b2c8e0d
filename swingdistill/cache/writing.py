r"""Writes the targets of a student's text once, for any number of students without the teacher.

    python -m swingdistill.cache --config configs/swingdistill/train.py --workdir runs/cached \
        --config.teacher=runs/teacher
    python -m swingdistill.train --config configs/swingdistill/train.py --workdir runs/student \
        --config.teacher=cache:runs/cached/cache --config.scorers='("rules",)'

The config is the student's, because it determines the rows. The cache, in WORKDIR/cache, holds the
teacher's answers without noise and is as private as the teacher. With --config.epsilon it holds
the noised release itself, whose key is only in WORKDIR/private. If the command is killed, start it
again: it continues where it stopped.
"""

import dataclasses
import json
import math
import secrets
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import coarse, config
from distill_core.config import InputError
from distill_core.models import trust
from distill_core.models.network import LoadedModel
from distill_core.privacy import ledger as ledgers
from distill_core.privacy import noise
from distill_core.runtime import parallel as parallel_lib
from distill_core.runtime import process
from distill_core.training import fits, inputs, plain_text, teacher_cache
from distill_core.training.teacher_cache import Manifest
from swingdistill import private_text, released, targets, train

FOLDER = "cache"
# Which of a config's fields decide the rows of text, and which a noised release.
_OF_ROWS = (
    "dataset", "length", "task", "half", "num_train", "transfer_set", "canaries_per_level",
    "canary_levels", "canary_digits", "canary_candidates", "canary_format", "canary_seed",
    "num_decoys",
)  # fmt: skip
_OF_RELEASE = (
    "epsilon", "delta", "entries", "clip", "t_min", "t_max", "gamma", "variant", "scorers",
    "quantiles", "presidio", "expressions", "noise_everywhere",
)  # fmt: skip


@config.settings
class Settings(train.Settings):
    """A student's settings, and the form of its cache."""

    top_k: int = config.integer(1, default=teacher_cache.TOP_K, help="classes per token")
    cache_dtype: str = config.choice(
        *teacher_cache.DTYPES, default="float16", help="of log-probabilities"
    )


@trust.config_allows
def run(settings: Any, workdir: epath.PathLike, *, parallel: str | None = None) -> Manifest:
    """Writes WORKDIR/cache, or goes on with it.

    Raises:
      InputError: on a field, before anything is written.
    """
    mode = parallel_lib.choose_mode(parallel)
    if parallel is not None and mode != "jit":
        raise InputError("parallel", parallel, "the teacher answers on one device; leave it out")
    hp = config.validate(settings, Settings)
    if hp.teacher is None or teacher_cache.is_cache(hp.teacher):
        raise InputError("teacher", hp.teacher, "must be a checkpoint, whose answers are stored")
    workdir = epath.Path(workdir)
    return _release(hp, workdir) if hp.epsilon else _bare(hp, workdir)


def _bare(hp: Settings, workdir: epath.Path) -> Manifest:
    """The teacher's answers at temperature 1; the reference and the method are the student's."""
    hp = dataclasses.replace(hp, reference=None)
    models = train.load_models(hp)
    tokenizer, texts, asked, _ = train.load_text(hp, models)
    rows = private_text.to_rows(hp, texts.train, tokenizer).rows
    teacher = _whole(hp, asked["teacher"])
    private_text.check_ids(hp, [rows], tokenizer, teacher.network.num_tokens)
    make = teacher_cache.answers(teacher, rows, hp.top_k)
    with process.hold(workdir):
        manifest = _manifest(hp, teacher, rows, hp.top_k)
        return teacher_cache.write(workdir / FOLDER, manifest, make, field="workdir")


def _release(hp: Settings, workdir: epath.Path) -> Manifest:
    """The noised release: one vector per context, made once, with its report and its ledger."""
    train.check(hp)
    models = train.load_models(hp)
    tokenizer, texts, asked, shared = train.load_text(hp, models)
    plain_text.check_in_memory(hp, texts.train)
    ledgers.check_delta(hp.delta, len(texts.train))
    if hp.entries > shared:
        raise InputError("entries", hp.entries, f"must be at most {shared:,}, the vocabulary")
    encoded = private_text.to_rows(hp, texts.train, tokenizer)
    public = private_text.to_rows(hp, texts.validation, tokenizer, of="validation")
    private_text.check_ids(hp, [encoded.rows, public.rows], tokenizer, shared)
    teacher = _whole(hp, asked["teacher"])
    scores = train.score(hp, hp.scorers, encoded, public, asked)
    rows, report = targets.with_noise(hp, encoded.rows, scores)
    assert report is not None
    bare = (rows["weights"] > 0) & (rows["released"] < 0)
    k = max(hp.entries, min(hp.top_k, shared)) if bare.any() else hp.entries
    with process.hold(workdir):
        told = _told(report, bare)
        manifest = dataclasses.replace(
            _manifest(hp, teacher, rows, k),
            teacher="",  # a digest of private weights tells whoever guesses them
            id=secrets.token_hex(16),
            ledger=_ledger(hp, report, rows, teacher).to_json(),
            release={"settings": _fields(hp, _OF_RELEASE), "report": told},
        )
        key = targets.noise_key(hp, workdir, 0, encoded.digest(), models)
        _bind(workdir, key, models, encoded.digest())
        make = _noised(hp, key, rows, bare, asked, k)
        found = teacher_cache.write(workdir / FOLDER, manifest, make, field="workdir")
    fits.say(", ".join(f"{name} {value}" for name, value in told.items()))
    return found


def _bind(workdir: epath.Path, key, models, text: str):
    """Keeps what a release was made of beside its key; refuses to go on with anything else.

    Raises:
      InputError: on `workdir`.
    """
    path = workdir / noise.FOLDER / "release.json"
    decides = {
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "models": {name: inputs.of_model(model) for name, model in models.items()},
        "text": text,
    }
    made = {"digest": noise.digest(decides)}
    if (workdir / FOLDER / teacher_cache.MANIFEST).exists():
        known = json.loads(path.read_text()) if path.exists() else None
        if known != made:
            why = "of another teacher, text or noise" if known else f"without its {path.name}"
            allowed = f"holds a release {why}; take another workdir"
            raise InputError("workdir", str(workdir), allowed)
    noise.write_private(path, made)


def _noised(hp: Settings, key, rows, bare: np.ndarray, models, k: int):
    """What `teacher_cache.write` takes: finished targets at `bare` and at noised positions only."""
    numbers = {n: jnp.float32(getattr(hp, n)) for n in ("t_min", "t_max", "gamma", "clip")}
    given = {"entries": hp.entries, "variant": hp.variant, "numbers": numbers}
    table = released.table(key, rows, **models, **given)
    spare = ((0, 0), (0, k - hp.entries))
    classes = np.pad(table["classes"], spare)
    log_probs = np.pad(table["log_probs"], spare, constant_values=-np.inf)
    asked = teacher_cache.answers(models["teacher"], rows, k, temperature=hp.t_min)

    def make(index: np.ndarray):
        place, plain = rows["released"][index], bare[index][..., None]
        noised = (place >= 0)[..., None]
        # Where nothing is trained, nothing is told: all mass is the tail's.
        found = {
            "classes": np.where(noised, classes[place], 0),
            "log_probs": np.where(noised, log_probs[place], -np.inf),
            "tails": np.where(noised, np.array([-np.inf, 0], np.float32), np.float32(0)),
            "drawn": np.zeros((*place.shape, coarse.DRAWS), np.int32),
            "scores": rows["scores"][index],
        }
        if plain.any():
            for name, values in asked(index).items():
                found[name] = np.where(plain, np.asarray(values), found[name])
        return found

    return make


def _manifest(hp: Settings, teacher: LoadedModel, rows, k: int) -> Manifest:
    settings = _fields(hp, _OF_ROWS)
    return Manifest.of(teacher, rows, k=k, dtype=hp.cache_dtype, settings=settings)


def _fields(hp: Settings, names) -> dict[str, Any]:
    return {name: config.to_json(getattr(hp, name)) for name in names}


def _told(report: dict[str, Any], bare: np.ndarray) -> dict[str, Any]:
    """The report of the budget, with how many targets are released without noise."""
    if not bare.any():
        return report
    also = f"{int(bare.sum()):,} positions of score 0, whose targets are the teacher's, bare"
    return {**report, "not_covered": "; ".join([*filter(None, [report.get("not_covered")]), also])}


def _ledger(hp: Settings, report: dict[str, Any], rows, teacher: LoadedModel) -> ledgers.Ledger:
    """The released vectors as one mechanism.

    The teacher stays an ancestor that was used directly: scores, labels or bare targets reach the
    students around the noise, so that no ε about records follows.
    """
    known = teacher.metadata
    found = ledgers.Ledger()
    if "id" in known:
        found = found.descend(known["id"], ledgers.read(known["ledger"]))
    if hp.noise_seed is not None:
        return found.expose(ledgers.SEED_GIVEN)
    sensitivity = 2.0 * hp.clip * math.sqrt(hp.entries) / hp.t_min
    entry = ledgers.Entry(
        ledgers.GAUSSIAN,
        std=report["noise_multiplier"] * sensitivity,
        sensitivity=sensitivity,
        count=int(rows["released"].max()) + 1,
        unit="released logit vector",
        adjacency=report["adjacency"],
        note=f"not covered: {report['not_covered']}",
    )
    return found.charge(entry)


def _whole(hp: Settings, teacher: LoadedModel) -> LoadedModel:
    """Refuses a teacher of which the run's other networks lack tokens: InputError on `teacher`."""
    if teacher.network.num_tokens != teacher.tokenizer.vocab_size:
        allowed = "has tokens that the run's other networks lack; a cache needs all to be shared"
        raise InputError("teacher", hp.teacher, allowed)
    return teacher
