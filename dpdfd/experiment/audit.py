"""A lower bound on ε by experiment: wrongly labelled canaries, each in the training set or not.

`plant` puts them into a training set, `write` stores it for `npz:PATH`, teacher and student are
trained as usual, and `audit` says how much ε the released model has spent at least. That stands
beside the accountant's ε, never instead of it: a low bound proves nothing (a data-free student
barely sees canaries), and one above the accountant's ε of the same adjacency means a bug. The
positive control is a teacher trained without privacy: well above 1. The test is that of Steinke,
Nasr and Jagielski, "Privacy Auditing with One (1) Training Run", 2023; canaries, scores and how
guesses are fixed are our reconstruction.
"""

import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from distill_core import config
from distill_core.checkpoint import LoadedModel, integrity
from distill_core.config import InputError
from distill_core.data import Dataset
from distill_core.privacy.ledger import REPLACE_AT_INDEX, ZERO_OUT

# What stands in an absent canary's place -> the adjacency whose ε is bounded, as ledgers write it.
ADJACENCY = {"replaced": REPLACE_AT_INDEX, "masked": ZERO_OUT}
_SHARES = (1 / 3, 1 / 10)  # of the canaries, guessed to be in; as many are guessed to be out


@dataclasses.dataclass(frozen=True, eq=False)
class Canaries:
    """m canaries; private, above all `included`.

    Attributes:
      canary_images: [m, H, W, C], as the training set has them.
      canary_labels: int32 [m], the wrong labels.
      included: bool [m], whether the teacher trains on the image with the wrong label.
      index: int32 [m], rows of the original training set, increasing.
      absent: what became of those not included, of `ADJACENCY`.
    """

    canary_images: np.ndarray
    canary_labels: np.ndarray
    included: np.ndarray
    index: np.ndarray
    absent: str


@dataclasses.dataclass(frozen=True, eq=False)
class Planted(Canaries):
    """A training set, images [N, H, W, C] and labels int32 [N], with its canaries."""

    images: np.ndarray
    labels: np.ndarray


def plant(
    train_images: np.ndarray,
    train_labels: np.ndarray,
    *,
    num_canaries: int,
    num_classes: int,
    seed: int,
    absent: str,
) -> Planted:
    """Gives some training examples wrong labels and includes each of those by a fair coin.

    Drawn independently from the seed: examples uniform by index, labels uniform among the wrong
    ones, coins each on its own.

    Args:
      train_images: [N, H, W, C].
      train_labels: integers [N] in [0, num_classes).
      num_canaries: m in [1, N]; the bound can be no higher than m lets it, 3.6 for 200.
      num_classes: at least 2.
      seed: at least 0; whoever knows it knows the coins.
      absent: what is in an absent canary's place. "replaced": the example with its true label, at
        the same index; no other row depends on the coins, and partitions by index stay. For
        `record_ensemble` and `record_single`. "masked": an empty record, which counts nothing, at
        the same index. For `record_dp_teacher`, whose config names the file of them as `dp.masked`;
        the training set itself has every canary and depends on no coin.

    Raises:
      InputError: an argument outside its range.
    """
    count = len(train_images)
    sizes = {"num_canaries": num_canaries, "num_classes": num_classes, "seed": seed}
    least = {"num_classes": config.integer(2), "seed": config.integer(0)}
    config.validate(sizes, {"num_canaries": config.integer(1, count), **least})
    config.validate({"absent": absent}, {"absent": config.choice(*ADJACENCY)})
    true = np.asarray(train_labels)
    fits = true.shape == (count,) and np.issubdtype(true.dtype, np.integer)
    if not (fits and 0 <= true.min() <= true.max() < num_classes):
        allowed = f"must be {count} integers in [0, {num_classes - 1}]"
        raise InputError("train_labels", f"{true.dtype}{list(true.shape)}", allowed)
    which, wrong, coins = np.random.default_rng(seed).spawn(3)
    index = np.sort(which.choice(count, num_canaries, replace=False)).astype(np.int32)
    shift = wrong.integers(1, num_classes, num_canaries)
    canary_labels = ((true[index] + shift) % num_classes).astype(np.int32)
    included = coins.random(num_canaries) < 0.5
    labels = true.astype(np.int32)
    wrongly = included | (absent == "masked")
    labels[index[wrongly]] = canary_labels[wrongly]
    canaries = Canaries(train_images[index], canary_labels, included, index, absent)
    return Planted(**vars(canaries), images=train_images, labels=labels)


