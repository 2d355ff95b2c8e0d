"""From runs to rows, gates and words: on results that nobody had to train for."""

import math
import types

import pytest
from matplotlib.axes import Axes

from distill_core.privacy.ledger import GAUSSIAN, POISSON_GAUSSIAN, ZERO_OUT, Entry, Ledger
from dpdfd.experiment import figures, summary
from dpdfd.privacy.units import UNITS, Release, calibrate, privacy_spent

DELTA = 1e-5
STEPS = 8
NUM_TEST, NUM_CLASSES = 360, 10
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
    return {row.arm: row for row in summary.rows_and_gates(results, hp, NUM_TEST, NUM_CLASSES)[0]}


def gates_of(results, hp):
    return {
        gate.name: gate for gate in summary.rows_and_gates(results, hp, NUM_TEST, NUM_CLASSES)[1]
    }


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


BUDGET = "every arm spends no more than its ε"


def test_who_spends_more_than_was_asked_for_fails_in_any_seed(results, hp):
    assert gates_of(results, hp)[BUDGET].passed
    results["record_single", 1]["ledger"] = spends(RELEASES["record_single"], 2.01)
    gate = gates_of(results, hp)[BUDGET]
    assert (gate.passed, gate.value, gate.needed) == (False, "2.01 by record_single", "at most 2")
    hp.arms["record_single"]["epsilon"] = 4.0  # now another is nearest its limit
    gate = gates_of(results, hp)[BUDGET]
    assert gate.passed and gate.value in ("2 by query", "2 by record_ensemble")


def test_an_epsilon_that_all_arms_share_is_a_budget_too_but_not_of_teachers(results, hp):
    for unit in RELEASES:
        del hp.arms[unit]["epsilon"]
    assert BUDGET not in gates_of(results, hp)
    hp.student["epsilon"] = 2.0
    assert gates_of(results, hp)[BUDGET].passed
    hp.student["epsilon"] = 1.99
    assert not gates_of(results, hp)[BUDGET].passed
    hp.arms = {"none": hp.arms["none"]}  # left are teachers and an arm that claims nothing
    left = {run: found for run, found in results.items() if run[0] not in RELEASES}
    assert BUDGET not in gates_of(left, hp)


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
    gates = gates_of(results, hp)
    audits = {name: gate.passed for name, gate in gates.items() if "audit" in name}
    control = "the audit sees that plain is not private"
    assert audits == {control: passed}
    assert gates[control].value == f"{bound:.2f}" + summary.NO_POWER * (not passed)


def test_without_a_control_that_is_found_out_no_audit_counts_as_passed(results, hp):
    results["plain", 0]["audit_epsilon_lower"] = 0.9
    results["record_single", 0]["audit_epsilon_lower"] = 0.1
    results["record_ensemble", 0]["audit_epsilon_lower"] = 2.1  # above its ε: that is found
    audits = {name: gate.passed for name, gate in gates_of(results, hp).items() if "audit" in name}
    assert audits == {
        "the audit sees that plain is not private": False,
        "the audit of record_ensemble stays below its ε for a record": False,
    }


def test_a_bar_is_held_against_the_mean_over_seeds_and_missed_where_nothing_was_measured(
    results, hp
):
    hp.bars = {"query": {"accuracy": 0.55}, "none": {"accuracy": 0.56},
               "plain": {"fresh_classifier_accuracy": 0.0}}  # fmt: skip
    gates = gates_of(results, hp)
    found = {name: gate.passed for name, gate in gates.items() if "accuracy of " in name}
    assert found == {"accuracy of query": True, "accuracy of none": False,
                     "fresh classifier accuracy of plain": False}  # fmt: skip
    assert gates["accuracy of none"].value == "55.0%"


def test_an_epsilon_per_query_does_not_pass_for_one_of_a_record(results, hp, ledgers):
    gate = gates_of(results, hp)["the ε of query protects a training record, too"]
    record = privacy_spent(ledgers["query"], delta=DELTA).record_epsilon
    assert not gate.passed and gate.value == f"ε = {record:,.4g} for a record"
    assert gate.needed == "at most 2"
    del hp.arms["query"], results["query", 0], results["query", 1]
    assert not [name for name in gates_of(results, hp) if "a training record, too" in name]


@pytest.mark.parametrize(
    ("teacher", "accuracy", "passed", "needed"),
    [
        (0.8, 0.1, False, "at least 40.0%, 50% of its teacher's"),
        (0.8, 0.39, False, "at least 40.0%, 50% of its teacher's"),
        (0.8, 0.41, True, "at least 40.0%, 50% of its teacher's"),
        (0.18, 0.1, False, "at least 18.0%, its teacher's"),
        (0.18, 0.18, True, "at least 18.0%, its teacher's"),
        (0.3, 0.19, False, "at least 20.0%, 2 times chance"),
        (0.3, 0.21, True, "at least 20.0%, 2 times chance"),
    ],
)
def test_a_student_of_one_given_teacher_is_of_use_at_half_of_its_accuracy_and_above_chance(
    results, hp, teacher, accuracy, passed, needed
):
    for seed in (0, 1):
        results["plain", seed]["accuracy"] = teacher
        results["record_single", seed]["accuracy"] = accuracy
    name = "one given teacher makes a student of use that protects records (record_single)"
    gate = gates_of(results, hp)[name]
    assert gate.passed is passed
    assert gate.value == f"accuracy {100 * accuracy:.1f}%"
    assert gate.needed == needed


