"""Membership inference: can a model's losses tell the lines that it was trained on?

A line's score is how much less it costs the model than a reference, in nats per token: the mean
over its tokens (Carlini et al., "Membership Inference Attacks From First Principles", 2022, with
the reference for their per-example difficulty), or over the fifth of them with the lowest
difference ("min_k"; Shi et al., "Detecting Pretraining Data from Large Language Models", 2024).
Without a reference the model's own loss counts.

**What is tested.** Canaries are drawn uniformly, and so are the numbers that they are compared
with, which stand in no text. To a model that learnt neither, members and non-members are
exchangeable, whatever the model and the score: of n members, the number above the k-th highest of m
non-members has a beta-binomial distribution, exactly, with mean n·k/(m + 1). With
k = ⌊0.01 (m + 1)⌋ the threshold is fixed by non-members alone, the true positive rate is unbiased,
and its p-value exact for any number of secrets (8 of a level: two hits have p 0.003). The ROC of
`jax_privacy.auditing` is the upper hull over all thresholds, and so looks at the members, too: of 8
that are pure noise it gives a rate of 0.036 at 1% and an area of 0.63 (means of 300 draws, m =
5,000). It is given beside, as `hull_tpr` and `hull_auc`, and judged by nothing.

Lines of the training text are compared with lines of the test text. These may differ for other
reasons than membership; the reference takes out part of that.
"""

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from distill_core.checkpoint import LoadedModel
from distill_core.config import InputError
from distill_core.data import sampling
from distill_core.data.text.corpus import Example
from distill_core.models.network import Network
from distill_core.training.chunked import cross_entropy_from_hidden
from swingdistill import private_text
from swingdistill.attacks import planted

FPR = 0.01
LEAST = math.ceil(1 / FPR) - 1  # non-members, for a threshold that one in a hundred exceeds
NUM_OTHERS, NUM_LINES = 5000, 1000  # numbers never planted; lines of training and of test text
SCORES = ("mean", "min_k")
_LOWEST = 0.2  # share of a line's tokens that min_k looks at


def membership(
    loaded: LoadedModel,
    hp: private_text.Settings,
    texts: private_text.Texts,
    reference: LoadedModel | None = None,
) -> dict[str, Any]:
    """How well canaries and lines of the training text are told from lines never seen.

    Args:
      loaded: any language model.
      hp, texts: which canaries and text; the model need not have seen them.
      reference: a model that has not, of the same tokenizer; see `private_text.over_shared_tokens`.

    Returns:
      {"canaries": {repetitions: {score: what `roc` gives}} or None without canaries; "text":
      {score: …} or None with fewer than `LEAST` lines of test text that are not trained on}, the
      scores those of `SCORES`.

    Raises:
      InputError: see `other_lines`.
    """

    def scores(examples: Sequence[Example]) -> dict[str, np.ndarray]:
        own = line_losses(loaded, hp, examples)
        public = line_losses(reference, hp, examples) if reference else [0.0] * len(own)
        return line_scores([r - m for m, r in zip(own, public, strict=True)])

    levels = None
    if texts.canaries:
        both = [*(canary.line for canary in texts.canaries), *other_lines(hp)]
        found = scores([private_text.canary_example(line, hp, texts.classes) for line in both])
        repetitions = np.array([canary.repetitions for canary in texts.canaries])
        count = len(repetitions)
        levels = {
            str(level): {
                name: roc(values[:count][repetitions == level], values[count:])
                for name, values in found.items()
            }
            for level in dict.fromkeys(repetitions.tolist())
        }
    text = None
    own = {e.text: e for e in planted.left_out(texts.train, hp)}
    fresh = {e.text: e for e in texts.test if e.text not in own}
    if own and len(fresh) >= LEAST:
        members, others = scores(_thinned(own.values())), scores(_thinned(fresh.values()))
        text = {name: roc(members[name], others[name]) for name in SCORES}
    return {"canaries": levels, "text": text}


def other_lines(hp: private_text.Settings) -> tuple[str, ...]:
    """Lines like the canaries' with numbers never planted, `NUM_OTHERS` at most.

    Raises:
      InputError: on `canary_digits`, if fewer than `LEAST` are left.
    """
    found = planted.others(hp, private_text.draw(hp), NUM_OTHERS)
    if len(found) < LEAST:
        allowed = (
            f"leaves {len(found)} numbers that are not planted, and a false positive rate of "
            f"{FPR:g} needs at least {LEAST}; take longer secrets"
        )
        raise InputError("canary_digits", hp.canary_digits, allowed)
    return found


