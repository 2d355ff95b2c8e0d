"""Runs to arms, rows, gates and a report."""

import shutil

import numpy as np
import pytest

from distill_core import data, train
from distill_core import load_model as load
from distill_core.experiment.plotting import attempt
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
    "students": {"small": {"model": "mlp"}},
    "data_free": {},
}
GOOD = {
    "teacher_normal": 0.95,
    "teacher_nasty": 0.94,
    "student_alone": 0.90,
    "student_of_normal": 0.91,
    "student_of_nasty": 0.80,
    "self_of_normal": 0.95,
    "self_of_nasty": 0.70,
    "small_alone": 0.8,
    "small_of_normal": 0.8,
    "small_of_nasty": 0.8,
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


gates = summary.gates_of


def missed(found):
    return [gate.name for gate in gates(found) if not gate.passed]


def rows_of(found, attack=None, **changes):
    """Arm -> its row."""
    arms = summary.arms(HP | changes, attack or {})
    return {row.arm: row for row in summary.rows_of(arms, found)}


def test_an_arm_is_a_row_over_its_seeds():
    rows = rows_of(results())
    assert list(rows) == list(GOOD)
    row = rows["student_of_normal"]
    assert row.metrics == {"accuracy": [pytest.approx(0.909), pytest.approx(0.911)]}
    assert row.settings == {"model": "cnn", "alpha": 0.9, "temperature": 20.0}


def test_settings_name_the_network_and_what_shaped_the_arm():
    found = {arm: row.settings for arm, row in rows_of(results()).items()}
    assert found["teacher_normal"] == {"model": "resnet18"}
    assert found["teacher_nasty"] == {
        "model": "resnet18",
        "omega": 0.04,
        "temperature": 20.0,
        "nastiness_check": "nasty, nasty",
    }
    assert found["student_alone"] == {"model": "cnn"}
    assert found["self_of_nasty"] == {"model": "resnet18", "alpha": 0.9, "temperature": 20.0}
    assert found["small_alone"] == {"model": "mlp"}
    assert found["small_of_nasty"] == {"model": "mlp", "alpha": 0.9, "temperature": 20.0}


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
    settings = rows_of(unjudged)["teacher_nasty"].settings
    assert settings["nastiness_check"] == "inconclusive, inconclusive"
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
    settings = rows_of(near, attack)["attacker_of_nasty"].settings
    assert settings == {
        "model": "cnn",
        "alpha": 0.1,
        "temperature": 1.0,
        "chosen_on": "held-out examples",
    }
    assert missed(near) == ["the gap stays at the attacker's best alpha and temperature"]
    assert missed(results(attacker_of_normal=0.92, attacker_of_nasty=0.86)) == []


def test_the_gap_of_the_nastiness_check_is_a_metric_where_every_run_has_one():
    metrics = rows_of(results())["teacher_nasty"].metrics
    assert metrics["nastiness_check_gap"] == [pytest.approx(0.4)] * 2
    assert list(rows_of(results(nasty=None))["teacher_nasty"].metrics) == ["accuracy"]


def test_students_without_data_are_the_last_rows():
    found = results(data_free_of_normal=0.8, data_free_of_nasty=0.5)
    rows = rows_of(found, data_free={"model": "cnn"})
    assert list(rows)[-2:] == ["data_free_of_normal", "data_free_of_nasty"]
    assert rows["data_free_of_nasty"].settings == {"model": "cnn", "data": "none"}
    nasty = [arm.name for arm in summary.arms(HP, {}) if arm.nasty]
    assert nasty == [arm for arm in GOOD if "nasty" in arm]


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


def test_the_report_says_what_was_measured(dataset, tmp_path):
    found = summary.report_of(tmp_path, HP, dataset, results(), {}, Further([], [], {"more": 3}), 1)
    assert (found.method, found.dataset, found.settings) == ("nasty", dataset.name, HP)
    assert found.fields == {"more": 3}
    assert [row.arm for row in found.rows] == list(GOOD)
    assert "nasty teacher classifies 94.0%" in found.summary
    assert "one from the nasty teacher 80.0%" in found.summary
    arms = found.figures[0]
    assert arms.draw(tmp_path / arms.path).read_bytes().startswith(b"\x89PNG")


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
    for arm in ("teacher_normal", "teacher_nasty"):
        shutil.copytree(tmp_path / "teacher", tmp_path / "runs" / arm / "seed1")
    with trust.allowed("hidden_network"):
        assert load(tmp_path / "teacher").network.model == "hidden_network:Hidden"
        made = summary.teacher_figures(tmp_path, HP, dataset)
        drawn = [attempt(each.draw, tmp_path / each.path) for each in made]
    assert drawn == [tmp_path / "figures" / "logit_response.png", None]
    assert drawn[0].read_bytes().startswith(b"\x89PNG")
