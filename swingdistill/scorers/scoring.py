"""Privacy scores of a whole text before training: one per token, from rules and two networks.

The networks and the text are frozen, so scores are made once. Our reconstruction, as all scorers
are; what a scorer finds on private text is itself private.
"""

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.data.text.lines import Span
from distill_core.models.network import Network
from distill_core.training import chunked
from swingdistill.private_text import CANARY, Encoded
from swingdistill.recognisers import find as recognisers
from swingdistill.recognisers import presidio as presidio_lib
from swingdistill.scorers import judges as scorers

RECOGNISERS = ("rules", "presidio")
TEXT_SCORERS = (*RECOGNISERS, "spans", "oracle")
MEASURES = ("surprisal", "differential", "divergence")
SCORERS = TEXT_SCORERS + MEASURES
_ENTRIES = 2**23  # logits of one network that exist at a time: 32 MiB

Rows = Mapping[str, np.ndarray]
Recognised = Mapping[str, Sequence[Sequence[Span]]]


def recognise(
    names: Sequence[str],
    text: Encoded,
    *,
    expressions: Sequence[str] = (),
    presidio: str | None = None,
) -> Recognised:
    """What those of `RECOGNISERS` that are named find in each line of a text, by scorer.

    Args:
      names: of `SCORERS`; others are passed over.
      text: what is read.
      expressions: the user's own, for `rules`.
      presidio: see `recognisers.presidio.analyser`.
    """
    by_name = {}
    if "rules" in names:
        by_name["rules"] = [recognisers.find(line.text, extra=expressions) for line in text.lines]
    if "presidio" in names and presidio is not None:
        analyse = presidio_lib.analyser(presidio)
        by_name["presidio"] = [analyse(line.text) for line in text.lines]
    return by_name


def tally(recognised: Recognised, text: Encoded, expressions: Sequence[str] = ()) -> list[str]:
    """One line per recogniser: how many tokens each kind and each expression matched.

    A token counts for every kind that it overlaps.
    """
    said = []
    for name, lines in recognised.items():
        counts: collections.Counter[str] = collections.Counter()
        for found, line in zip(lines, text.lines, strict=True):
            for kind in {each.kind for each in found}:
                own = [each for each in found if each.kind == kind]
                counts[kind] += int(np.sum(scorers.span_scores(own, line.offsets) > 0))
        own = [recognisers.kind_of(each) for each in expressions if name == "rules"]
        kinds = [kind for kind, _ in counts.most_common() if kind not in own]
        shown = ", ".join(f"{kind} {counts[kind]:,}" for kind in kinds) or "nothing"
        said.append(
            "; ".join([f"{name}, tokens found: {shown}", *(f"{k} {counts[k]:,}" for k in own)])
        )
    return said


def score(
    names: Sequence[str],
    text: Encoded,
    public: Rows,
    *,
    quantiles: Sequence[float],
    models: Mapping[str, Any],
    recognised: Recognised,
    whole_line: bool = False,
) -> dict[str, np.ndarray]:
    """Scores of every token by each scorer, float32 [N, L] in [0, 1], 0 where nothing is trained.

    `spans` gives the scores of the spans that came with the text, as a recogniser or an annotator
    wrote them. It knows nothing of planted canaries, which nobody annotated: knowing them would
    make exposure small however poor the recogniser is. `oracle` knows these, too; it is for tests
    and upper bounds.

    Args:
      names: of `SCORERS`.
      text: what is scored.
      public: rows of held-out public text.
      quantiles: the two of a measure on `public`, between which its score rises from 0 to 1.
      models: the loaded "teacher" and "reference", for the measures that ask them.
      recognised: what `recognise` found in the text, for these names.
      whole_line: whether the text's tokens decide for the answer's, as in classification: a token
        then gets the highest score in its line.

    Raises:
      InputError: on `scorers`: `spans` or `oracle` of a text that has none, or a measure that is
        NaN.
    """
    found, where = {}, text.rows["weights"] > 0
    for name in names:
        if name in TEXT_SCORERS:
            found[name] = _from_text(name, text, recognised, whole_line) * where
            continue
        nats = measure(name, public, models)[public["weights"] > 0]
        low, high = np.quantile(nats.astype(np.float64), quantiles)
        if not low <= high:
            raise InputError("scorers", name, "is NaN: the teacher or the reference has diverged")
        values = jnp.asarray(measure(name, text.rows, models))
        ramp = scorers.ramp(values, float(low), float(high), where=jnp.asarray(where))
        found[name] = np.asarray(ramp)
    return found


def measure(name: str, rows: Rows, models: Mapping[str, Any]) -> np.ndarray:
    """One of `MEASURES` in nats, float32 [N, L], 0 where nothing is trained.

    Where a document continues from the row before, the networks would see little of it at first,
    and a secret there would look like none although its labels are taught. So the first half of
    such a row is measured in a window that begins half a row earlier. Our reconstruction.
    """
    rows = {k: rows[k] for k in ("tokens", "labels", "segments", "weights")}
    (count, length), segments = rows["tokens"].shape, rows["segments"]
    half = length // 2
    continued = 1 + np.flatnonzero(segments[1:, 0] == segments[:-1, -1])
    both = {}
    for k, v in rows.items():
        windows = [v[continued - 1, length - half :], v[continued, : length - half]]
        both[k] = np.concatenate([v, np.concatenate(windows, axis=1)])
    values = _in_rows(name, both, models)
    found = values[:count]
    found[continued, :half] = values[count:, half : 2 * half]
    return found


def _in_rows(name: str, rows: Rows, models: Mapping[str, Any]) -> np.ndarray:
    """A measure of rows each by itself."""
    asked = ("reference",) if name == "surprisal" else ("teacher", "reference")
    variables = {field: jax.device_put(models[field].variables) for field in asked}
    described = tuple((field, models[field].network) for field in asked)
    num, length = rows["tokens"].shape
    vocab = max(network.num_tokens for _, network in described)
    size = min(num, max(1, _ENTRIES // (length * vocab)))
    values = []
    for index, _ in sampling.eval_batches(num, size):
        batch = {k: v[index] for k, v in rows.items()}
        values.append(np.asarray(_measured(name, described, variables, batch)))
    return np.concatenate(values)[:num]


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


def _from_text(name, text: Encoded, recognised: Recognised, whole_line) -> np.ndarray:
    known = recognised.get(name) or [
        [span for span in line.spans if name == "oracle" or span.kind != CANARY]
        for line in text.lines
    ]
    if name not in recognised and not any(known):
        raise InputError("scorers", name, "needs text whose private spans are known")
    values = []
    for line, spans in zip(text.lines, known, strict=True):
        scores = scorers.span_scores(spans, line.offsets)
        values.append(np.full_like(scores, scores.max(initial=0)) if whole_line else scores)
    return text.fill(values)


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
