"""Ablations: which runs an axis needs, which it shares, and when ours agree with the paper."""

import pytest

from distill_core import config
from distill_core.config import InputError
from nasty.experiment import ablations
from nasty.experiment.ablations import Point

MEANS = {"teacher_normal": 0.98, "student_of_normal": 0.97, "student_alone": 0.96}
NETWORK = {"model": "resnetc20", "model_kwargs": {}}


def of(name, value, runs):
    return ablations.AXES[name].runs(runs, value)


def trend(name, **series):
    """The verdict on points at values 0, 1, 2, … of mean accuracies."""
    columns = zip(*series.values(), strict=True)
    points = [
        Point(float(i), {name: [each] for name, each in zip(series, column, strict=True)})
        for i, column in enumerate(columns)
    ]
    return ablations.judge(name, points, MEANS)


def changed(run, base):
    return {k: v for k, v in run.settings.items() if base.settings.get(k) != v}


def test_every_omega_has_a_teacher_and_its_student(runs):
    found = of("omega", 0.5, runs)
    base = runs["teacher_nasty"]
    assert changed(found["teacher"], base) == {"omega": 0.5, "check_nastiness": False}
    assert found["teacher"].inputs == base.inputs
    assert found["student"].inputs == {"teacher": found["teacher"]}
    assert not changed(found["student"], runs["student_of_nasty"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("omega", 0.03),
        ("temperature", 20.0),
        ("alpha", 0.9),
        ("data_share", 1.0),
        ("adversary", {"name": "same", "model": "cnn", "model_kwargs": {"widths": [4]}}),
    ],
)
def test_the_value_of_the_comparison_runs_nothing_anew(runs, name, value):
    assert all(run == runs[run.arm] for run in of(name, value, runs).values())


def test_an_adversary_of_another_architecture_is_trained_first(runs):
    found = of("adversary", {"name": "big", **NETWORK}, runs)
    assert list(found) == ["adversary", "teacher", "student"]
    assert changed(found["adversary"], runs["teacher_normal"]) == NETWORK
    assert found["teacher"].inputs == {"adversary": found["adversary"]}
    assert found["teacher"].settings["model"] == "cnn"


@pytest.mark.parametrize("name", ["temperature", "alpha"])
def test_a_students_sweep_keeps_teachers_and_names_both_numbers(runs, name):
    both = {"alpha": 0.9, "temperature": 20.0} | {name: 0.5}
    suffix = f"_alpha{both['alpha']:g}_temperature{both['temperature']:g}"
    for kind, run in of(name, 0.5, runs).items():
        base = runs[f"student_of_{kind}"]
        assert (run.arm, run.inputs) == (base.arm + suffix, base.inputs)
        assert changed(run, base) == {name: 0.5}


def test_a_share_of_the_data_is_the_students_alone(runs):
    found = of("data_share", 0.25, runs)
    assert list(found) == ["alone", "of_normal", "of_nasty"]
    for kind, run in found.items():
        assert changed(run, runs[f"student_{kind}"]) == {"train_share": 0.25}
        assert run.arm == f"student_{kind}_train_share0.25"


@pytest.mark.parametrize("name", ["omega", "temperature", "alpha"])
def test_a_falling_student_agrees_and_a_rising_or_constant_one_does_not(name):
    own, other = ("student", "teacher") if name == "omega" else ("nasty", "normal")
    fell = trend(name, **{own: [0.9, 0.7, 0.8, 0.5], other: [0.9] * 4})
    assert fell.agrees and "-0.80" in fell.measured
    for accuracies in ([0.5, 0.7, 0.8, 0.9], [0.5] * 4):
        assert not trend(name, **{own: accuracies, other: [0.9] * 4}).agrees


@pytest.mark.parametrize(
    ("name", "series", "agrees"),
    [
        # Every adversary has to make an accurate nasty teacher, …
        ("adversary", {"teacher": [0.98, 0.97], "student": [0.6, 0.7]}, True),
        ("adversary", {"teacher": [0.98, 0.95], "student": [0.6, 0.7]}, False),
        ("adversary", {"teacher": [0.98, 0.97], "student": [0.6, 0.98]}, False),
        # … and its student has to be below the normal one's at every share of the data.
        ("data_share", {"of_normal": [0.5, 0.9], "of_nasty": [0.4, 0.8]}, True),
        ("data_share", {"of_normal": [0.5, 0.9], "of_nasty": [0.6, 0.8]}, False),
    ],
)
def test_a_single_value_that_fails_is_enough(name, series, agrees):
    other = "adversary" if name == "adversary" else "alone"
    assert trend(name, **{other: [0.9, 0.9]}, **series).agrees == agrees


def test_values_rise_and_networks_keep_their_names():
    adversaries = {"a": {"model": "cnn"}, "b": NETWORK}
    given = {"omega": (0.5, 0, 0.5), "adversary": adversaries}
    found = ablations.values_of(config.validate(given, ablations.Ablations))
    named = [{"name": name, **network} for name, network in adversaries.items()]
    assert found == {"adversary": named, "omega": [0.0, 0.5]}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"omgea": (0.0, 1.0)}, "omgea"),
        ({"omega": (0.0, -1.0)}, "omega"),
        ({"alpha": (0.5, 1.5)}, "alpha"),
        ({"temperature": (1.0, 1.0)}, "ablations.temperature"),
        ({"adversary": ("cnn", "resnet18")}, "adversary"),
        ({"adversary": {"a": "cnn", "b": NETWORK}}, "ablations.adversary.a.model"),
        ({"adversary": {"a": {"modle": "cnn"}, "b": NETWORK}}, "ablations.adversary.a.modle"),
    ],
    ids=str,
)
def test_wrong_axes_and_values_are_refused(given, field):
    with pytest.raises(InputError) as error:
        ablations.values_of(config.validate(given, ablations.Ablations))
    assert error.value.field == field
