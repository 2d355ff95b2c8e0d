"""The attack binary on digits: what each attack learns from, and what it refuses."""

import jax
import numpy as np
import pytest

from distill_core import distill, evaluate, train
from distill_core import load_model as load
from distill_core.config import InputError
from distill_core.runtime import config_file
from distill_core.training import classification
from nasty import attack
from nasty.attacks.averager import class_means

SMALL = {"widths": (4,), "hidden": 8, "norm": "none"}
SKEPTICAL = {"attack": "skeptical", "model": "nasty.attacks.skeptical:SkepticalCNN"}


def settings(**changes):
    return {
        "dataset": "digits",
        "model": "cnn",
        "model_kwargs": SMALL,
        "learning_rate": 0.05,
        "batch_size": 16,
        "num_steps": 4,
        **changes,
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a teacher and its plainly distilled student."""
    folder = tmp_path_factory.mktemp("place")
    train.train_and_evaluate(settings(seed=1), folder / "teacher")
    distill.train_and_evaluate(settings(teacher=str(folder / "teacher")), folder / "distilled")
    return folder


def attacked(place, name, **changes):
    """Runs an attack in `place/name`; returns (result, the student)."""
    given = settings(teacher=str(place / "teacher"), **changes)
    return attack.train_and_evaluate(given, place / name), load(place / name)


def differ(a, b):
    pairs = zip(*(jax.tree.leaves(m.variables["params"]) for m in (a, b)), strict=True)
    return max(float(np.abs(x - y).max()) for x, y in pairs) > 1e-4


def ancestors(model):
    return [each["id"] for each in model.metadata["ledger"]["ancestors"]]


def test_kd_is_plain_distillation_and_a_stingy_teacher_another_one(place):
    result, student = attacked(place, "kd", attack="kd")
    assert result["num_test"] == 360
    assert student.metadata["method"] == "nasty.attack"
    assert ancestors(student) == [load(place / "teacher").metadata["id"]]
    assert not differ(student, load(place / "distilled"))
    _, of_stingy = attacked(place, "stingy", attack="kd", top_k=2)
    assert differ(of_stingy, student)


def test_htc_learns_from_the_teacher(place):
    result, student = attacked(place, "htc", attack="htc", temperature=50.0, multiplier=2.0)
    assert 0 <= result["accuracy"] <= 1
    assert differ(student, load(place / "distilled"))
    # Finished: the same call does nothing again.
    assert attacked(place, "htc", attack="htc", temperature=50.0, multiplier=2.0)[0] == result


def test_the_averager_learns_from_the_means_of_the_training_set_alone(place, monkeypatch):
    given, original = {}, classification.train

    def record(run, objective, **kwargs):
        given.update(kwargs)
        return original(run, objective, **kwargs)

    monkeypatch.setattr(classification, "train", record)
    hp = settings(teacher=str(place / "teacher"), attack="averager", top_k=3, num_validation=287)
    attack.train_and_evaluate(hp, place / "averager")
    student = load(place / "averager")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(student.variables))
    _, splits = classification.load_splits(attack.validate(hp))
    logits = evaluate.compute_logits(load(place / "teacher"), splits.train.images)
    third = np.sort(logits, -1)[:, -3:-2]
    expected = class_means(np.where(logits >= third, logits, -np.inf), splits.train.labels)
    np.testing.assert_allclose(given["frozen"]["class_means"], expected, rtol=1e-5)
    assert np.isneginf(expected).any()
    assert set(given["reads"]) == {"teacher"}


def test_scm_goes_through_intermediate_students(place, capsys):
    result, student = attacked(place, "scm", attack="scm", num_intermediates=2)
    links = [load(place / "scm" / f"intermediate{i}") for i in (1, 2)]
    digests = [load(place / "teacher").metadata["id"], *(m.metadata["id"] for m in links)]
    assert [ancestors(m) for m in (*links, student)] == [[digest] for digest in digests]
    assert [m.metadata["config"]["seed"] for m in (*links, student)] == [1, 2, 0]
    capsys.readouterr()
    assert attacked(place, "scm", attack="scm", num_intermediates=2)[0] == result
    assert capsys.readouterr().err.count("nothing to do") == 3


def test_scm_goes_on_for_more_steps_from_the_intermediates_it_began_with(place, capsys):
    more = {"attack": "scm", "num_intermediates": 2}
    attacked(place, "longer", **more, num_steps=2)
    before = [load(place / "longer" / f"intermediate{i}").metadata for i in (1, 2)]
    attacked(place, "longer", **more)
    assert load(place / "longer").metadata["step"] == 4
    assert [load(place / "longer" / f"intermediate{i}").metadata for i in (1, 2)] == before
    with pytest.raises(InputError) as error:
        attacked(place, "longer", **more, alpha=0.2)
    assert error.value.field == "alpha"


def test_a_skeptical_student_wakes_at_its_step_also_when_it_is_resumed(place):
    skeptical = {**SKEPTICAL, "delay_steps": 3, "top_k": 5}
    result, student = attacked(place, "skeptical", **skeptical)
    attacked(place, "resumed", **skeptical, num_steps=2)
    resumed, _ = attacked(place, "resumed", **skeptical)
    assert resumed | {"id": ""} == result | {"id": ""}
    assert ancestors(student) == [load(place / "teacher").metadata["id"]]
    _, slept = attacked(place, "slept", **SKEPTICAL, delay_steps=4, top_k=5)
    _, other = attacked(place, "other", **SKEPTICAL, delay_steps=4, top_k=5, alpha=0.1)
    assert not differ(slept, other), "asleep, it has heard the teacher"
    assert differ(slept, student)
    _, turned = attacked(place, "turned", **SKEPTICAL, delay_steps=4, top_k=5, rotation=45.0)
    assert differ(slept, turned), "its images were not turned"


@pytest.mark.parametrize("argument", ["", ":skeptical", ":smoke"])
def test_the_config_is_one_of_the_binarys(argument):
    found = config_file.read(f"configs/nasty/attack_digits.py{argument}", [], attack.Settings)
    attack.config.validate(found, attack.Settings)
