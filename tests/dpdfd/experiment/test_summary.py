"""From runs to rows, gates and words: on results that nobody had to train for."""

import types

import pytest

from distill_core.privacy.ledger import POISSON_GAUSSIAN, ZERO_OUT, Entry, Ledger
from dpdfd.experiment import summary
from dpdfd.privacy.units import Release, calibrate, privacy_spent

DELTA = 1e-5
STEPS = 8
RELEASES = {
    "query": Release("query", "query_gradients", 16, norm=1.0),
    "record_single": Release("record_single", "query_gradients", 16, norm=1.0),
    "record_ensemble": Release("record_ensemble", "mean_answer", 16, num_teachers=50),
}
DP_SGD = Entry(POISSON_GAUSSIAN, 1.0, 1.0, STEPS, "record", ZERO_OUT, 0.01, batch_size=10)


def spends(release, epsilon):
    """A ledger of eight steps that come to ε."""
    noise = calibrate(release, epsilon=epsilon, delta=DELTA, steps=STEPS)
    return Ledger().charge(release.charge(noise).times(STEPS)).to_json()


@pytest.fixture(scope="module")
def ledgers():
    """Of arms at ε = 2, and of a DP teacher."""
    found = {unit: spends(release, 2.0) for unit, release in RELEASES.items()}
    return found | {"dp": Ledger().charge(DP_SGD).to_json()}


@pytest.fixture
def hp():
    network = {"model": "cnn"}
    arms = {unit: {"teacher": "plain", "privacy_unit": unit, "epsilon": 2.0} for unit in RELEASES}
    arms["record_ensemble"]["teacher"] = "several"
    return types.SimpleNamespace(
        seeds=(0, 1), delta=DELTA, configurations_tried=None, num_canaries=0,
        teachers={
            "several": {**network, "num_teachers": 50}, "dp": {**network, "dp": {"epsilon": 2.0}},
            "plain": network,
        },
        student=network, bars={},
        arms={"none": {"teacher": "plain", "privacy_unit": "none"}, **arms},
    )  # fmt: skip


@pytest.fixture
def results(ledgers):
    """Of two seeds; the second is right a tenth more often."""
    empty = Ledger().to_json()
    told = {"plain": empty, "several": empty, "dp": ledgers["dp"], "none": empty}
    told |= {unit: ledgers[unit] for unit in RELEASES}
    return {
        (arm, seed): {"accuracy": 0.5 + 0.1 * seed, "ledger": ledger, "id": ""}
        for seed in (0, 1)
        for arm, ledger in told.items()
    }


def rows_of(results, hp):
    return {row.arm: row for row in summary.rows_and_gates(results, hp)[0]}


def gates_of(results, hp):
    return {gate.name: gate for gate in summary.rows_and_gates(results, hp)[1]}


# -- rows --------------------------------------------------------------------------------------


def test_a_row_has_every_seeds_value_and_what_no_seed_has_is_left_out(results, hp):
    results["none", 1]["fresh_classifier_accuracy"] = 0.3
    rows = rows_of(results, hp)
    assert all(row.metrics["accuracy"] == [0.5, 0.6] for row in rows.values())
    assert rows["none"].metrics["fresh_classifier_accuracy"] == [0.3]
    assert "fresh_classifier_accuracy" not in rows["query"].metrics
    assert rows["several"].settings == {"model": "cnn", "num_teachers": 50}
    assert rows["none"].settings == {"teacher": "plain", "model": "cnn", "privacy": "no claim"}


def test_epsilon_is_that_of_the_ledger_with_all_that_goes_with_it(results, hp, ledgers):
    hp.configurations_tried = 17
    rows = rows_of(results, hp)
    for arm in (*RELEASES, "dp"):
        found = privacy_spent(ledgers[arm], delta=DELTA, configurations_tried=17)
        assert rows[arm].metrics["epsilon"] == [found.epsilon] * 2
        assert rows[arm].metrics["record_epsilon"] == [found.record_epsilon] * 2
        assert (found.record_epsilon > 3 * found.epsilon) == (arm == "query")
        about = rows[arm].settings
        assert (about["privacy_unit"], about["adjacency"]) == (found.unit, found.adjacency)
        assert (about["delta"], about["batch_size"]) == (DELTA, found.batch_size)
        assert about["assumptions"] == found.assumptions
        assert "configurations tried: 17" in about["assumptions"][-1]
    assert not {"epsilon", "record_epsilon"} & {*rows["plain"].metrics, *rows["several"].metrics}


# -- gates -------------------------------------------------------------------------------------


