"""Privacy ledger: what was released of private data under how much noise, kept in checkpoints.

In a checkpoint's metadata it is `{"mechanisms": [entry, …], "ancestors": [{"id", "ledger"}]}`,
with further keys only where they say something. An ε is computed from it, never stored in it.

Formal guarantee of a claim made from a ledger: every entry's noise was drawn independently, Δ
bounds what its unit can move between its neighbours, strengths were fixed beforehand, and the run
touched private data in no other way. The ledger holds the claim together; it cannot check the code
that wrote it. Our reconstruction.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from distill_core import config
from distill_core.config import InputError
from distill_core.privacy import accountants

GAUSSIAN, POISSON_GAUSSIAN = "gaussian", "poisson_gaussian"
# A record is replaced by an empty one, which counts nothing, at its place; N is public.
ZERO_OUT = "zero-out"
REPLACE_ONE = "replace one"
REPLACE_AT_INDEX = "replace one, at a fixed index"

# Why a run whose noise was chosen claims nothing (`Ledger.unprotected`).
SEED_GIVEN = "the noise's seed was given: whoever knows it subtracts the noise"
DIRECT, BEHIND_MECHANISM = "direct", "mechanism"  # how an ancestor was used

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
_ANCESTOR = {
    "id": config.text(),
    "ledger": config.mapping(),
    "role": config.choice(DIRECT, BEHIND_MECHANISM, default=DIRECT),
}
_CONVERSION = {"id": config.text(), "charged": config.mapping()}
_LEDGER = {
    "mechanisms": config.sequence(config.mapping(), default=()),
    "ancestors": config.sequence(config.mapping(), default=()),
    "public": config.boolean(default=False),
    "unprotected": config.sequence(config.text(), default=()),
    "restarts": config.integer(0, default=0),
    "conversions": config.sequence(config.mapping(), default=()),
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
      batch_size: examples or queries per step, for reports.
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

    @property
    def full_batches(self) -> bool:
        """Whether every step took all N records (`dp.sampling` "full"): none was sampled."""
        sampled = self.mechanism == POISSON_GAUSSIAN
        whole = self.batch_size is not None and self.batch_size == self.num_examples
        return whole and not sampled and self.adjacency == ZERO_OUT

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


@dataclasses.dataclass(frozen=True)
class Ancestor:
    """A checkpoint that a run was made from.

    Attributes:
      id: of its checkpoint; random, for a digest of weights would tell of the records.
      ledger: its own.
      role: "direct", which is assumed: the run started from it or was distilled from it, and
        inherits what it cost; or "mechanism": it was seen only through the noise of the
        mechanisms that the run's own ledger charges.
    """

    id: str
    ledger: "Ledger"
    role: str = DIRECT

    def __post_init__(self):
        config.validate({"id": self.id, "role": self.role, "ledger": {}}, _ANCESTOR)

    def to_json(self) -> dict[str, Any]:
        """As `Ledger.to_json` has it."""
        role = {} if self.role == DIRECT else {"role": self.role}
        return {"id": self.id, "ledger": self.ledger.to_json(), **role}


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Mechanisms of one run and the ledgers of what it is made from. Immutable.

    Attributes:
      mechanisms: each kind once, with its count.
      ancestors: checkpoints that the run is made from.
      public: the run itself saw nothing private (post-processing of its ancestors, public data).
        A run without mechanisms that does not say so counts as one that did.
      unprotected: ways in which private data went around the mechanisms; any refuses every claim.
      restarts: how often the run was resumed without repeating its bits, with other noise.
      conversions: where the teacher keeps an account of them, what all its conversions were charged
        when this run (last) began, by their random ids, this run's among them.
    """

    mechanisms: tuple[Entry, ...] = ()
    ancestors: tuple[Ancestor, ...] = ()
    public: bool = False
    unprotected: tuple[str, ...] = ()
    restarts: int = 0
    conversions: tuple[tuple[str, Entry], ...] = ()

    def charge(self, entry: Entry) -> "Ledger":
        """With one more entry; entries equal but for their count become one."""
        kinds = {dataclasses.replace(each, count=1): each.count for each in self.mechanisms}
        kind = dataclasses.replace(entry, count=1)
        kinds[kind] = kinds.get(kind, 0) + entry.count
        merged = tuple(dataclasses.replace(kind, count=n) for kind, n in kinds.items())
        return dataclasses.replace(self, mechanisms=merged)

    def descend(self, id: str, ledger: "Ledger", *, role: str = DIRECT) -> "Ledger":
        """With one more ancestor; see `Ancestor`."""
        new = Ancestor(id, ledger, role)
        return dataclasses.replace(self, ancestors=(*self.ancestors, new))

    def expose(self, reason: str) -> "Ledger":
        """After private data was used without noise, e.g. private labels after the DP step."""
        return dataclasses.replace(self, unprotected=(*self.unprotected, reason))

    def to_json(self) -> dict[str, Any]:
        """For the metadata of a checkpoint; `read` is the inverse."""
        told = {name: getattr(self, name) for name in ("public", "restarts")}
        told["unprotected"] = list(self.unprotected)
        told["conversions"] = [{"id": id, "charged": e.to_json()} for id, e in self.conversions]
        return {
            "mechanisms": [entry.to_json() for entry in self.mechanisms],
            "ancestors": [ancestor.to_json() for ancestor in self.ancestors],
            **{name: value for name, value in told.items() if value},
        }


