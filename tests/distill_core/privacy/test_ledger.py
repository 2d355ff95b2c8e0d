"""What a ledger keeps, what it inherits, and the claims that it refuses."""

import dataclasses
import json
import math

import pytest

from distill_core.config import InputError
from distill_core.privacy import accountants, ledger
from distill_core.privacy.accountants import Noised
from distill_core.privacy.ledger import Entry, Ledger

STEP = Entry("gaussian", 20.0, 2.0, 1, "query", ledger.REPLACE_ONE, note="a step", batch_size=8)
SGD = Entry("poisson_gaussian", 1.0, 1.0, 50, "record", ledger.ZERO_OUT, sampling_rate=0.02)
QUERIES = Entry("gaussian", 3.0, 0.5, 1, "record", ledger.REPLACE_AT_INDEX)
TEACHER = Ledger().charge(SGD)


def epsilon_of(ratio_squared):
    return accountants.composed_epsilon([Noised(math.sqrt(ratio_squared))], 1e-5)


def test_equal_entries_are_one_with_both_counts_and_nothing_else_merges():
    first = Ledger().charge(STEP)
    found = first.charge(STEP.times(4)).charge(QUERIES).charge(STEP)
    assert found.mechanisms == (STEP.times(6), QUERIES)
    assert first.mechanisms == (STEP,), "immutable"
    for other in ({"std": 21.0}, {"sensitivity": 1.0}, {"unit": "record"}, {"note": ""}):
        assert len(first.charge(dataclasses.replace(STEP, **other)).mechanisms) == 2


def test_json_brings_it_back_and_a_bare_ledger_is_what_checkpoints_hold():
    assert Ledger().to_json() == {"mechanisms": [], "ancestors": []}
    full = (
        Ledger(public=True, restarts=2)
        .charge(dataclasses.replace(STEP, std=0.1 + 0.2, record_sensitivity=3.0))
        .charge(SGD)
        .descend("aa", TEACHER.descend("bb", Ledger()))
        .descend("cc", Ledger(), role="mechanism")
        .expose("labels")
    )
    assert ledger.read(json.loads(json.dumps(full.to_json()))) == full
    assert ledger.read({}) == ledger.read(Ledger().to_json()) == Ledger()
    assert set(TEACHER.descend("bb", Ledger()).to_json()["ancestors"][0]) == {"id", "ledger"}


def test_what_is_inherited_is_paid_for_once():
    parent = Ledger().charge(QUERIES.times(3))
    middle = Ledger(public=True).descend("parent", parent)
    child = Ledger().charge(QUERIES.times(5)).descend("parent", parent).descend("middle", middle)
    assert sum(entry.count for entry in ledger.charged(child)) == 8
    expected = epsilon_of(8 * (0.5 / 3.0) ** 2)
    assert ledger.epsilon(child, 1e-5) == pytest.approx(expected, rel=1e-9)
    assert ledger.epsilon(child.to_json(), 1e-5) == pytest.approx(expected, rel=1e-9)
    # Two runs that cost the same are still two.
    two = Ledger(public=True).descend("one", parent).descend("other", parent)
    assert sum(entry.count for entry in ledger.charged(two)) == 6


def test_post_processing_costs_what_its_ancestor_cost():
    student = Ledger(public=True).descend("teacher", TEACHER)
    assert ledger.charged(student) == (SGD,)
    assert ledger.epsilon(student, 1e-5) == ledger.epsilon(TEACHER, 1e-5)


def test_a_teacher_behind_the_mechanism_needs_no_ledger_and_a_direct_one_does():
    noised = Ledger().charge(STEP)
    assert ledger.charged(noised.descend("abc", Ledger(), role="mechanism")) == (STEP,)
    with pytest.raises(InputError, match="^ancestor: got 'abc'; .* saw private data"):
        ledger.charged(noised.descend("abc", Ledger()))
    deep = noised.descend("aa", Ledger(public=True).descend("deep", Ledger()))
    with pytest.raises(InputError, match="^ancestor: got 'deep'"):
        ledger.charged(deep)
    as_stored = noised.to_json() | {"ancestors": [{"id": "old", "ledger": {}}]}
    with pytest.raises(InputError, match="^ancestor: got 'old'"):
        ledger.epsilon(as_stored, 1e-5)
    assert ledger.charged(noised.descend("public", Ledger(public=True))) == (STEP,)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Ledger(), "^ledger: .* saw private data and has no mechanism"),
        (Ledger(public=True), "^ledger: got 'no mechanism'; nothing was noised"),
        (Ledger().charge(STEP).expose("private labels"), "^ledger: .*no ε holds: private labels"),
        (Ledger().charge(STEP).descend("d", TEACHER.expose("logs")), "^ancestor: got 'd'; .*logs"),
        (Ledger(public=True).descend("t", TEACHER, role="mechanism"), "^ancestor: got 't'; no ε"),
        (Ledger().descend("t", TEACHER), "^ledger: .* saw private data"),  # trained on, plainly
        (Ledger().charge(STEP).charge(QUERIES), "^ledger: .*more than one unit"),
        (Ledger().charge(QUERIES).charge(SGD), "^ledger: .*more than one adjacency"),
        (Ledger().charge(QUERIES).descend("t", TEACHER), "^ledger: .*more than one adjacency"),
    ],
)
def test_a_claim_that_does_not_hold_is_refused_with_its_reason(found, message):
    with pytest.raises(InputError, match=message):
        ledger.epsilon(found, 1e-5)