def test_who_spends_more_than_was_asked_for_fails_in_any_seed(results, hp):
    names = {unit: f"{unit} spends no more than its ε" for unit in RELEASES}
    assert all(gates_of(results, hp)[name].passed for name in names.values())
    results["query", 1]["ledger"] = spends(RELEASES["query"], 2.01)
    found = {unit: gates_of(results, hp)[name].passed for unit, name in names.items()}
    assert found == {"query": False, "record_single": True, "record_ensemble": True}


def test_an_epsilon_that_all_arms_share_is_a_budget_too_but_not_of_teachers(results, hp):
    for unit in RELEASES:
        del hp.arms[unit]["epsilon"]
    hp.student["epsilon"] = 2.0
    del hp.arms["none"], results["none", 0], results["none", 1]
    assert [*gates_of(results, hp)] == [f"{unit} spends no more than its ε" for unit in RELEASES]


@pytest.mark.parametrize(
    ("arm", "bound", "passed"),
    # ε per query is 2; an audit is held against ε for a record.
    [("record_single", 1.9, True), ("record_single", 2.1, False), ("query", 2.1, True)],
)
def test_an_audit_above_the_records_epsilon_fails(results, hp, arm, bound, passed):
    results[arm, 0]["audit_epsilon_lower"] = bound
    name = f"the audit of {arm} stays below its ε for a record"
    assert gates_of(results, hp)[name].passed is passed


@pytest.mark.parametrize(("bound", "passed"), [(0.9, False), (1.1, True)])
def test_the_control_has_to_be_found_out(results, hp, bound, passed):
    results["plain", 0]["audit_epsilon_lower"] = bound
    results["none", 0]["audit_epsilon_lower"] = 0.0  # claims nothing and has to show nothing
    audits = {name: gate.passed for name, gate in gates_of(results, hp).items() if "audit" in name}
    assert audits == {"the audit sees that plain is not private": passed}


def test_a_bar_is_held_against_the_mean_over_seeds_and_missed_where_nothing_was_measured(
    results, hp
):
    hp.bars = {"query": {"accuracy": 0.55}, "none": {"accuracy": 0.56},
               "plain": {"fresh_classifier_accuracy": 0.0}}  # fmt: skip
    gates = gates_of(results, hp)
    found = {name: gate.passed for name, gate in gates.items() if " of " in name}
    assert found == {"accuracy of query": True, "accuracy of none": False,
                     "fresh classifier accuracy of plain": False}  # fmt: skip
    assert gates["accuracy of none"].value == "55.00%"


# -- words and pictures ------------------------------------------------------------------------


def test_the_summary_names_the_best_of_those_that_protect_records(results, hp):
    for arm in ("query", "none", "dp"):
        results[arm, 0]["accuracy"] = results[arm, 1]["accuracy"] = 0.99
    results["record_ensemble", 1]["accuracy"] = 0.9
    said = summary._summary([*rows_of(results, hp).values()], hp)
    assert "record_ensemble is right on 70.0% of the test images at ε = 2." in said
    hp.arms = {name: hp.arms[name] for name in ("none", "query")}
    left = {run: found for run, found in results.items() if not run[0].startswith("record")}
    rows = [*rows_of(left, hp).values()]  # a DP teacher's among them: it is no student
    assert summary._summary(rows, hp) == "No arm protects records."


def test_only_what_has_an_epsilon_for_records_may_be_published(results, hp):
    caption, head, lines, _ = summary._publishable([*rows_of(results, hp).values()], hp)
    assert "one of these" in caption and "add up" in caption
    named = [run.removeprefix("runs/").removesuffix(", one seed") for run, *_ in lines]
    assert named == ["dp", "record_single", "record_ensemble", "all else"]
    assert all(len(line) == len(head) for line in lines)
    assert lines[-1][1].startswith("nothing: this report")
    assert lines[1][2] == "2 per record, replace one; δ = 1e-05"
    left = {run: found for run, found in results.items() if run[0] in ("plain", "none", "query")}
    assert len(summary._publishable([*rows_of(left, hp).values()], hp).rows) == 1


@pytest.mark.parametrize("name", ["tfds:mnist", "digits"])
def test_the_report_has_every_epsilon_with_what_it_rests_on(results, hp, tmp_path, name):
    dataset = types.SimpleNamespace(name=name, note="test: 9,980 of 10,000")
    rows = [*rows_of(results, hp).values()]
    assert sorted(arm for arm, _ in summary._assumptions(rows).rows) == sorted([*RELEASES, "dp"])
    assert len(summary._published(dataset)) == (name == "tfds:mnist")
    assert dataset.note in summary._notes(hp, dataset)
    labels = {row.arm: summary._label(row) for row in rows}
    assert (labels["query"], labels["plain"]) == ("query (ε = 2 per query)", "plain")
    figure = summary._figures(hp, dataset, rows)[0]
    assert figure.draw(tmp_path / figure.path).read_bytes().startswith(b"\x89PNG")
