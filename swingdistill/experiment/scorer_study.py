"""How well each scorer finds the private tokens of a text, and sample sentences with scores."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, config
from distill_core.training import language
from swingdistill import private_text, train
from swingdistill.losses import token_temperatures
from swingdistill.recognisers.find import find
from swingdistill.recognisers.labelled import labelled
from swingdistill.recognisers.quality import quality as quality_of
from swingdistill.scorers import judges, scoring

_ORDINARY, _LONGEST = 6, 60  # ordinary sentences shown, and tokens of each


def study(
    settings: Any, workdir: epath.PathLike | None = None, *, parallel: str | None = None
) -> dict[str, Any]:
    """Quality of all scorers on one teacher's text, and sentences scored as the config has it.

    Args:
      settings: of `swingdistill.train`; `teacher` and `reference` name checkpoints.
      workdir, parallel: as of a binary; nothing is written, and one device does it.

    Returns:
      {"quality": {scorer: {repetitions: {"precision", "recall", "auc"}}}, "samples": [{"title",
      "tokens": [[text, score, temperature], …]}, …], "recognisers": {kind: {"recall", "named",
      "precision", "num"}}, "fit": {"train_perplexity", "validation_perplexity", "called_private":
      {scorer: share}}}. `recognisers` is `recognisers.quality` of the rules on the labelled test
      sentences that come with them; `fit` is of the teacher on its own text, canaries aside: one
      that over-fits is far from the reference everywhere, and measures then call much private that
      is not. Quality is that of telling the secrets of one
      level from all tokens outside canaries; the oracle is left out. JSON-able, None for NaN.
    """
    del workdir, parallel
    hp: Any = config.part_of(settings, train.Settings)
    models = {name: checkpoint.load_model(getattr(hp, name)) for name in ("teacher", "reference")}
    tokenizer = models["teacher"].tokenizer
    texts = private_text.load(hp)
    text = private_text.to_rows(hp, texts.train, tokenizer).loaded()
    public = private_text.to_rows(hp, texts.validation, tokenizer, of="validation").rows
    recognised = scoring.recognise(
        scoring.RECOGNISERS, text, expressions=hp.expressions, presidio=hp.presidio
    )
    own = [name for name in hp.scorers if name not in (*recognised, *scoring.MEASURES)]
    scores = scoring.score(
        [*recognised, *own, *scoring.MEASURES],
        text,
        public,
        quantiles=hp.quantiles,
        models=models,
        recognised=recognised,
        whole_line=hp.task == "classification",
    )
    trained = text.rows["weights"] > 0
    asked = [scores[name] for name in hp.scorers if name in scores]
    scores["combined"] = np.max([np.zeros(trained.shape, np.float32), *asked], axis=0)

    level_of = {c.line: c.repetitions for c in texts.canaries}
    of_line = [_level(line, level_of, hp) for line in text.lines]
    weights = [line.weights for line in text.lines]
    level = text.fill([np.full(len(w), n) for w, n in zip(weights, of_line, strict=True)])
    spans = [judges.span_scores(line.spans, line.offsets) for line in text.lines]
    given_away = weights if hp.task == "classification" else spans
    secret = text.fill(given_away) > 0
    quality = {}
    for name, values in scores.items():
        quality[name] = {}
        for repetitions in sorted(set(level_of.values())):
            mine = secret & (level == repetitions) & trained
            found = scoring.quality(values, mine, trained & ((level == 0) | mine))
            quality[name][str(repetitions)] = {
                k: None if np.isnan(v) else float(v) for k, v in found.items()
            }
    ordinary = trained & (level == 0)
    own = {**text.rows, f"{language.CLASS}own": ordinary}
    nats = language.measure(models["teacher"], own)["cross_entropy_own"]
    held = language.measure(models["teacher"], public)["cross_entropy"]
    fit = {
        "train_perplexity": math.exp(min(nats, 700.0)),
        "validation_perplexity": math.exp(min(held, 700.0)),
        "called_private": {k: float(np.mean(v[ordinary] > 0.5)) for k, v in scores.items()},
    }
    return {
        "quality": quality,
        "fit": fit,
        "samples": _samples(hp, text, scores["combined"], of_line, tokenizer),
        "recognisers": quality_of(labelled(), find),
    }


def _level(line, level_of, hp) -> int:
    """Repetitions of the canary that a line is, 0 for any other."""
    start = line.text.rfind(hp.canary_format.partition("{}")[0])
    return level_of.get(line.text[max(start, 0) :], 0)


def _samples(hp, text, scores, of_line, tokenizer) -> list[dict[str, Any]]:
    """One canary of each level, the ordinary lines with the highest scores, and the first few."""
    segments = text.rows["segments"]
    heats = np.asarray(
        token_temperatures(jnp.asarray(scores), t_min=hp.t_min, t_max=hp.t_max, gamma=hp.gamma)
    )
    canaries = sorted(set(of_line) - {0})
    chosen = [(f"canary, {n} ×", of_line.index(n)) for n in canaries]
    highest = np.zeros(len(of_line), np.float32)
    np.maximum.at(highest, segments[segments >= 0], scores[segments >= 0])
    ordinary = [i for i, n in enumerate(of_line[:2000]) if not n]
    shown = sorted(ordinary, key=lambda i: -highest[i])[: _ORDINARY // 2]
    shown += ordinary[: _ORDINARY // 2]
    chosen += [("ordinary text", i) for i in dict.fromkeys(shown)]
    found = []
    for title, i in chosen:
        where = segments == i
        ids, values, temperatures = (
            array[where][:_LONGEST] for array in (text.rows["labels"], scores, heats)
        )
        tokens = [
            [tokenizer.decode([token]) or "<eos>", round(float(s), 3), round(float(t), 1)]
            for token, s, t in zip(ids, values, temperatures, strict=True)
        ]
        found.append({"title": title, "tokens": tokens})
    return found
