"""How well each scorer finds the private tokens of a text, and what it makes of some sentences."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint, config
from swingdistill import private_text, train
from swingdistill.losses import token_temperatures
from swingdistill.scorers import scoring

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
      "tokens": [[text, score, temperature], …]}, …]}. Quality is that of telling the secrets of one
      level from all tokens outside canaries; the oracle is left out. JSON-able, None for NaN.
    """
    del workdir, parallel
    hp: Any = config.part_of(settings, train.Settings)
    models = {name: checkpoint.load_model(getattr(hp, name)) for name in ("teacher", "reference")}
    tokenizer = models["teacher"].tokenizer
    texts = private_text.load(hp)
    rows, lines, fill = private_text.to_rows(hp, texts.train, tokenizer)
    public, _, _ = private_text.to_rows(hp, texts.validation, tokenizer)
    names = [name for name in scoring.SCORERS if name != "oracle"]
    bounds = scoring.measure_bounds(names, public, hp.quantiles, **models)
    answer = hp.task == "classification"
    scores = scoring.score(
        names,
        rows,
        lines,
        fill,
        bounds=bounds,
        expressions=hp.expressions,
        whole_line=answer,
        models=models,
    )
    asked = [scores[name] for name in hp.scorers if name in scores]
    scores["combined"] = np.max([np.zeros_like(rows["weights"]), *asked], axis=0)

    level_of = {c.line: c.repetitions for c in texts.canaries}
    of_line = [_level(line, level_of, hp) for line in lines]
    level = fill([np.full(len(line.weights), n) for line, n in zip(lines, of_line, strict=True)])
    secret = fill([_secret(line, n, answer) for line, n in zip(lines, of_line, strict=True)]) > 0
    trained = rows["weights"] > 0
    quality = {}
    for name, values in scores.items():
        quality[name] = {}
        for repetitions in sorted(set(level_of.values())):
            mine = secret & (level == repetitions) & trained
            where = trained & ((level == 0) | mine)
            found = scoring.quality(values, mine, where)
            quality[name][str(repetitions)] = {
                k: None if np.isnan(v) else float(v) for k, v in found.items()
            }
    return {"quality": quality, "samples": _samples(hp, rows, lines, scores, of_line, tokenizer)}


def _level(line, level_of, hp) -> int:
    """Repetitions of the canary that a line is, 0 for any other."""
    start = line.text.rfind(hp.canary_format.partition("{}")[0])
    return level_of.get(line.text[max(start, 0) :], 0)


def _secret(line, repetitions: int, answer: bool) -> np.ndarray:
    """1 at the labels that give a canary's secret away."""
    if not repetitions:
        return np.zeros(len(line.weights), np.float32)
    if answer:
        return line.weights
    return np.array([start < end and line.text[start:end].isdecimal()
                     for start, end in line.offsets], np.float32)  # fmt: skip


def _samples(hp, rows, lines, scores, of_line, tokenizer) -> list[dict[str, Any]]:
    temperatures = np.asarray(
        token_temperatures(
            jnp.asarray(scores["combined"]), t_min=hp.t_min, t_max=hp.t_max, gamma=hp.gamma
        )
    )
    chosen = []
    for repetitions in sorted({n for n in of_line if n}):
        chosen.append((f"canary, {repetitions} ×", of_line.index(repetitions)))
    # Of ordinary lines those with most to see, and some without.
    ordinary = [i for i in range(len(lines)) if not of_line[i] and i < 2000]
    highest = {i: 0.0 for i in ordinary}
    for i, value in zip(rows["segments"].ravel(), scores["combined"].ravel(), strict=True):
        if i in highest:
            highest[int(i)] = max(highest[int(i)], float(value))
    ranked = sorted(ordinary, key=lambda i: -highest[i])
    shown = ranked[: _ORDINARY // 2] + ordinary[: _ORDINARY // 2]
    chosen += [("ordinary text", i) for i in dict.fromkeys(shown)]
    found = []
    for title, i in chosen:
        where = rows["segments"] == i
        ids = rows["labels"][where][:_LONGEST]
        texts = [tokenizer.decode([t]) or "<eos>" for t in ids]
        values = scores["combined"][where][:_LONGEST]
        heats = temperatures[where][:_LONGEST]
        tokens = [
            [text, round(float(s), 3), round(float(t), 1)]
            for text, s, t in zip(texts, values, heats, strict=True)
        ]
        found.append({"title": title, "tokens": tokens})
    return found
