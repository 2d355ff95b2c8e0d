"""What several conversions of one teacher spend together, where it keeps an account of them."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from distill_core.privacy import accountants
from distill_core.privacy import ledger as ledger_lib
from distill_core.privacy.ledger import Entry, Ledger


class Total(NamedTuple):
    """What all conversions of a teacher cost together, and that in a sentence."""

    conversions: int
    epsilon: float
    says: str


def total(ledger: Ledger | Mapping[str, Any], delta: float) -> Total | None:
    """ε for a record, at δ, of all conversions in the account of the run's teacher.

    Where the run inherits its teacher's claim, with what the teacher itself spent. Of a run that
    inherits its claim without asking again, in the accounts of its ancestors' teachers. None where
    no teacher keeps one. Not counted: what was charged since the run began, and to other copies of
    the teacher. Raises InputError on δ.
    """
    found = list(dict(_charged(ledger_lib.read(ledger))).values())
    if not found:
        return None
    ledger_lib.check_delta(delta, *(each.num_examples for each in found))
    own = list(_inherited(ledger_lib.read(ledger)))
    noised = [each.noised(for_record=each.record_sensitivity is not None) for each in found]
    noised += [each.noised() for each in own]
    spent = accountants.composed_epsilon(noised, delta)
    who = "with its own training they" if own else "they"
    says = (
        f"Conversions of this teacher so far, including this one: {len(found)}; together {who} "
        f"spend ε = {spent:,.4g} for a training record"
    )
    return Total(len(found), spent, says)


def _charged(ledger: Ledger) -> Iterator[tuple[str, Entry]]:
    yield from ledger.conversions
    for ancestor in ledger.ancestors:
        if ancestor.role != ledger_lib.BEHIND_MECHANISM:
            yield from _charged(ancestor.ledger)


def _inherited(ledger: Ledger) -> Iterator[Entry]:
    """What the teachers spent that keep the accounts, where their claims are the run's."""
    theirs = tuple(a for a in ledger.ancestors if a.role != ledger_lib.BEHIND_MECHANISM)
    if ledger.conversions and theirs:
        yield from ledger_lib.charged(Ledger(ancestors=theirs, public=True))
    elif not ledger.conversions:
        for ancestor in theirs:
            yield from _inherited(ancestor.ledger)