def write(directory: epath.PathLike, dataset: Dataset, planted: Planted) -> tuple[str, str]:
    """Stores a planted training set with the data set's own test split, and the list of canaries.

    They reveal the coins, so only their owner may read them (mode 0600). What `npz:PATH` does not
    read is lost: the data set's note, and its mean and std, which become 0.5. Where absent canaries
    are masked, `private/masked.npy` beside the list holds their rows.

    Returns:
      ("npz:<directory>/planted.npz", for configs; "<directory>/private/canaries.npz", for `audit`).
    """
    root = epath.Path(directory)
    (root / "private").mkdir(mode=0o700, parents=True, exist_ok=True)
    canaries, data = root / "private" / "canaries.npz", root / "planted.npz"
    _write(canaries, {f.name: getattr(planted, f.name) for f in dataclasses.fields(Canaries)})
    if planted.absent == "masked":
        _write(masked_file(canaries), planted.index[~planted.included])
    train = {"x_train": planted.images, "y_train": planted.labels}
    test = {"x_test": dataset.test.images, "y_test": dataset.test.labels}
    _write(data, {**train, **test, "classes": np.array(dataset.classes)})
    return f"npz:{data}", str(canaries)


def masked_file(canaries: epath.PathLike) -> epath.Path:
    """Where the rows of masked canaries lie, beside the list that `write` gave."""
    return epath.Path(canaries).with_name("masked.npy")


def load_canaries(path: epath.PathLike) -> Canaries:
    """The private list that `write` stored; raises InputError where there is none."""
    try:
        with epath.Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            values: dict[str, Any] = {f.name: stored[f.name] for f in dataclasses.fields(Canaries)}
    except Exception:  # NumPy raises many kinds for a damaged archive
        raise InputError("canaries", str(path), "must be a file that `write` made") from None
    return Canaries(**{**values, "absent": str(values["absent"])})


def scores(model: LoadedModel | np.ndarray, canaries: Canaries) -> np.ndarray:
    """How much a model believes each canary's wrong label, float64 [m]; higher: more like a member.

    Log-odds, log p(wrong) − log(1 − p(wrong)) = z_wrong − logsumexp of the other logits: no ceiling
    where p rounds to 1. `included` is not looked at. `model` is a classifier of these images, or
    its logits [m, K], K ≥ 2; raises InputError on another shape.
    """
    if isinstance(model, LoadedModel):
        from distill_core import evaluate

        model = evaluate.compute_logits(model, canaries.canary_images)
    logits = np.array(model, np.float64)  # a copy
    rows, wrong = np.arange(len(canaries.canary_labels)), canaries.canary_labels
    if logits.ndim != 2 or len(logits) != len(rows) or logits.shape[1] <= max(1, *wrong):
        raise InputError("model", logits.shape, f"needs logits [{len(rows)}, K] of all classes")
    own = logits[rows, wrong]
    logits[rows, wrong] = -np.inf
    with np.errstate(invalid="ignore"):
        return own - np.logaddexp.reduce(logits, axis=1)


