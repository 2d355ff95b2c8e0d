"""Runs to arms, rows, gates and a report."""

import numpy as np
import pytest

from distill_core import LoadedModel, checkpoint, data
from distill_core.models import trust
from distill_core.models.network import image_network
from nasty.experiment import summary
from nasty.experiment.further_results import Further

GOOD = {
    "teacher_normal": 0.95,
    "teacher_nasty": 0.94,
    "student_alone": 0.90,
    "student_of_normal": 0.91,
    "student_of_nasty": 0.80,
    "self_of_normal": 0.95,
    "self_of_nasty": 0.70,
}
CLOSE = "the normal teacher's student is not behind the student alone"
BELOW = "its students end below the student alone"
ATTACKED = "the gap stays at the attacker's best alpha and temperature"


def results(nasty=True, **changes):
    """Two seeds around the given means; the nasty teacher's check says `nasty`."""
    found = {}
    for arm, mean in (GOOD | changes).items():
        for seed, off in ((1, -0.001), (2, 0.001)):
            found[arm, seed] = {"accuracy": mean + off}
            if arm == "teacher_nasty":
                accuracies = {"student_of_teacher": 0.5, "student_of_adversary": 0.9}
                found[arm, seed]["nastiness"] = {"nasty": nasty, **accuracies}
    return found


def missed(found):
    return [gate.name for gate in summary.gates_of(found) if not gate.passed]


def rows_of(runs, found):
    """Arm -> its row."""
    arms = [summary.arm_of(arm, run) for arm, run in runs.items()]
    return {row.arm: row for row in summary.rows_of(arms, found)}


def test_an_arm_is_a_row_over_its_seeds_with_what_shaped_it(runs):
    rows = rows_of(runs, results())
    assert list(rows) == list(GOOD)
    row = rows["student_of_normal"]
    assert row.metrics == {"accuracy": [pytest.approx(0.909), pytest.approx(0.911)]}
    distilled = {"model": "cnn", "alpha": 0.9, "temperature": 20.0}
    undermined = {"model": "cnn", "omega": 0.03, "temperature": 20.0}
    found = {arm: row.settings for arm, row in rows.items()}
    assert found["student_of_nasty"] == found["self_of_nasty"] == distilled
    assert found["teacher_normal"] == found["student_alone"] == {"model": "cnn"}
    assert found["teacher_nasty"] == undermined | {"nastiness_check": "nasty, nasty"}
    metrics = rows["teacher_nasty"].metrics
    assert metrics["nastiness_check_gap"] == [pytest.approx(0.4)] * 2


def test_an_arm_is_nasty_by_its_teacher_whatever_its_name(runs):
    nasty = [arm for arm, run in runs.items() if summary.arm_of("any", run).nasty]
    assert nasty == ["teacher_nasty", "student_of_nasty", "self_of_nasty"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"teacher_nasty": 0.929}, ["the nasty teacher loses little accuracy"]),
        ({"student_of_nasty": 0.861}, ["its students end below the normal teacher's"]),
        ({"student_of_normal": 0.894}, [CLOSE]),
        ({"nasty": False}, ["the nastiness check calls the nasty teacher nasty"]),
        # A weak baseline and a strong normal student would hide it.
        ({"student_alone": 0.80, "student_of_nasty": 0.81, "student_of_normal": 0.90}, [BELOW]),
        ({"attacker_of_normal": 0.92, "attacker_of_nasty": 0.89}, [ATTACKED]),
        ({"attacker_of_normal": 0.92, "attacker_of_nasty": 0.86}, []),
    ],
)
def test_each_gate_fails_alone(changes, names):
    assert missed(results(**changes)) == names


def test_gates_give_value_and_need_in_points():
    gate = summary.gates_of(results())[1]
    assert (gate.value, gate.needed) == ("11.00 points", "at least 5 points")


def test_an_inconclusive_check_is_no_criterion_missed(runs):
    gates, unjudged = summary.gates_of, results(nasty=None)
    assert missed(unjudged) == []
    assert [gate.name for gate in gates(unjudged)] == [gate.name for gate in gates(results())][:-1]
    row = rows_of(runs, unjudged)["teacher_nasty"]
    assert row.settings["nastiness_check"] == "inconclusive, inconclusive"
    assert list(row.metrics) == ["accuracy"]
    mixed = results()
    mixed["teacher_nasty", 2]["nastiness"]["nasty"] = None
    gate = gates(mixed)[-1]
    assert (gate.passed, gate.value) == (True, "1 of 1 runs; inconclusive in 1 more")
    mixed["teacher_nasty", 1]["nastiness"]["nasty"] = False
    assert not gates(mixed)[-1].passed


def test_the_report_says_what_was_measured(hp, runs, tmp_path):
    digits, further = data.load_dataset("digits"), Further([], [], {"more": 3})
    arms = [summary.arm_of(arm, run) for arm, run in runs.items()]
    found = summary.report_of(tmp_path, hp, digits, results(), arms, further, 1)
    assert (found.method, found.dataset, found.fields) == ("nasty", "digits", {"more": 3})
    assert [row.arm for row in found.rows] == list(GOOD)
    assert "nasty teacher classifies 94.0%" in found.summary
    assert "one from the nasty teacher 80.0%" in found.summary
    drawn = found.figures[0]
    assert drawn.draw(tmp_path / drawn.path).read_bytes().startswith(b"\x89PNG")


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
        made = summary.teacher_figures(tmp_path, hp, digits)
        response, embeddings = (each.draw(tmp_path / each.path) for each in made)
    assert response.read_bytes().startswith(b"\x89PNG")
    assert embeddings is None
