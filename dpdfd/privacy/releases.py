"""What a step releases under noise, and how far one unit of privacy can move it.

All of it is our reconstruction: the paper's own accounting could not be read.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from distill_core import config
from distill_core.config import InputError
from distill_core.privacy import per_example
from distill_core.privacy.ledger import (
    GAUSSIAN,
    REPLACE_AT_INDEX,
    REPLACE_ONE,
    ZERO_OUT,
    Entry,
)
from distill_core.privacy.per_example import SLACK

# Unit -> (what ε is about, adjacency), as a ledger's entries hold them; `units` says what each is.
UNITS = {
    "query": ("query", REPLACE_ONE),
    "record_single": ("record", REPLACE_ONE),
    "record_ensemble": ("record", REPLACE_AT_INDEX),
    "record_dp_teacher": ("record", ZERO_OUT),
}
_SINGLE = ("gradient_sum", "query_gradients")
_ENSEMBLE = (
    "mean_answer",
    "vote_counts",
    "mean_parameters",
    "mean_of_gradients",
    "gradient_of_mean",
)
_RELEASED = {"query": _SINGLE, "record_single": _SINGLE, "record_ensemble": _ENSEMBLE}
_SIZES = {
    "batch_size": config.integer(1, default=None),
    "norm": config.number(0.0, above=True, default=None),
    "num_teachers": config.integer(1, default=None),
    "mode": config.choice("normalize", "clip", default="normalize"),
    "slack": config.number(0.0, default=0.0),
}
_RELEASE = {
    "unit": config.choice(*_RELEASED),
    "released": config.choice(*_SINGLE, *_ENSEMBLE),
    **_SIZES,
    "num_examples": config.integer(1, default=None),
}


def sensitivity(
    released: str,
    *,
    batch_size: int | None = None,
    norm: float | None = None,
    num_teachers: int | None = None,
    mode: str = "normalize",
    slack: float = 0.0,
) -> float:
    """Δ, the L2 sensitivity of what is noised, when one teacher changes in any way at all.

    | released | Δ |
    |---|---|
    | `gradient_sum`, B bounded per-query gradients, noise on the sum | 2BC |
    | `query_gradients`, each query's logit gradient p_S − p_T noised | 2C, clipped: min(2C, √2) |
    | `replaced_query`, the sum again, one query's answer changed | 2C: protects no record |
    | `mean_answer`, mean of M teachers' votes or probabilities | √2/M a query |
    | `vote_counts` | √2 a query |
    | `mean_parameters`, each teacher's parameters clipped to norm C first | 2C/M |
    | `mean_of_gradients`, each teacher's p_S − p_T bounded first | 2C/M, clipped: min(2C, √2)/M |
    | `gradient_of_mean`, p_S − mean probabilities, clipped after | min(2C, √2/M) a query |
    | … normalised after | 2C whatever M is: refused for M > 1 |

    Guaranteed if student and queries are public up to the step, and one record reaches at most one
    of M teachers. Source: our reconstruction (triangle inequality; two points of the probability
    simplex are at most √2 apart; clipping brings no two points further apart).

    Args:
      released: a row.
      batch_size: B, for `gradient_sum`.
      norm: C above 0, of gradients.
      num_teachers: M, for rows that have it.
      mode: "normalize" or "clip" to norm C.
      slack: relative excess of the norms by rounding, at least 0; Δ grows by it.

    Raises:
      InputError: an argument missing or outside its range, or the refused row.
    """
    given = {"batch_size": batch_size, "norm": norm, "num_teachers": num_teachers}
    rows = config.choice(*_SINGLE, "replaced_query", *_ENSEMBLE)
    config.validate({"released": released}, {"released": rows})
    config.validate(_given({**given, "mode": mode, "slack": slack}), _SIZES)

    def need(name: str) -> Any:
        if given[name] is None:
            raise InputError(name, None, f"is required for {released!r}")
        return given[name]

    def gradient() -> float:
        """Of one query, p_S − p_T bounded: points of the simplex are at most √2 apart."""
        return min(2 * need("norm"), math.sqrt(2)) if mode == "clip" else 2 * need("norm")

    if released == "gradient_sum":
        bound = 2 * need("batch_size") * need("norm")
    elif released == "query_gradients":
        bound = gradient()
    elif released == "replaced_query":
        bound = 2 * need("norm")
    elif released == "mean_answer":
        bound = math.sqrt(2) / need("num_teachers")
    elif released == "vote_counts":
        bound = math.sqrt(2)
    elif released == "mean_parameters":
        bound = 2 * need("norm") / need("num_teachers")
    elif released == "mean_of_gradients":
        bound = gradient() / need("num_teachers")
    elif mode == "clip":
        bound = min(2 * need("norm"), math.sqrt(2) / need("num_teachers"))
    elif need("num_teachers") > 1:
        allowed = "the mean, then normalised, moves by 2C whatever M is: clip it, or normalise each"
        raise InputError("mode", mode, f"{allowed} teacher's gradient first")
    else:
        bound = 2 * need("norm")
    return bound * (1 + slack)


@dataclasses.dataclass(frozen=True)
class Release:
    """What one step releases under noise and what the claim is about; says what the step charges.

    A teacher trained with DP-SGD needs none: its student is post-processing.

    Attributes:
      unit: of `UNITS`, but for "record_dp_teacher".
      released: a row of `sensitivity` that the unit has.
      batch_size: B, queries in a step.
      norm, num_teachers, mode, slack: as for `sensitivity`.
      num_examples: N, size of the private training set, where known.

    Raises:
      InputError: a value outside its range, or a claim that cannot be made.
    """

    unit: str
    released: str
    batch_size: int
    norm: float | None = None
    num_teachers: int | None = None
    mode: str = "normalize"
    slack: float = SLACK
    num_examples: int | None = None

    def __post_init__(self):
        config.validate(_given(dataclasses.asdict(self)), _RELEASE)
        if self.released not in _RELEASED[self.unit]:
            allowed = f"{self.unit!r} has {', '.join(_RELEASED[self.unit])}"
            raise InputError("released", self.released, allowed)
        teachers = self.num_teachers or 1
        if teachers > 1 and self.unit != "record_ensemble":
            raise InputError("num_teachers", teachers, f"{self.unit!r} has one teacher")
        if self.num_examples is not None and teachers > self.num_examples:
            allowed = f"the training set has {self.num_examples} examples"
            raise InputError("num_teachers", teachers, allowed)
        self.charge(1.0)  # names what is missing

    def charge(self, noise_multiplier: float) -> Entry:
        """What one step puts into the ledger.

        Args:
          noise_multiplier: above 0; the noise's standard deviation is this times `norm` (so over Δ
            it is less), and for what M teachers share, such as answers, times Δ without slack.

        Raises:
          InputError: it is outside its range.
        """
        positive = config.number(0.0, above=True)
        config.validate({"noise_multiplier": noise_multiplier}, {"noise_multiplier": positive})
        summed, bound, record = self.released == "gradient_sum", self._bound(self.released), None
        mean = self.released == "mean_parameters"
        count = 1 if summed or mean else self.batch_size
        if self.unit == "query":
            # Of B noised logit gradients a record moves each: √B times as far, taken together.
            record = bound if summed else math.sqrt(self.batch_size) * bound
            bound, count = self._bound("replaced_query") if summed else bound, 1
        answers = mean or self.released in ("mean_answer", "vote_counts")
        scale = bound / (1 + self.slack) if answers else self.norm or 0.0
        note = self.released if answers else f"{self.released}, {self.mode}"
        return Entry(
            GAUSSIAN,
            noise_multiplier * scale,
            bound,
            count,
            *UNITS[self.unit],
            note=note if self.num_teachers is None else f"{note}, {self.num_teachers} teachers",
            batch_size=self.batch_size,
            record_sensitivity=record,
            num_examples=self.num_examples,
        )

    def _bound(self, released: str) -> float:
        slack = self.slack
        if released == "replaced_query":  # one of a sum of many
            slack += per_example.slack(self.batch_size) - SLACK
        names = ("batch_size", "norm", "num_teachers", "mode")
        given = {name: getattr(self, name) for name in names}
        return sensitivity(released, slack=slack, **given)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