def line_losses(
    loaded: LoadedModel,
    hp: private_text.Settings,
    examples: Sequence[Example],
    *,
    batch_size: int = 64,
) -> list[np.ndarray]:
    """−log p in nats of each token that counts, float32, per line; a line is cut after a row."""
    rows = private_text.to_rows(hp, examples, loaded.tokenizer, apart=True).rows
    used = int((rows["segments"] >= 0).sum(axis=1).max())
    width = min(hp.length, -(-used // 8) * 8)
    variables = jax.device_put(loaded.variables)
    values = []
    for index, mask in sampling.eval_batches(len(examples), min(batch_size, len(examples))):
        batch = {name: rows[name][index, :width] for name in ("tokens", "labels", "segments")}
        values.append(np.asarray(_losses(loaded.network, variables, batch))[mask])
    weights = rows["weights"][:, :width] > 0
    return [row[where] for row, where in zip(np.concatenate(values), weights, strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def _losses(network: Network, variables, batch):
    states, embedding = network.hidden(variables, batch["tokens"], batch["segments"])
    return cross_entropy_from_hidden(states, embedding, batch["labels"])[0]


def line_scores(gains: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Each of `SCORES`, float64 [n], of lines whose tokens are that much likelier than expected."""

    def lowest(values: np.ndarray) -> float:
        return float(np.sort(values)[: max(1, round(_LOWEST * len(values)))].mean())

    exact = [np.asarray(gain, np.float64) for gain in gains]
    return {
        "mean": np.array([gain.mean() for gain in exact]),
        "min_k": np.array([lowest(gain) for gain in exact]),
    }


def roc(members: np.ndarray, non_members: np.ndarray) -> dict[str, Any]:
    """How well scores tell members: higher ones than those of non-members.

    Args:
      members: float [n].
      non_members: float [m], m at least `LEAST`.

    Returns:
      {"members": n, "non_members": m; "hits": members above the threshold that is exceeded with
      probability "chance" (at most `FPR`) if members are like non-members; "tpr": hits / n;
      "interval": its 95% confidence interval (Clopper and Pearson); "p_value": probability of so
      many hits by chance, exact if members and non-members are exchangeable; "auc": probability
      that a member scores higher than a non-member; "hull_tpr", "hull_auc": see above}. Ties count
      against membership in `hits`, as half in `auc`.

    Raises:
      ValueError: NaN, no members, or too few non-members.
    """
    from jax_privacy import auditing  # slow to import

    members, others = np.asarray(members, np.float64), np.sort(np.asarray(non_members, np.float64))
    if not len(members) or len(others) < LEAST or np.isnan([*members, *others]).any():
        raise ValueError(
            f"scores: got {len(members)} members and {len(others)} non-members; must be at least 1 "
            f"and {LEAST}, and none NaN"
        )
    rank = int(FPR * (len(others) + 1) + 1e-9)
    hits = int(np.sum(members > others[-rank]))
    places = [np.searchsorted(others, members, side=side) for side in ("left", "right")]
    auditor = auditing.CanaryScoreAuditor(members, others)
    found = {
        "members": len(members),
        "non_members": len(others),
        "hits": hits,
        "chance": rank / (len(others) + 1),
    }
    return {
        **found,
        **pooled([found]),
        "auc": float(np.mean(places) / len(others)),
        "hull_tpr": float(auditor.tpr_at_given_fpr(FPR)),
        "hull_auc": float(auditor.attack_auroc()),
    }


def pooled(rocs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"tpr", "interval", "p_value"} of several models together, each against its own threshold.

    The p-value is exact where every model has secrets and non-members of its own. The interval is
    that of a binomial proportion.
    """
    from scipy import stats  # slow to import

    by_chance = np.ones(1)
    for each in rocs:
        total = each["non_members"] + 1
        rank = round(each["chance"] * total)
        counts = np.arange(each["members"] + 1)
        pmf = stats.betabinom.pmf(counts, each["members"], rank, total - rank)
        by_chance = np.convolve(by_chance, pmf)
    hits, num = (sum(each[name] for each in rocs) for name in ("hits", "members"))
    interval = stats.binomtest(hits, num).proportion_ci(0.95, method="exact")
    return {
        "tpr": hits / num,
        "interval": [float(interval.low), float(interval.high)],
        "p_value": float(min(1.0, by_chance[hits:].sum())),
    }


def _thinned(examples: Collection[Example]) -> list[Example]:
    """Every k-th, `NUM_LINES` at most."""
    return list(examples)[:: -(-len(examples) // NUM_LINES)]
