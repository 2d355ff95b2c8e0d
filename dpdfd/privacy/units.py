"""Units of privacy, and the ε to print for what was released.

The private data is the teacher's training set. One record changed there may change the teacher
everywhere, so it moves *all* answers of a step at once, and all steps: no amplification by
sampling, since every query touches the same teacher. There are four units, none printed for
another:

| unit | teacher | ε is about | adjacency |
|---|---|---|---|
| `query` | any | the answer to one synthetic query in every step: **no** record | replace one |
| `record_single` | any | a training record (large) | replace one |
| `record_ensemble` | M, on disjoint fixed partitions | a training record | … at a fixed index |
| `record_dp_teacher` | trained by DP-SGD; the rest is post-processing | … | zero-out |

All of it is our reconstruction: the paper's own accounting could not be read.
"""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from distill_core import config
from distill_core.config import InputError
from distill_core.privacy import accountants, composition
from distill_core.privacy import ledger as ledger_lib
from distill_core.privacy.ledger import Ledger
from dpdfd.privacy.releases import UNITS, Release, sensitivity

__all__ = [
    "UNITS",
    "PrivacyReport",
    "Release",
    "accuracy_bound",
    "calibrate",
    "privacy_spent",
    "sensitivity",
]

_ALWAYS = (
    "Noise scales, rates and the number of steps were fixed before the run; queries may adapt.",
    "Only what follows the noise is published; no score of private data stopped the run.",
    "Norms are bounded in the arithmetic used, up to the slack that Δ includes.",
)
_FLOAT32 = (
    "Noise is float32 from a 64-bit counter-based generator, not a cryptographic one; attacks on "
    "the last bits are not covered.",
)
_ABOUT = {
    "query": (
        *_FLOAT32,
        "No record is protected: neighbours differ in the teacher's answer to one synthetic query "
        "in every step, the queries being public.",
    ),
    "record_single": (
        *_FLOAT32,
        "One record may change the teacher everywhere: all queries of all steps move at once.",
    ),
    "record_ensemble": (
        "Each record is in one partition, fixed by its index or id and never by label or content; "
        "a teacher saw nothing of other partitions.",
        "Preprocessing statistics, the classes and the form of the images are public.",
        "What the teachers share, answers or the mean of clipped parameters, is whole numbers with "
        "discrete Gaussian noise, sampled exactly from the operating system's randomness; the bits "
        "that it gave were fair and stay unknown.",
    ),
    "record_dp_teacher": (
        *_FLOAT32,
        "Neighbours differ in one record, replaced by an empty one at its place; their number is "
        "public.",
        "Everything after what the ledger charges is post-processing without the private data.",
    ),
}
_SAMPLED = (
    "Each record entered each batch independently with the stated probability, one gradient per "
    "record was clipped, and sums were divided by the expected batch size.",
)
_FULL = (
    "Every step took all records (full batches), so that nothing rests on sampling; one gradient "
    "per record was clipped, and sums were divided by the public number of records.",
)


MOMENTS_NOTE = "class means and second moments"
_MOMENTS = (
    "The private images were used twice: for the teacher, and for class moments of images clipped "
    "to a norm, released once under discrete Gaussian noise from the operating system's "
    "randomness.",
)


def calibrate(release: Release, *, epsilon: float, delta: float, steps: int) -> float:
    """The noise multiplier with which `steps` steps spend exactly (ε, δ) of the release's unit.

    Args:
      release: what each step releases.
      epsilon: ε above 0, of all steps together.
      delta: δ in (0, 1), below 1/N where `num_examples` is known.
      steps: at least 1, fixed beforehand.

    Raises:
      InputError: an argument outside its range.
    """
    ledger_lib.check_delta(delta, release.num_examples)
    config.validate({"steps": steps}, {"steps": config.integer(1)})
    return accountants.calibrate([release.charge(1.0).times(steps).noised()], epsilon, delta)


@dataclasses.dataclass(frozen=True)
class PrivacyReport:
    """An ε with all that has to stand beside it; from `privacy_spent`.

    Attributes:
      unit: "record" or "query": what ε is about.
      adjacency: what neighbours are.
      epsilon, delta: ε at δ.
      assumptions: sentences; the claim holds under all of them.
      claim: of `UNITS`.
      batch_size: B, queries in a step; the largest, where entries differ.
      record_epsilon: for unit "query", what the same noise is worth for a record; else `epsilon`.
      replace_one_epsilon: for adjacency "zero-out", ε with one record replaced by any other; else
        `epsilon`, which is about replacing already.
      total: of all conversions of the same teacher; None where it keeps no account of them.
    """

    unit: str
    adjacency: str
    epsilon: float
    delta: float
    assumptions: tuple[str, ...]
    claim: str
    batch_size: int | None
    record_epsilon: float
    replace_one_epsilon: float
    total: composition.Total | None = None

    def report(self) -> dict[str, object]:
        """What a table says of it: ε never without its unit, adjacency and δ."""
        values = dataclasses.asdict(self)
        total = values.pop("total")
        if total is not None:
            values |= {"conversions": total.conversions, "total_epsilon": total.epsilon}
        return {"epsilon": values.pop("epsilon"), "privacy_unit": values.pop("unit"), **values}