def read(ledger: Ledger | Mapping[str, Any]) -> Ledger:
    """A ledger as metadata holds it; raises InputError on any key or value that is not understood.

    A claim rests on it: nothing of it may be skipped.
    """
    if isinstance(ledger, Ledger):
        return ledger
    given = config.validate(ledger, _LEDGER)
    found = Ledger(public=given["public"], unprotected=given["unprotected"])
    for each in given["mechanisms"]:
        found = found.charge(read_entry(each))
    for each in given["ancestors"]:
        each = config.validate(each, _ANCESTOR)
        found = found.descend(each["id"], read(each["ledger"]), role=each["role"])
    lines = [config.validate(each, _CONVERSION) for each in given["conversions"]]
    conversions = tuple((each["id"], read_entry(each["charged"])) for each in lines)
    return dataclasses.replace(found, restarts=given["restarts"], conversions=conversions)


def charged(ledger: Ledger | Mapping[str, Any]) -> tuple[Entry, ...]:
    """Every mechanism that a claim must pay for: the run's own and those that it inherits.

    An ancestor met twice with one ledger counts once. In place of one that stood behind a mechanism
    that mechanism counts.

    Raises:
      InputError: there is no claim to make, and why: nothing was charged, private data went around
        the mechanisms, an ancestor (named by its id) saw private data without a ledger, or
        entries are about different units or neighbours.
    """
    found = list(_collect(read(ledger), "", set()))
    if not found:
        raise InputError("ledger", "no mechanism", "nothing was noised: there is no ε to claim")
    for name in ("unit", "adjacency"):
        values = sorted({getattr(entry, name) for entry in found})
        if len(values) > 1:
            raise InputError("ledger", values, f"no ε covers more than one {name}")
    return tuple(found)


def epsilon(
    ledger: Ledger | Mapping[str, Any],
    delta: float,
    *,
    for_record: bool = False,
    replace_one: bool = False,
) -> float:
    """ε at δ of all that was charged, for the ledger's unit and adjacency.

    Exact for Gaussian entries, an upper bound with Poisson sampling (`accountants`).

    Args:
      ledger: an object, or JSON as metadata holds it.
      delta: δ in (0, 1), below 1/N of every entry that knows its N.
      for_record: for a record, where the unit is another.
      replace_one: for a record that is replaced by any other, where the adjacency is `ZERO_OUT`:
        replacing is zeroing out and then in, 2Δ. Other adjacencies replace one already.

    Raises:
      InputError: as `charged` does, on δ, and where a record's Δ is asked and missing.
    """
    entries = charged(ledger)
    check_delta(delta, *(entry.num_examples for entry in entries))
    found = [entry.noised(for_record=for_record) for entry in entries]
    both = replace_one and entries[0].adjacency == ZERO_OUT
    return accountants.composed_epsilon(found, delta, replace_one=both)


def check_delta(delta: float, *num_examples: int | None):
    """Refuses δ outside (0, 1), or not below 1/N, at which giving away a record is no breach.

    `num_examples` are N of the private data sets, where known. Raises InputError on `delta`.
    """
    if isinstance(delta, bool | str) or not 0.0 < delta < 1.0:
        raise InputError("delta", delta, "must be in (0, 1)")
    most = max((num for num in num_examples if num is not None), default=None)
    if most is not None and delta * most >= 1:
        allowed = f"must be below 1/N = {1 / most:.3g}, N = {most:,} private records"
        raise InputError("delta", delta, allowed)


def affordable_steps(
    ledger: Ledger, entry: Entry, epsilon: float, delta: float, *, most: int
) -> int:
    """How often, up to `most`, `entry` still fits into (ε, δ) after all that was charged.

    Training stops before the step that does not. Noise calibrated for n steps affords n: 10⁻⁶ of ε
    is allowed for rounding. Raises InputError as `charged` does, and where ε is not above 0 or
    `most` is below 1.
    """
    fields = {"epsilon": config.number(0.0, above=True), "most": config.integer(1)}
    config.validate({"epsilon": epsilon, "most": most}, fields)

    def fits(count: int) -> bool:
        found = charged(ledger.charge(entry.times(count)))
        check_delta(delta, *(each.num_examples for each in found))
        spent = accountants.composed_epsilon([each.noised() for each in found], delta)
        return spent <= epsilon * (1 + 1e-6)

    if fits(most):
        return most
    low, high = 0, most  # `low` fits, or is 0; `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _collect(ledger: Ledger, id: str, seen: set[tuple[str, Ledger]]) -> Iterator[Entry]:
    """Entries of a ledger and what it inherits; `id` is empty for the run itself."""
    field, given = ("ancestor", id) if id else ("ledger", "of this run")
    if (id, ledger) in seen:
        return
    seen.add((id, ledger))
    if ledger.unprotected:
        raise InputError(field, given, f"no ε holds: {'; '.join(ledger.unprotected)}")
    if not ledger.mechanisms:
        if not ledger.public:
            allowed = "saw private data and has no mechanism, or does not say that it is public"
            raise InputError(field, given, f"no ε to claim: it {allowed}")
        for hidden in (a.id for a in ledger.ancestors if a.role == BEHIND_MECHANISM):
            raise InputError("ancestor", hidden, "no ε: no mechanism stood before it")
    yield from ledger.mechanisms
    for ancestor in ledger.ancestors:
        if ancestor.role != BEHIND_MECHANISM:
            yield from _collect(ancestor.ledger, ancestor.id, seen)
