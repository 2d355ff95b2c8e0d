"""Runs to arms, rows, criteria and a report."""

from dataclasses import replace

import numpy as np
import pytest

from distill_core import LoadedModel, checkpoint, data
from distill_core.experiment import report
from distill_core.experiment.report import Gate
from distill_core.models import trust
from distill_core.models.network import image_network
from nasty.experiment import summary
from nasty.experiment.comparison import paper_runs
from nasty.experiment.further_results import UNCHECKED, Further

GOOD = {
    "teacher_normal": 0.95,
    "teacher_nasty": 0.94,
    "student_alone": 0.90,
    "student_of_normal": 0.91,
    "student_of_nasty": 0.80,
    "self_of_normal": 0.95,
    "self_of_nasty": 0.70,
}
NUM_TEST = 360
LOST = "accuracy lost by the nasty teacher, against the normal one"
APART = "accuracy lost by the nasty teacher's students, against the normal one's"
BELOW = "accuracy lost by the nasty teacher's students, against the student alone"
CLOSE = "accuracy lost by the normal teacher's students, against the student alone"
SELF = (
    "accuracy lost by students as large as the nasty teacher, against the normal one's "
    "(a known weakness)"
)
ATTACKED = f"{APART} at the attacker's best alpha and temperature (a known weakness)"


def results(nasty=True, **changes):
    """Two seeds around the given means; the nasty teacher's check says `nasty`."""
    found = {}
    for arm, mean in (GOOD | changes).items():
        if mean is None:  # was not run
            continue
        for seed, off in ((1, -0.001), (2, 0.001)):
            found[arm, seed] = {"accuracy": mean + off}
            if arm == "teacher_nasty":
                accuracies = {"student_of_teacher": 0.5, "student_of_adversary": 0.9}
                found[arm, seed]["nastiness"] = {"nasty": nasty, **accuracies}
    return found


def missed(found):
    return [gate.name for gate in summary.gates_of(found, NUM_TEST) if not gate.passed]


def rows_of(runs, found):
    """Arm -> its row."""
    arms = [summary.arm_of(arm, run) for arm, run in runs.items()]
    return {row.arm: row for row in summary.rows_of(arms, found)}


def test_an_arm_is_a_row_over_its_seeds_with_what_shaped_it(runs):
    rows = rows_of(runs, results())
    assert list(rows) == list(GOOD)
    row = rows["student_of_normal"]
    assert row.metrics == {"accuracy": [pytest.approx(0.909), pytest.approx(0.911)]}
    teacher = {"model": "cnn", "model_kwargs": {"widths": [4]}, "num_steps": 4}
    student = {"model": "cnn", "model_kwargs": {}, "num_steps": 2}
    distilled = {"alpha": 0.9, "temperature": 20.0}
    found = {arm: row.settings for arm, row in rows.items()}
    assert found["student_of_nasty"] == student | distilled
    assert found["self_of_nasty"] == teacher | distilled
    assert (found["teacher_normal"], found["student_alone"]) == (teacher, student)
    assert found["teacher_nasty"] == teacher | {"omega": 0.03, "temperature": 20.0}
    metrics = rows["teacher_nasty"].metrics
    assert metrics["nastiness_check_gap"] == [pytest.approx(0.4)] * 2


def test_every_arm_is_explained_and_no_two_alike(hp):
    further = {"deep": {"model": "resnetc20"}}
    about = {arm: run.about for arm, run in paper_runs(replace(hp, students=further), 3).items()}
    assert len(about) == 10 and all(about.values())
    assert len({*about.values()}) == len(about)
    assert about["deep_of_nasty"] == "resnetc20, taught by teacher_nasty"


def test_an_arm_is_nasty_by_its_teacher_whatever_its_name(runs):
    nasty = [arm for arm, run in runs.items() if summary.arm_of("any", run).nasty]
    assert nasty == ["teacher_nasty", "student_of_nasty", "self_of_nasty"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"teacher_nasty": 0.929}, [LOST]),
        ({"student_of_nasty": 0.861}, [APART]),
        ({"student_of_normal": 0.894}, [CLOSE]),
        ({"nasty": False}, ["the nastiness check calls the nasty teacher nasty"]),
        # A weak baseline and a strong normal student would hide it.
        ({"student_alone": 0.80, "student_of_nasty": 0.81, "student_of_normal": 0.90}, [BELOW]),
        ({"self_of_nasty": 0.899}, []),
        ({"self_of_nasty": 0.901}, [SELF]),
        ({"self_of_nasty": 0.98}, [SELF]),
        ({"self_of_normal": None, "self_of_nasty": None}, []),
        ({"attacker_of_normal": 0.92, "attacker_of_nasty": 0.89}, [ATTACKED]),
        ({"attacker_of_normal": 0.92, "attacker_of_nasty": 0.86}, []),
    ],
)
def test_each_gate_fails_alone(changes, names):
    assert missed(results(**changes)) == names


@pytest.mark.parametrize(("num_test", "value"), [(360, "11.0 points"), (10_000, "11.00 points")])
def test_gates_give_value_and_need_in_points(num_test, value):
    gate = summary.gates_of(results(), num_test)[1]
    assert (gate.value, gate.needed) == (value, "at least 5 points")