@pytest.mark.parametrize(("fresh", "passed"), [(0.581, True), (0.579, False), (0.7, True)])
def test_a_fresh_classifier_is_held_against_the_best_student_that_protects_records(
    results, hp, fresh, passed
):
    results["record_ensemble", 0]["accuracy"] = results["record_ensemble", 1]["accuracy"] = 0.6
    results["none", 0]["accuracy"] = 0.99
    assert not [name for name in gates_of(results, hp) if "drawn samples" in name]
    results["record_ensemble", 0]["fresh_classifier_accuracy"] = fresh
    name = "drawn samples of record_ensemble make a classifier as good as the student"
    gate = gates_of(results, hp)[name]
    assert gate.passed is passed
    assert gate.value == f"{60 - 100 * fresh:.1f} points behind"


# -- words and pictures ------------------------------------------------------------------------


def test_the_summary_names_the_best_of_those_that_protect_records(results, hp):
    for arm in ("query", "none", "dp"):
        results[arm, 0]["accuracy"] = results[arm, 1]["accuracy"] = 0.99
    results["record_ensemble", 1]["accuracy"] = 0.9
    said = summary._summary([*rows_of(results, hp).values()], hp, NUM_TEST)
    assert "record_ensemble is right on 70% of the test images at ε = 2, replace one, " in said
    assert said.endswith("the training set was used once for it.")
    results["record_ensemble", 1]["fresh_classifier_accuracy"] = 0.4
    said = summary._summary([*rows_of(results, hp).values()], hp, NUM_TEST)
    assert said.endswith("its drawn samples alone is right on 40.0%.")
    hp.arms = {name: hp.arms[name] for name in ("none", "query")}
    left = {run: found for run, found in results.items() if not run[0].startswith("record")}
    rows = [*rows_of(left, hp).values()]  # a DP teacher's among them: it is no student
    said = summary._summary(rows, hp, NUM_TEST)
    assert said.endswith("No arm protects records.") and "record_single" not in said
    del hp.arms["query"]
    rows = [row for row in rows if row.arm != "query"]
    assert summary._summary(rows, hp, NUM_TEST) == "No arm protects records."


def test_the_summary_says_what_an_epsilon_is_about_and_what_one_given_teacher_makes(
    results, hp, ledgers
):
    for seed in (0, 1):
        results["record_single", seed]["accuracy"] = 0.1
        results["plain", seed]["accuracy"] = 0.98
    said = summary._summary([*rows_of(results, hp).values()], hp, NUM_TEST)
    record = privacy_spent(ledgers["query"], delta=DELTA).record_epsilon
    assert (
        "The ε = 2 of query is about one query in every step; it protects no record, for which the "
        f"noise is worth ε = {record:,.3g}. Its student is right on 55.0% of the test images."
    ) in said
    assert (
        "From one given teacher, right on 98.0%, a student that protects records (record_single, "
        "ε = 2) is right on 10.0%."
    ) in said


def test_every_teacher_and_arm_is_explained_by_its_settings(results, hp):
    about = {arm: row.about for arm, row in rows_of(results, hp).items()}
    assert about["plain"] == "one network, trained without privacy"
    assert about["dp"] == "one network, trained with noise on its gradients"
    assert about["several"].startswith("50 networks on disjoint parts of the records")
    assert about["query"].startswith("student of plain, whose ε is for one query")
    assert {*summary._STUDENTS} == {"none", *UNITS}
    assert len({*about.values()}) == len(about)
    hp.teachers["dp"]["dp"]["share"] = 0.8
    hp.arms["query"]["moments"] = {"size": 8}
    about = {arm: row.about for arm, row in rows_of(results, hp).items()}
    assert about["dp"].endswith("; spends 80% of the budget")
    assert about["query"].endswith("; its prior is bought of the records")


def test_only_what_has_an_epsilon_for_records_may_be_published(results, hp):
    caption, head, lines, *_ = summary._publishable([*rows_of(results, hp).values()], hp)
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


