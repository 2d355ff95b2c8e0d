"""Attacks against defences: which run makes which teacher, who attacks it, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest

from distill_core import data
from distill_core.config import InputError
from nasty.experiment import contest

ATTACKS = {"kd": {}, "htc": {"temperature": 50.0}, "averager": {}, "scm": {"num_intermediates": 1}}
DEFENCES = {
    "cmim": {"cmim_weight": 2.0},
    "head_only": {"omega": 0.5, "num_steps": 9},
    "nasty": {},
    "nasty_stingy": {"top_k": 3},
    "none": {},
    "stingy": {"top_k": 2},
}


def chosen(attacks, defences):
    return SimpleNamespace(attacks=attacks, defences=defences)


@pytest.fixture
def found(runs):
    return contest.plan(chosen(ATTACKS, DEFENCES), runs)


def test_every_attack_meets_every_defence_after_the_teachers(found):
    assert list(found)[:6] == [(None, name) for name in contest.DEFENCES]
    assert len(found) == 6 + len(ATTACKS) * len(DEFENCES)


def test_a_stingy_teacher_is_the_network_it_was_and_releases_less(found, runs):
    for name, arm, top_k in (("stingy", "teacher_normal", 2), ("nasty_stingy", "teacher_nasty", 3)):
        assert found[None, name] == runs[arm]
        attacked = found["htc", name]
        assert attacked.settings["top_k"] == top_k
        assert attacked.inputs == {"teacher": runs[arm]}


def test_a_head_is_trained_on_the_normal_teacher_against_itself(found, runs):
    run = found[None, "head_only"]
    assert run.inputs == dict.fromkeys(("adversary", "init_from"), runs["teacher_normal"])
    assert run.settings["train_only_head"]
    assert (run.settings["omega"], run.settings["num_steps"]) == (0.5, 9)
    assert found["averager", "head_only"].inputs == {"teacher": run}


def test_cmim_has_no_adversary(found):
    run = found[None, "cmim"]
    assert run.inputs == {}
    assert (run.settings["defence"], run.settings["cmim_weight"]) == ("cmim", 2.0)
    assert not {"omega", "temperature"} & set(run.settings)


def test_attackers_differ_from_the_student_in_their_own_settings_alone(found, runs):
    assert found["kd", "none"] == runs["student_of_normal"]
    assert found["kd", "nasty"] == runs["student_of_nasty"]
    for attack, own in ATTACKS.items():
        run = found[attack, "head_only"]
        assert run.arm == f"{attack}_of_head_only"
        assert run.settings == {**runs["student_of_normal"].settings, "attack": attack, **own}


@pytest.mark.parametrize(
    ("attacks", "defences", "field"),
    [
        (ATTACKS, DEFENCES, None),
        ({"kd": {"tau": 3.0}}, {"none": {}, "cmim": {}}, "attacks.kd.tau"),
        ({"kd": {}}, {"cmim": {"omega": 1}}, "defences.cmim.omega"),
        ({"htc": {"alpha": 3.0}}, {"none": {}}, "attacks.htc.alpha"),
        ({"kd": {"multiplier": 2.0}}, {"none": {}}, "attacks.kd.multiplier"),
        ({"skeptical": {}}, {"none": {}}, "attacks.skeptical.model"),
        ({"kd": {}}, {"stingy": {"top_k": 11}}, "defences.stingy.top_k"),
        ({"hct": {}}, {"none": {}}, "attacks.hct"),
        ({"kd": {}}, {"nastie": {}}, "defences.nastie"),
        ({"kd": 3}, {"none": {}}, "attacks.kd"),
        ({"kd": {}}, {}, "attacks"),
        ({"kd": {}}, {"stingy": {}}, "defences.stingy"),
    ],
)
def test_what_a_binary_refuses_is_found_before_any_run(runs, attacks, defences, field):
    def check():
        contest.check(attacks, defences)
        contest.check_settings(chosen(attacks, defences), runs, data.load_dataset("digits"))

    if field is None:
        return check()
    with pytest.raises(InputError) as error:
        check()
    assert error.value.field == field


def test_results_are_collected_over_seeds():
    seeds = []
    for off in (0.0, 0.1):
        seeds.append(
            {
                (None, "none"): {"accuracy": 0.9 + off, "seconds": 10.0},
                (None, "nasty"): {"accuracy": 0.8, "seconds": 30.0 if off else None},
                ("kd", "none"): {"accuracy": 0.5 + off, "seconds": 1.0},
                ("kd", "nasty"): {"accuracy": 0.4 + off, "seconds": 1.0},
            }
        )
    found = contest.collect(seeds, [0.6, 0.7])
    assert np.allclose(found.attacked["kd", "none"], [0.5, 0.6])
    assert np.allclose(found.teachers["none"], [0.9, 1.0])
    # A teacher that was made in several goes has no time.
    assert found.seconds == {"none": 10.0, "nasty": None}