def epsilon_lower_bound(
    in_scores: np.ndarray,
    out_scores: np.ndarray,
    *,
    delta: float,
    significance: float = 0.05,
    comparisons: int = 1,
) -> float:
    """ε that the mechanism exceeds, with confidence 1 − significance: from one run of it.

    If the mechanism is (ε, δ)-DP, then of r guesses at fair coins, made from its output alone, no
    more are right than Binomial(r, e^ε / (1 + e^ε)) gives, up to a term of δ; the bound is the
    largest ε that the number of right guesses rejects. Source: Steinke, Nasr and Jagielski, 2023,
    by `jax_privacy.auditing.CanaryScoreAuditor.epsilon_one_run`.

    Guaranteed if each canary was included by a fair coin of its own, all else was fixed without
    looking at the coins, and scores saw them only through the mechanism's output. All that the
    proof asks of "included" is that turning *one* coin leads to a neighbour. So, in our reading, it
    bounds the ε of replacing one record at a fixed index where absent canaries are "replaced" (a
    coin chooses between a record's two versions), as of zeroing one out where they are "masked".
    Compare an ε of the same adjacency: a replacement may cost zeroing out twice.

    Guesses are fixed before scores are seen: the third of the canaries with the highest scores is
    in, the third with the lowest is out; and again with tenths. The significance is divided by
    these two and by `comparisons`. No threshold is searched for: the library would, and divides by
    the corners of the ROC curve, which the coins choose (1,000 scores of pure noise: above 0 in 5.8
    ± 0.3% of trials at 5%). Equal scores count against the bound; NaN counts as 0.

    Args:
      in_scores: of canaries that were included, [m_in]; higher is more like a member.
      out_scores: of the others, [m_out].
      delta: δ in (0, 1), that of the accountant.
      significance: chance, in (0, 1), that any of the bounds compared is wrong.
      comparisons: how many bounds are looked at together, e.g. units audited.

    Returns:
      At least 0 and finite; 0.0 where there are too few canaries to reject anything.

    Raises:
      InputError: an argument outside its range.
    """
    for name, value in (("delta", delta), ("significance", significance)):
        if not isinstance(value, float) or not 0.0 < value < 1.0:
            raise InputError(name, value, "must be a number in (0, 1)")
    config.validate({"comparisons": comparisons}, {"comparisons": config.integer(1)})
    sides = [np.asarray(side, np.float64).ravel() for side in (in_scores, out_scores)]
    if not all(map(len, sides)):
        return 0.0
    is_in = np.repeat([True, False], list(map(len, sides)))
    values = np.nan_to_num(np.concatenate(sides))
    # Among equal scores the wrong guess comes first, from either end.
    highest = is_in[np.lexsort((is_in, -values))]
    lowest = ~is_in[np.lexsort((~is_in, values))]
    best = 0.0
    for share in _SHARES:
        guesses = min(round(share * len(values)), (len(values) - 2) // 2)
        right = int(highest[:guesses].sum() + lowest[:guesses].sum())
        level = significance / comparisons / len(_SHARES)
        best = max(best, _one_run(len(values), 2 * guesses, right, level, delta))
    return best


def audit(
    model: LoadedModel | np.ndarray,
    canaries: Canaries | epath.PathLike,
    *,
    delta: float,
    significance: float = 0.05,
    comparisons: int = 1,
) -> dict[str, Any]:
    """Scores the canaries on a model and bounds ε from below; arguments as for the two functions.

    The model may be a student, a classifier fitted to generated samples, or the teacher; `canaries`
    are those of the *teacher's* training set, or their file.

    Returns:
      {"audit_epsilon_lower", "num_canaries", "audit_adjacency", "audit_delta"}, JSON-able.
    """
    if not isinstance(canaries, Canaries):
        canaries = load_canaries(canaries)
    found, included = scores(model, canaries), canaries.included
    chances = {"delta": delta, "significance": significance, "comparisons": comparisons}
    return {
        "audit_epsilon_lower": epsilon_lower_bound(found[included], found[~included], **chances),
        "num_canaries": len(included),
        "audit_adjacency": ADJACENCY[canaries.absent],
        "audit_delta": delta,
    }


def _one_run(num: int, guesses: int, right: int, significance: float, delta: float) -> float:
    """The bound from `right` of `guesses` guesses at `num` coins, at least two not guessed.

    The library counts guesses that a canary is in. That one is out is such a guess at its coin
    turned over, as fair; so those guessed rightly pass for in, wrongly for out, the rest for both.
    """
    from jax_privacy import auditing  # slow to import

    rightly = np.repeat([1.0, 0.0], [right, num - guesses - 1])
    wrongly = np.repeat([1.0, 0.0], [guesses - right, 1])
    auditor, threshold = auditing.CanaryScoreAuditor(rightly, wrongly), auditing.Explicit(0.5)
    return float(auditor.epsilon_one_run(significance, delta, threshold_strategy=threshold))


def _write(path: epath.Path, arrays: Mapping[str, Any] | np.ndarray):
    """Writes an uncompressed file atomically, readable by its owner alone."""
    buffer = io.BytesIO()
    np.save(buffer, arrays) if isinstance(arrays, np.ndarray) else np.savez(buffer, **arrays)
    local = "://" not in str(path)  # object stores have rights of their own
    integrity.write_atomically(path, buffer.getvalue(), mode=0o600 if local else None)