def test_training_stops_before_the_step_that_overspends():
    multiplier = accountants.calibrate_gaussian(1.0, 1e-5, 7)
    step = dataclasses.replace(QUERIES, std=multiplier * QUERIES.sensitivity)

    def steps(before, step=step, most=1000):
        return ledger.affordable_steps(before, step, 1.0, 1e-5, most=most)

    assert (steps(Ledger()), steps(Ledger(), most=5)) == (7, 5)
    spent = Ledger().charge(step.times(7))
    assert ledger.epsilon(spent, 1e-5) == pytest.approx(1.0, rel=1e-6)
    assert steps(spent) == 0
    assert steps(Ledger().descend("parent", Ledger().charge(step.times(5)))) == 2
    with pytest.raises(InputError, match="^ancestor: got 'bare'"):
        steps(Ledger().descend("bare", Ledger()))
    multiplier = accountants.calibrate([Noised(1.0, 20, 0.1)], 1.0, 1e-5)
    sampled = dataclasses.replace(SGD, std=multiplier, count=1, sampling_rate=0.1)
    assert steps(Ledger(), sampled, most=22) == 20


def test_a_record_is_charged_by_how_far_it_moves_the_same_vector():
    beside = Ledger().charge(dataclasses.replace(STEP, record_sensitivity=16.0))
    assert ledger.epsilon(beside, 1e-5) == pytest.approx(epsilon_of(0.01), rel=1e-9)
    assert ledger.epsilon(beside, 1e-5, for_record=True) == pytest.approx(
        epsilon_of(0.64), rel=1e-9
    )
    with pytest.raises(InputError, match="^record_sensitivity: got None"):
        ledger.epsilon(Ledger().charge(STEP), 1e-5, for_record=True)


@pytest.mark.parametrize(
    ("entry", "field", "value"),
    [
        (STEP, "mechanism", "laplace"), (STEP, "std", 0.0), (STEP, "std", float("inf")),
        (STEP, "sensitivity", -1.0), (STEP, "sensitivity", "2"), (STEP, "count", 0),
        (STEP, "count", 1.5), (STEP, "unit", ""), (STEP, "adjacency", None),
        (STEP, "sampling_rate", 0.5), (STEP, "batch_size", 0), (STEP, "record_sensitivity", 0.0),
        (STEP, "note", 3),
        # Sampled noise has a rate, and is about records added or removed.
        (SGD, "sampling_rate", None), (SGD, "sampling_rate", 1.1), (SGD, "adjacency", "x"),
    ],
)  # fmt: skip
def test_an_entry_refuses_what_it_cannot_be(entry, field, value):
    with pytest.raises(InputError, match=f"^{field}: "):
        dataclasses.replace(entry, **{field: value})


@pytest.mark.parametrize(
    ("stored", "field"),
    [
        ({"mechanism": []}, "mechanism"),
        ({"mechanisms": {}}, "mechanisms"),
        ({"mechanisms": [{"mechanism": "gaussian"}]}, "std"),
        ({"mechanisms": [{**dataclasses.asdict(STEP), "amplified": True}]}, "amplified"),
        ({"ancestors": [{"id": "a"}]}, "ledger"),
        ({"ancestors": [{"ledger": {}}]}, "id"),
        ({"ancestors": [{"id": "a", "ledger": {}, "role": "public"}]}, "role"),
        ({"public": "yes"}, "public"),
        ({"restarts": -1}, "restarts"),
    ],
)
def test_a_stored_ledger_that_is_not_understood_is_refused(stored, field):
    with pytest.raises(InputError, match=f"^{field}: got"):
        ledger.read(stored)
    with pytest.raises(InputError, match="^role: got 'behind'"):
        Ledger().descend("a", TEACHER, role="behind")


def test_a_replaced_record_costs_more_than_one_zeroed_out_and_no_more_where_it_is_the_adjacency():
    found = Ledger().charge(SGD)
    assert ledger.epsilon(found, 1e-5) < ledger.epsilon(found, 1e-5, replace_one=True)
    whole = Entry("gaussian", 2.0, 1.0, 1, "record", ledger.ZERO_OUT)
    found = ledger.epsilon(Ledger().charge(whole), 1e-5, replace_one=True)
    assert found == pytest.approx(epsilon_of(1.0), rel=1e-9)
    again = Ledger().charge(dataclasses.replace(whole, adjacency=ledger.REPLACE_ONE))
    assert ledger.epsilon(again, 1e-5, replace_one=True) == ledger.epsilon(again, 1e-5)


@pytest.mark.parametrize("delta", [1 / 240, 0.5])
def test_a_delta_of_one_over_n_or_more_is_refused_wherever_the_ledger_knows_n(delta):
    known = dataclasses.replace(SGD, num_examples=240)
    found = Ledger().charge(known)
    assert ledger.read(json.loads(json.dumps(found.to_json()))) == found
    assert ledger.epsilon(Ledger().charge(SGD), delta) >= 0
    child = Ledger(public=True).descend("abc", found)
    for call in (
        lambda: ledger.epsilon(found, delta),
        lambda: ledger.epsilon(child, delta),
        lambda: ledger.affordable_steps(child, known, 1.0, delta, most=1),
    ):
        with pytest.raises(InputError, match="^delta: got .*; must be below 1/N = 0.00417"):
            call()
