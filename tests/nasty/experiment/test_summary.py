"""Runs to rows, gates, figures and files."""

import json

import numpy as np
import pytest

from distill_core import data, train
from distill_core import load_model as load
from distill_core.experiment import report
from distill_core.models import trust
from nasty.experiment import summary
from nasty.experiment.further_results import Further

HP = {
    "model": "resnet18",
    "student_model": "cnn",
    "omega": 0.04,
    "temperature": 20.0,
    "alpha": 0.9,
    "seeds": (1, 2),
    "num_steps": 4,
    "students": {},
}
GOOD = {
    "teacher_normal": 0.95,
    "teacher_nasty": 0.94,
    "student_alone": 0.90,
    "student_of_normal": 0.91,
    "student_of_nasty": 0.80,
    "self_of_normal": 0.95,
    "self_of_nasty": 0.70,
}


def results(nasty=True, **changes):
    """Two seeds around the given means; the nasty teacher's check says `nasty`."""
    found = {}
    for arm, mean in (GOOD | changes).items():
        for seed, off in ((1, -0.001), (2, 0.001)):
            found[arm, seed] = {"accuracy": mean + off}
            if arm == "teacher_nasty":
                gap = None if nasty is None else 0.4
                found[arm, seed]["nastiness"] = {
                    "nasty": nasty,
                    "student_of_teacher": gap and 0.9 - gap,
                    "student_of_adversary": gap and 0.9,
                    "needed_gap": 0.02,
                    "cost": 0.05,
                }
    return found


def gates(found, attack=None):
    return summary.rows_and_gates(found, HP, attack or {})[1]


def missed(found, attack=None):
    return [gate.name for gate in gates(found, attack) if not gate.passed]


def test_an_arm_is_a_row_over_its_seeds():
    rows, _ = summary.rows_and_gates(results(), HP, {})
    assert [row.arm for row in rows] == list(GOOD)
    row = rows[3]
    assert row.metrics == {"accuracy": [pytest.approx(0.909), pytest.approx(0.911)]}
    assert row.settings == {"model": "cnn", "alpha": 0.9, "temperature": 20.0}


def test_settings_name_the_network_and_what_shaped_the_arm():
    rows, _ = summary.rows_and_gates(results(), HP, {})
    found = {row.arm: row.settings for row in rows}
    assert found["teacher_normal"] == {"model": "resnet18"}
    assert found["teacher_nasty"] == {
        "model": "resnet18",
        "omega": 0.04,
        "temperature": 20.0,
        "nastiness_check": "nasty, nasty",
    }
    assert found["student_alone"] == {"model": "cnn"}
    assert found["self_of_nasty"] == {"model": "resnet18", "alpha": 0.9, "temperature": 20.0}


def test_a_good_experiment_passes_every_gate():
    assert missed(results()) == []
    assert len(gates(results())) == 5


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"teacher_nasty": 0.929}, "the nasty teacher loses little accuracy"),
        ({"student_of_nasty": 0.861}, "its students end below the normal teacher's"),
        (
            {"student_of_normal": 0.894},
            "the normal teacher's student is not behind the student alone",
        ),
        ({"nasty": False}, "the nastiness check calls the nasty teacher nasty"),
    ],
)
def test_each_gate_fails_alone(changes, name):
    assert missed(results(**changes)) == [name]


def test_an_inconclusive_check_is_no_criterion_missed():
    unjudged = results(nasty=None)
    assert missed(unjudged) == []
    assert [gate.name for gate in gates(unjudged)] == [gate.name for gate in gates(results())][:-1]
    rows, _ = summary.rows_and_gates(unjudged, HP, {})
    assert rows[1].settings["nastiness_check"] == "inconclusive, inconclusive"
    mixed = results()
    mixed["teacher_nasty", 2]["nastiness"]["nasty"] = None
    gate = gates(mixed)[-1]
    assert (gate.passed, gate.value) == (True, "1 of 1 runs; inconclusive in 1 more")
    mixed["teacher_nasty", 1]["nastiness"]["nasty"] = False
    assert not gates(mixed)[-1].passed


