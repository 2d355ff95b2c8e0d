"""Privacy scores of a whole text before training: one number a token, from rules and two networks.

The networks are frozen and so is the text, so scores are made once. Our reconstruction, as all
scorers are; what a scorer finds on private text is itself private.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.data.text.tasks import Line
from distill_core.models.network import LoadedModel, Network
from distill_core.training import chunked
from swingdistill.scorers import judges as scorers

TEXT_SCORERS = ("rules", "oracle")
MEASURES = ("surprisal", "differential", "divergence")
SCORERS = TEXT_SCORERS + MEASURES
_ENTRIES = 2**23  # logits of one network that exist at a time: 32 MiB

Rows = Mapping[str, np.ndarray]


def score(
    names: Sequence[str],
    rows: Rows,
    lines: Sequence[Line],
    fill: Any,
    *,
    models: Mapping[str, LoadedModel | None] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    expressions: Sequence[str] = (),
    whole_line: bool = False,
) -> dict[str, np.ndarray]:
    """Scores of every token by each scorer, float32 [N, L] in [0, 1], 0 where nothing is trained.

    Args:
      names: of `SCORERS`.
      rows: `tokens`, `labels`, `segments`, `weights`.
      lines: what the rows hold.
      fill: from values of lines to rows; see `text_tasks.to_rows`.
      models: the "teacher" and the "reference", for the measures that ask them.
      bounds: of the ramp of each measure that is used; see `measure_bounds`.
      expressions: the user's own, for `rules`.
      whole_line: whether the text's tokens decide for the answer's, as in classification: a token
        then gets the highest score in its line.

    Raises:
      InputError: a pattern that is no regular expression; an oracle without known spans.
    """
    found = {}
    for name in names:
        if name in TEXT_SCORERS:
            found[name] = _from_text(name, lines, fill, expressions, whole_line)
            found[name] *= rows["weights"] > 0
        else:
            low, high = (bounds or {})[name]
            where = rows["weights"] > 0
            values = measure(name, rows, **(models or {}))
            found[name] = np.asarray(
                scorers.ramp(jnp.asarray(values), low, high, where=jnp.asarray(where))
            )
    return found


def measure(
    name: str,
    rows: Rows,
    teacher: LoadedModel | None = None,
    reference: LoadedModel | None = None,
) -> np.ndarray:
    """One of `MEASURES` in nats, float32 [N, L], 0 where nothing is trained."""
    networks = {"teacher": teacher, "reference": reference}
    if name == "surprisal":
        networks.pop("teacher")
    for field, loaded in networks.items():
        if loaded is None:
            raise InputError("scorers", name, f"needs a {field}; give its checkpoint")
    variables = {k: jax.device_put(m.variables) for k, m in networks.items() if m}
    described = tuple((k, m.network) for k, m in networks.items() if m)
    num, length = rows["tokens"].shape
    vocab = max(network.num_classes for _, network in described)
    size = min(num, max(1, _ENTRIES // (length * vocab)))
    values = []
    for index, _ in sampling.eval_batches(num, size):
        batch = {k: rows[k][index] for k in ("tokens", "labels", "segments", "weights")}
        values.append(np.asarray(_measured(name, described, variables, batch)))
    return np.concatenate(values)[:num]


def measure_bounds(
    names: Sequence[str],
    public_rows: Rows,
    quantiles: tuple[float, float],
    *,
    teacher: LoadedModel | None,
    reference: LoadedModel | None,
) -> dict[str, tuple[float, float]]:
    """(low, high) of the ramp of each measure among `names`, from held-out public text.

    Raises:
      InputError: quantiles out of order, or no public text.
    """
    where = public_rows["weights"] > 0
    return {
        name: scorers.ramp_quantiles(
            measure(name, public_rows, teacher, reference)[where], quantiles
        )
        for name in names
        if name in MEASURES
    }


def quality(scores: np.ndarray, private: np.ndarray, where: np.ndarray) -> dict[str, float]:
    """Precision, recall (of s > ½) and AUC of a scorer on known private tokens.

    Args:
      scores: float [N, L].
      private: bool [N, L].
      where: bool [N, L], the tokens that count.

    Returns:
      fractions; NaN where there is nothing to divide by.
    """
    from sklearn.metrics import roc_auc_score

    truth, values = private[where], scores[where]
    called = values > 0.5
    hits = float(np.sum(called & truth))
    both = truth.any() and not truth.all()
    return {
        "precision": hits / called.sum() if called.any() else float("nan"),
        "recall": hits / truth.sum() if truth.any() else float("nan"),
        "auc": float(roc_auc_score(truth, values)) if both else float("nan"),
    }


def _from_text(name, lines, fill, expressions, whole_line) -> np.ndarray:
    if name == "oracle" and not any(line.spans for line in lines):
        raise InputError("scorers", name, "needs text whose private spans are known")
    values = []
    for line in lines:
        if name == "oracle":
            scores = scorers.oracle(line.spans, line.offsets)
        else:
            scores = scorers.rules(line.text, line.offsets, extra=expressions)
        values.append(np.full_like(scores, scores.max(initial=0)) if whole_line else scores)
    return fill(values)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measured(name: str, networks: tuple[tuple[str, Network], ...], variables, batch):
    where = batch["weights"] > 0
    logits = {}
    for field, network in networks:
        states = network.hidden(variables[field], batch["tokens"], batch["segments"])
        logits[field] = chunked.logits(*states)
    if name == "surprisal":
        return scorers.surprisal(logits["reference"], batch["labels"], where=where)
    pair = (logits["teacher"], logits["reference"])
    if name == "differential":
        return scorers.differential(*pair, batch["labels"], where=where)
    return scorers.divergence(*pair, documents=batch["segments"], where=where)
