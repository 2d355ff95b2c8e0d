"""One mechanism of a ledger: how much noise, on what, how often, and what ε is then about."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from distill_core import config
from distill_core.config import InputError
from distill_core.privacy import accountants

GAUSSIAN, POISSON_GAUSSIAN = "gaussian", "poisson_gaussian"
# A record is replaced by an empty one, which counts nothing, at its place; N is public.
ZERO_OUT = "zero-out"
REPLACE_ONE = "replace one"
REPLACE_AT_INDEX = "replace one, at a fixed index"

_POSITIVE = config.number(0.0, above=True)
_FIELDS = {
    "mechanism": config.choice(GAUSSIAN, POISSON_GAUSSIAN),
    "std": _POSITIVE,
    "sensitivity": _POSITIVE,
    "count": config.integer(1),
    "unit": config.text(),
    "adjacency": config.text(),
    "sampling_rate": config.number(0.0, 1.0, above=True, default=None),
    "note": config.text(default=""),
    "batch_size": config.integer(1, default=None),
    "record_sensitivity": config.number(0.0, above=True, default=None),
    "num_examples": config.integer(1, default=None),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One mechanism, `count` times.

    Attributes:
      mechanism: "gaussian", or "poisson_gaussian" over Poisson samples of the records.
      std: standard deviation of the noise in each entry of the vector, above 0.
      sensitivity: Δ, how far (L2) the vector moves between neighbours, above 0.
      count: how many vectors left, at least 1.
      unit: what Δ and so ε is about, such as "record" or "query".
      adjacency: what neighbours are; `ZERO_OUT` for "poisson_gaussian".
      sampling_rate: in (0, 1], for "poisson_gaussian" alone.
      note: free text.
      batch_size: examples or queries a step, where a report prints it.
      record_sensitivity: where the unit is no record, how far one record may move the same vector.
      num_examples: N, records of the private data, where known: δ has to be below 1/N.
    """

    mechanism: str
    std: float
    sensitivity: float
    count: int
    unit: str
    adjacency: str
    sampling_rate: float | None = None
    note: str = ""
    batch_size: int | None = None
    record_sensitivity: float | None = None
    num_examples: int | None = None

    def __post_init__(self):
        config.validate(self.to_json(), _FIELDS)
        sampled = self.mechanism == POISSON_GAUSSIAN
        if sampled != (self.sampling_rate is not None):
            allowed = "belongs to 'poisson_gaussian', and that has one"
            raise InputError("sampling_rate", self.sampling_rate, allowed)
        if sampled and self.adjacency != ZERO_OUT:
            raise InputError("adjacency", self.adjacency, f"Poisson sampling has {ZERO_OUT!r}")

    def times(self, count: int) -> "Entry":
        """The same mechanism, `count` times as often; raises InputError below 1."""
        return dataclasses.replace(self, count=self.count * count)

    def noised(self, *, for_record: bool = False) -> accountants.Noised:
        """As the accountants take it; by `record_sensitivity` if `for_record`."""
        bound = self.record_sensitivity if for_record else self.sensitivity
        if bound is None:
            raise InputError("record_sensitivity", None, f"the {self.unit} entry does not have it")
        return accountants.Noised(bound / self.std, self.count, self.sampling_rate or 1.0)

    def to_json(self) -> dict[str, Any]:
        """What was given; `read_entry` is the inverse."""
        given = dataclasses.asdict(self).items()
        return {name: value for name, value in given if value is not None and value != ""}


def read_entry(given: Mapping[str, Any]) -> Entry:
    """An entry as metadata holds it; raises InputError on a key or value not understood."""
    return Entry(**config.validate(given, _FIELDS))