@pytest.fixture
def swept(results, hp):
    """The results with DP teachers at two ε, a student of each, and a prior bought for one."""
    full = {"unit": "record", "adjacency": ZERO_OUT, "batch_size": 1000, "num_examples": 1000}
    for name, epsilon in (("low", 1.0), ("high", 8.0)):
        std = calibrate(RELEASES["record_single"], epsilon=epsilon, delta=DELTA, steps=1) / 8
        told = Ledger().charge(Entry(GAUSSIAN, std, 1.0, 1, **full))
        hp.teachers[f"dp_{name}"] = {"model": "scattering", "dp": {"epsilon": epsilon}}
        hp.arms[f"student_{name}"] = {"teacher": f"dp_{name}", "privacy_unit": "record_dp_teacher"}
        heir = Ledger(public=True).descend(name, told)
        for seed in (0, 1):
            row = {"accuracy": 0.7 + 0.1 * seed, "id": ""}
            results[f"dp_{name}", seed] = {**row, "ledger": told.to_json()}
            fresh = {"fresh_classifier_accuracy": 0.6}
            results[f"student_{name}", seed] = {**row, **fresh, "ledger": heir.to_json()}
    hp.arms["student_high"]["moments"] = {"size": 3, "norm": 1.0}
    return results


def test_a_row_says_how_often_private_data_were_used_and_what_another_delta_makes_of_it(swept, hp):
    rows = rows_of(swept, hp)
    used = {arm: row.settings.get("private_data") for arm, row in rows.items()}
    assert {arm for arm, said in used.items() if said is None} == {
        *("plain", "several", "none", "query"),  # claim nothing for records
    }  # fmt: skip
    assert {used[arm] for arm in ("dp", "dp_low", "student_low")} == {"once: the teacher"}
    assert used["record_ensemble"] == "once: the teachers"
    assert used["student_high"] == "twice: the teacher, and the prior's moments"
    delta = 1 / (1000 * math.log(1000))
    for arm in ("dp_low", "dp_high", "student_low", "student_high"):
        row = rows[arm]
        assert row.settings["dpimagebench_delta"] == delta
        expected = [privacy_spent(swept[arm, 0]["ledger"], delta=delta).epsilon] * 2
        assert row.metrics["dpimagebench_epsilon"] == expected
    for arm in ("query", "none", "plain", "record_single"):  # no record, no claim, N unknown
        assert "dpimagebench_epsilon" not in rows[arm].metrics
    lines = {name for name, *_ in summary._publishable([*rows.values()], hp).rows}
    assert "runs/dp_low, one seed" in lines and "runs/student_high, one seed" in lines


def test_curves_over_epsilon_join_what_is_made_alike(swept, hp, tmp_path):
    rows = [*rows_of(swept, hp).values()]
    curves = summary.curves(hp, rows)
    assert {1.0, 8.0} <= set(curves["DP teacher"])
    assert curves["DP teacher"][1.0] == [0.7, pytest.approx(0.8)]
    assert [*curves] == ["DP teacher"]  # of all else there is one ε; with moments it is another
    del hp.arms["student_high"]["moments"]
    curves = summary.curves(hp, rows)
    assert {*curves["cnn student of a DP teacher"]} == {1.0, 8.0}
    assert curves["fresh classifier, cnn student of a DP teacher"][8.0] == [0.6, 0.6]
    hp.teachers["dp_low"]["dp"]["share"] = 0.5
    assert 1.0 not in summary.curves(hp, rows).get("DP teacher", {})
    dataset = types.SimpleNamespace(name="tfds:mnist", note="")
    (figure,) = [f for f in summary._figures(hp, dataset, rows) if "epsilon" in f.path]
    assert figure.draw(tmp_path / figure.path).read_bytes().startswith(b"\x89PNG")
    points = summary.published(dataset.name)
    assert points["DP-FETA"] == {1.0: pytest.approx(0.956), 10.0: pytest.approx(0.981)}
    assert summary.published("digits") == {}


def test_one_epsilon_is_no_curve_and_none_no_figure(results, hp, tmp_path):
    rows = [*rows_of(results, hp).values()]
    dataset = types.SimpleNamespace(name="digits", note="")
    assert not [f for f in summary._figures(hp, dataset, rows) if "epsilon" in f.path]
    with pytest.raises(ValueError, match="curves: got none"):
        figures.over_epsilon(tmp_path / "none.png", {}, {})


def test_every_published_method_has_its_mark_and_every_seed_its_dot(tmp_path, monkeypatch):
    drawn = []
    real = Axes.plot

    def plot(self, x, y, *marks, **named):
        drawn.append((named.get("label"), [*x], [*y], marks))
        return real(self, x, y, *marks, **named)

    monkeypatch.setattr(Axes, "plot", plot)
    curves = {"ours": {1.0: [0.5, 0.7], 10.0: [0.8]}}
    path = figures.over_epsilon(tmp_path / "e.png", curves, {"theirs": {1.0: 0.4, 10.0: 0.6}})
    assert path.read_bytes().startswith(b"\x89PNG")
    line, theirs = drawn[0], drawn[-1]
    assert line[:3] == ("ours", [1.0, 10.0], pytest.approx([60.0, 80.0]))
    shown = [zip(xs, ys, strict=True) for _, xs, ys, marks in drawn if marks == ("o",)]
    dots = [dot for each in shown for dot in each]
    assert sorted(dots) == [(1.0, 50.0), (1.0, pytest.approx(70.0)), (10.0, 80.0)]
    assert theirs[:3] == ("theirs (sees the data)", [1.0, 10.0], pytest.approx([40.0, 60.0]))