def test_a_student_above_the_one_alone_misses_the_gate():
    """A weak baseline and a strong normal student would hide it."""
    found = results(student_alone=0.80, student_of_nasty=0.81, student_of_normal=0.90)
    assert missed(found) == ["its students end below the student alone"]


def test_gates_give_value_and_need_in_points():
    gate = gates(results())[1]
    assert (gate.value, gate.needed) == ("11.00 points", "at least 5 points")
    assert gates(results(nasty=False))[-1].value == "0 of 2 runs"


def test_the_attackers_best_is_a_row_and_a_gate():
    attack = {
        "normal": {"alpha": 0.5, "temperature": 4.0},
        "nasty": {"alpha": 0.1, "temperature": 1.0},
    }
    near = results(attacker_of_normal=0.92, attacker_of_nasty=0.89)
    rows, _ = summary.rows_and_gates(near, HP, attack)
    settings = {row.arm: row.settings for row in rows}["attacker_of_nasty"]
    assert settings == {
        "model": "cnn",
        "alpha": 0.1,
        "temperature": 1.0,
        "chosen_on": "held-out examples",
    }
    assert missed(near, attack) == ["the gap stays at the attacker's best alpha and temperature"]
    assert missed(results(attacker_of_normal=0.92, attacker_of_nasty=0.86), attack) == []


def test_the_gap_of_the_nastiness_check_is_a_metric_where_every_run_has_one():
    rows, _ = summary.rows_and_gates(results(), HP, {})
    found = {row.arm: row.metrics for row in rows}["teacher_nasty"]
    assert found["nastiness_check_gap"] == [pytest.approx(0.4)] * 2
    rows, _ = summary.rows_and_gates(results(nasty=None), HP, {})
    assert list({row.arm: row.metrics for row in rows}["teacher_nasty"]) == ["accuracy"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 40), ("test", 30)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 3
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, **arrays, classes=np.array(["zero", "one", "two"]))
    return data.load_dataset(f"npz:{path}")


def test_files_say_what_was_measured(dataset, tmp_path, capsys):
    rows, found = summary.rows_and_gates(results(student_of_normal=0.894), HP, {})
    further = Further([], {"more": 3})
    summary.conclude(tmp_path, HP, dataset, rows, found, further, 1.5)
    summary.write_report(tmp_path, dataset, rows, found, [], further, 1.5)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["method"] == "nasty"
    assert written["dataset"] == dataset.name
    assert written["settings"]["omega"] == 0.04
    assert written["minutes"] == 1.5
    assert written["more"] == 3
    by_arm = {row["arm"]: row["metrics"]["accuracy"] for row in written["rows"]}
    assert by_arm["teacher_nasty"] == report.summarize([0.939, 0.941])
    assert [gate["passed"] for gate in written["gates"]].count(False) == 1
    page = (tmp_path / "report.html").read_text()
    for text in ("94.0%", "80.0%", "student_of_nasty", dataset.name):
        assert text in page
    out = capsys.readouterr().out
    assert "MISSED  the normal teacher's student is not behind" in out
    assert out.count("passed  ") == 4
    assert str(tmp_path / "report.html") in out


NETWORK = """
from flax import linen as nn

class Hidden(nn.Module):  # shows no features
    num_classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))
"""


def test_a_network_that_hides_its_features_gets_the_other_figures(dataset, tmp_path, monkeypatch):
    (tmp_path / "hidden_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    settings = {
        "dataset": dataset.name,
        "model": "hidden_network:Hidden",
        "learning_rate": 0.1,
        "batch_size": 16,
        "num_steps": 1,
    }
    train.train_and_evaluate(settings, tmp_path / "teacher")
    rows, _ = summary.rows_and_gates(results(), HP, {})
    teachers = [tmp_path / "teacher"] * 2
    with trust.allowed("hidden_network"):
        assert load(tmp_path / "teacher").network.model == "hidden_network:Hidden"
        made = summary.draw_figures(tmp_path, dataset, rows, *teachers, temperature=20.0)
    drawn = [path for _, path in made if path]
    assert [path.name for path in drawn] == ["arms.png", "logit_response.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert "temperature 20" in made[1][0]