def test_an_inconclusive_check_is_no_criterion_missed(runs):
    def gates(found):
        return summary.gates_of(found, NUM_TEST)

    unjudged = results(nasty=None)
    assert missed(unjudged) == []
    assert [gate.name for gate in gates(unjudged)] == [gate.name for gate in gates(results())][:-1]
    row = rows_of(runs, unjudged)["teacher_nasty"]
    assert summary.verdicts_of(unjudged) == ["inconclusive"] * 2
    assert list(row.metrics) == ["accuracy"]
    mixed = results()
    mixed["teacher_nasty", 2]["nastiness"]["nasty"] = None
    gate = gates(mixed)[-1]
    assert (gate.passed, gate.value) == (True, "1 of 1 runs; inconclusive in 1 more")
    mixed["teacher_nasty", 1]["nastiness"]["nasty"] = False
    assert not gates(mixed)[-1].passed


def test_the_report_says_what_was_measured(hp, runs, tmp_path):
    digits = data.load_dataset("digits")
    missed = Gate("no attack succeeds", False, "3 points", "at most 2")
    further = Further([], [], {"more": 3}, [missed], ["An attack succeeds."])
    arms = [summary.arm_of(arm, run) for arm, run in runs.items()]
    found = summary.report_of(tmp_path, hp, digits, results(), arms, further, 1)
    assert (found.method, found.dataset) == ("nasty", "digits")
    assert found.fields == {
        "more": 3,
        "nastiness_check": ["nasty", "nasty"],
        "responses": {},  # the teachers of this test are not there
    }
    assert "The nastiness check says of teacher_nasty: nasty, nasty." in found.notes
    assert [row.arm for row in found.rows] == list(GOOD)
    assert "nasty teacher classifies 94.0%" in found.summary
    assert "one from the nasty teacher 80.0%" in found.summary
    assert found.summary.endswith(" An attack succeeds.") and found.gates[-1] == missed
    assert found.num_test == 360
    assert {row.arm: row.about for row in found.rows}["self_of_nasty"] == (
        "teacher's network, taught by teacher_nasty"
    )
    drawn = found.figures[0]
    assert drawn.draw(tmp_path / drawn.path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("caption", [None, f"Trends. {UNCHECKED}"])
def test_the_mark_of_what_the_paper_shows_is_explained_once(hp, runs, tmp_path, caption):
    tables = [report.Table(caption, ["ours"], [["1"]])] if caption else []
    further = Further(tables, [], {}, [], [])
    arms = [summary.arm_of(arm, run) for arm, run in runs.items()]
    digits = data.load_dataset("digits")
    found = summary.report_of(tmp_path, hp, digits, results(), arms, further, 1)
    assert any("†" in figure.caption for figure in found.figures)
    explained = [each for each in (*found.notes, caption or "") if "not checked" in each.lower()]
    assert len(explained) == 1


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({"self_of_nasty": 0.98}, "learns from the nasty teacher all the same: 98.0%, against "
         "95.0% from the normal one.", "held-out"),
        ({}, "as large as the teacher is hurt, too: 70.0%, against 95.0%", "all the same"),
        ({"self_of_normal": None, "self_of_nasty": None}, "without a teacher 90.0%.", "as large"),
        ({"attacker_of_normal": 0.92, "attacker_of_nasty": 0.91}, "With α and τ_S chosen on "
         "held-out examples a student of the nasty teacher reaches 91.0%, one of the normal "
         "teacher 92.0%.", "all the same"),
    ],
)  # fmt: skip
def test_the_lead_says_what_speaks_against_the_claim_whichever_way_it_came_out(
    changes, said, unsaid
):
    accuracies = report.values_of(results(**changes), "accuracy")
    lead = summary._lead(accuracies, Further([], [], {}, [], []), NUM_TEST)
    assert said in lead and unsaid not in lead


NETWORK = """
from flax import linen as nn

class Hidden(nn.Module):  # shows no features
    num_classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))
"""


def test_a_network_that_hides_its_features_gets_the_other_figures(hp, tmp_path, monkeypatch):
    (tmp_path / "hidden_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    digits = data.load_dataset("digits")
    with trust.allowed("hidden_network"):
        network = image_network(digits, model="hidden_network:Hidden", model_kwargs={})
        dense = {"kernel": np.eye(64, 10, dtype=np.float32), "bias": np.zeros(10, np.float32)}
        teacher = LoadedModel({"params": {"Dense_0": dense}}, network)
        monkeypatch.setattr(checkpoint, "load_model", lambda _: teacher)
        answered = summary.responses(tmp_path, hp, digits)
        made = summary.teacher_figures(tmp_path, hp, digits, answered)
        response, embeddings = (each.draw(tmp_path / each.path) for each in made)
    assert response.read_bytes().startswith(b"\x89PNG")
    assert embeddings is None
    rows = answered["test_rows"]
    assert len(set(digits.test.labels[rows])) == len(rows) == 6
    assert np.shape(answered["nasty"]) == np.shape(answered["normal"]) == (6, 10)
    np.testing.assert_allclose(
        answered["normal"], teacher.apply(teacher.variables, digits.test.images[rows]), atol=1e-6
    )


def test_teachers_whose_checkpoints_are_gone_have_no_answers(hp, tmp_path):
    assert summary.responses(tmp_path, hp, data.load_dataset("digits")) == {}
