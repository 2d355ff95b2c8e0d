"""Ablations: which runs an axis needs, which it shares, and when ours agree with the paper."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from distill_core.config import InputError
from nasty.experiment import ablations
from nasty.experiment.ablations import Point

MEANS = {"teacher_normal": 0.98, "student_of_normal": 0.97, "student_alone": 0.96}


def of(name, value, stages):
    return ablations.AXES[name].stages(stages, value)


def points(**series):
    """Points at values 0, 1, 2, … of mean accuracies."""
    columns = zip(*series.values(), strict=True)
    return [
        Point(float(i), {name: [each] for name, each in zip(series, column, strict=True)})
        for i, column in enumerate(columns)
    ]


def changed(run, base):
    return {k: v for k, v in run.settings.items() if base.settings.get(k) != v}


def test_every_omega_has_a_teacher_and_its_student(stages):
    found = of("omega", 0.5, stages)
    assert changed(found["teacher"], stages["teacher_nasty"]) == {
        "omega": 0.5,
        "check_nastiness": False,
    }
    assert found["teacher"].inputs == stages["teacher_nasty"].inputs
    assert found["student"].inputs == {"teacher": found["teacher"]}
    assert not changed(found["student"], stages["student_of_nasty"])


@pytest.mark.parametrize(
    ("name", "value"), [("omega", 0.03), ("temperature", 20.0), ("alpha", 0.9), ("data_share", 1.0)]
)
def test_the_value_of_the_comparison_runs_nothing_anew(stages, name, value):
    assert {run.arm for run in of(name, value, stages).values()} <= set(stages)


def test_an_adversary_of_another_architecture_is_trained_first(stages):
    network = {"name": "big", "model": "resnetc20", "model_kwargs": {}}
    found = of("adversary", network, stages)
    assert list(found) == ["adversary", "teacher", "student"]
    assert changed(found["adversary"], stages["teacher_normal"]) == {
        "model": "resnetc20",
        "model_kwargs": {},
    }
    assert found["teacher"].inputs == {"adversary": found["adversary"]}
    assert found["teacher"].settings["model"] == "cnn"


def test_the_teachers_own_architecture_as_adversary_is_the_comparisons(stages):
    same = {"name": "same", "model": "cnn", "model_kwargs": {"widths": [4]}}
    found = of("adversary", same, stages)
    assert found["adversary"] == stages["teacher_normal"]
    assert found["teacher"] == stages["teacher_nasty"]


@pytest.mark.parametrize("name", ["temperature", "alpha"])
def test_a_students_sweep_keeps_teachers_and_names_both_numbers(stages, name):
    found = of(name, 0.5, stages)
    assert list(found) == ["normal", "nasty"]
    both = {"alpha": 0.9, "temperature": 20.0} | {name: 0.5}
    suffix = f"_alpha{both['alpha']:g}_temperature{both['temperature']:g}"
    for kind, run in found.items():
        base = stages[f"student_of_{kind}"]
        assert run.arm == base.arm + suffix
        assert run.inputs == base.inputs
        assert changed(run, base) == {name: 0.5}


def test_a_share_of_the_data_is_the_students_alone(stages):
    found = of("data_share", 0.25, stages)
    assert list(found) == ["alone", "of_normal", "of_nasty"]
    for kind, run in found.items():
        assert changed(run, stages[f"student_{kind}"]) == {"train_share": 0.25}
        assert run.arm == f"student_{kind}_train_share0.25"


@pytest.mark.parametrize("name", ["omega", "temperature", "alpha"])
def test_a_falling_student_agrees_and_a_rising_one_does_not(name):
    own = "student" if name == "omega" else "nasty"
    other = "teacher" if name == "omega" else "normal"
    fell = points(**{own: [0.9, 0.7, 0.8, 0.5], other: [0.9] * 4})
    trend = ablations.judge(name, fell, MEANS)
    assert trend.agrees
    assert "-0.80" in trend.measured
    rose = points(**{own: [0.5, 0.7, 0.8, 0.9], other: [0.9] * 4})
    assert not ablations.judge(name, rose, MEANS).agrees
    flat = points(**{own: [0.5] * 4, other: [0.9] * 4})
    assert not ablations.judge(name, flat, MEANS).agrees


@pytest.mark.parametrize(
    ("teacher", "student", "agrees"),
    [(0.97, 0.7, True), (0.95, 0.7, False), (0.97, 0.98, False)],
)
def test_every_adversary_has_to_make_an_accurate_nasty_teacher(teacher, student, agrees):
    found = points(adversary=[0.9, 0.9], teacher=[0.98, teacher], student=[0.6, student])
    assert ablations.judge("adversary", found, MEANS).agrees == agrees


def test_the_nasty_teachers_student_has_to_be_below_at_every_share():
    below = points(alone=[0.5, 0.9], of_normal=[0.5, 0.9], of_nasty=[0.4, 0.8])
    assert ablations.judge("data_share", below, MEANS).agrees
    once_above = points(alone=[0.5, 0.9], of_normal=[0.5, 0.9], of_nasty=[0.6, 0.8])
    trend = ablations.judge("data_share", once_above, MEANS)
    assert not trend.agrees
    assert "-10.0 to 10.0 points" in trend.measured


def test_the_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 20), rng.integers(0, 5, 20)  # with ties
    assert ablations.rank_correlation(x, y) == pytest.approx(spearmanr(x, y).statistic)


@pytest.mark.parametrize(
    "given",
    [
        {"omgea": (0.0, 1.0)},
        {"omega": (0.0, -1.0)},
        {"alpha": (0.5, 1.5)},
        {"temperature": (1.0,)},
        {"adversary": ("cnn", "resnet18")},
        {"adversary": {"a": {"modle": "cnn"}, "b": {"model": "cnn"}}},
    ],
    ids=str,
)
def test_wrong_axes_and_values_are_refused(given):
    with pytest.raises(InputError) as error:
        ablations.check(given)
    assert error.value.field == f"ablations.{next(iter(given))}"