def privacy_spent(
    ledger: Ledger | Mapping[str, Any],
    *,
    delta: float,
    num_examples: int | None = None,
    configurations_tried: int | None = None,
) -> PrivacyReport:
    """What was spent, from a ledger alone, a checkpoint's `metadata["ledger"]` for example.

    Args:
      ledger: an object, or JSON as metadata holds it; ancestors are paid for.
      delta: δ in (0, 1), below 1/N where N is given.
      num_examples: N, size of the private training set.
      configurations_tried: how many settings of hyper-parameters were tried, for the report.

    Returns:
      What may be said: ε with its unit, adjacency and δ.

    Raises:
      InputError: δ outside its range, or there is no claim to make (`ledger.charged` has the
        cases).
    """
    ledger_lib.check_delta(delta, num_examples)
    entries = ledger_lib.charged(ledger)
    kind = (entries[0].unit, entries[0].adjacency)
    claims = [claim for claim, pair in UNITS.items() if pair == kind]
    if not claims:
        raise InputError("ledger", kind, f"units here are {', '.join(map(str, UNITS.values()))}")
    epsilon = record = replaced = ledger_lib.epsilon(ledger, delta)
    sizes = [entry.batch_size for entry in entries if entry.batch_size]
    size = max(sizes, default=None)
    about = _ABOUT[claims[0]]
    if claims[0] == "query":
        record = ledger_lib.epsilon(ledger, delta, for_record=True)
        about += (f"For a record the same noise is ε = {record:,.4g}, at B = {size} per step.",)
    if claims[0] == "record_dp_teacher":
        about += _SAMPLED if any(entry.sampling_rate is not None for entry in entries) else ()
        about += _FULL if any(entry.full_batches for entry in entries) else ()
        about += _MOMENTS if any(entry.note == MOMENTS_NOTE for entry in entries) else ()
        replaced = ledger_lib.epsilon(ledger, delta, replace_one=True)
        about += (f"With one record replaced by any other it is ε = {replaced:,.4g}.",)
    if restarts := ledger_lib.read(ledger).restarts:
        about += (f"Restarts: {restarts}; steps done again are charged again.",)
    total = composition.total(ledger, delta)
    if total is not None:
        about += (f"{total.says}. Other copies of it keep their own account.",)
    tried = "not counted" if configurations_tried is None else configurations_tried
    selection = (
        "Choosing hyper-parameters is not covered, nor is shaping a prior while looking at "
        f"training images; configurations tried: {tried}."
    )
    assumptions = (*about, *_ALWAYS, selection)
    return PrivacyReport(
        *kind, epsilon, delta, assumptions, claims[0], size, record, replaced, total
    )


def accuracy_bound(epsilon: float, delta: float, num_classes: int) -> float:
    """Accuracy in (0, 1) that no student of *one arbitrary* teacher can beat: Φ(Φ⁻¹(1/K) + μ).

    μ is that of the Gaussian mechanism that spends (ε, δ); another mechanism of the same (ε, δ) may
    tell teachers apart better. Guaranteed for the claim `record_single`, whose accounting lets one
    record change the teacher arbitrarily, on average over permutations of the teacher's classes: a
    student of a teacher that knows nothing is right 1/K of the time on that average, and no other
    teacher can do better than the power of the test between the two. It says nothing of a student
    whose queries or prior know the classes, of an ensemble or of a DP teacher. Our reconstruction.

    Args:
      epsilon: ε above 0.
      delta: δ in (0, 1).
      num_classes: K, at least 2.

    Raises:
      InputError: an argument outside its range.

    >>> [round(100 * accuracy_bound(epsilon, 1e-5, 10), 1) for epsilon in (1.0, 10.0)]
    [15.5, 76.4]
    """
    config.validate({"num_classes": num_classes}, {"num_classes": config.integer(2)})
    normal = statistics.NormalDist()
    return normal.cdf(normal.inv_cdf(1 / num_classes) + accountants.gaussian_mu(epsilon, delta))
