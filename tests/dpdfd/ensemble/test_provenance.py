"""Whose answers are sold for √2/M: an ensemble's whose teachers are known to share no record."""

import dataclasses
import math

import pytest

from distill_core import distill, load_model
from distill_core import train as plain
from distill_core.config import InputError
from distill_core.runtime import parallel
from dpdfd import train
from dpdfd.ensemble import partitions, provenance
from dpdfd.ensemble import training as ensemble

TEACHERS = 6
MEMBER = {"member": "dpdfd.features:FeatureMLP", "member_kwargs": {"hidden": (3,)}}
JOINT = {
    "dataset": "digits", "model": provenance.ENSEMBLE, "learning_rate": 0.01, "num_steps": 2,
    "model_kwargs": {"num_teachers": TEACHERS, **MEMBER}, "batch_size": 16,
}  # fmt: skip
RIDGE = {
    "dataset": "digits", "num_teachers": TEACHERS, "copies": 0, "num_validation": 37,
    "model": "dpdfd.features:FeatureRidge", "model_kwargs": {"num_random": 8},
}  # fmt: skip
GRADIENT = {
    **RIDGE, "model": MEMBER["member"], "model_kwargs": MEMBER["member_kwargs"],
    "batch_size": 8, "num_steps": 4, "save_every": 2,
}  # fmt: skip
CONVERSION = {
    "model": "cnn", "model_kwargs": {"widths": [2], "hidden": 4, "norm": "none"},
    "learning_rate": 0.05, "batch_size": 16, "num_steps": 2, "num_rounds": 1, "num_queries": 16,
    "prior": {"strokes": 1.0}, "generator": {"width": 2, "latent_size": 4, "every": 0},
    "privacy_unit": "record_ensemble", "mechanism": "answers", "epsilon": 5.0,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Eight cost more to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "choose_mode", lambda mode=None: mode or "jit")
        yield


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Workdirs by name: an ensemble's, and others whose network is of the same class."""
    folder = tmp_path_factory.mktemp("teachers")
    ensemble.train_and_evaluate(RIDGE, folder / "ridge")
    ensemble.train_and_evaluate(GRADIENT, folder / "gradient")
    plain.train_and_evaluate(JOINT, folder / "joint")
    begun = {**JOINT, "init_from": str(folder / "gradient")}
    plain.train_and_evaluate(begun, folder / "begun_from_an_ensemble")
    taught = {**JOINT, "teacher": str(folder / "gradient")}
    distill.train_and_evaluate(taught, folder / "distilled")
    return folder


def test_an_ensembles_answers_cost_the_root_of_two_over_the_number_of_its_teachers(
    teachers, tmp_path
):
    for name in ("ridge", "gradient"):
        found = provenance.check("runs/e", load_model(teachers / name))
        assert (found["num_teachers"], found["num_examples"]) == (TEACHERS, 1400)
        assert (found["partition"], found["disjoint"]) == (partitions.RULE, True)
    given = {**CONVERSION, "teacher": str(teachers / "gradient")}
    found = train.train_and_evaluate(given, tmp_path / "student")
    (entry,) = found["ledger"]["mechanisms"]
    assert entry["sensitivity"] == pytest.approx(math.sqrt(2) / TEACHERS, rel=1e-3)
    assert entry["num_examples"] == 1400


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("joint", "was trained by distill_core.train, which does not keep teachers apart"),
        ("begun_from_an_ensemble", "was trained by distill_core.train"),
        ("distilled", "was trained by distill_core.distill"),
        ("gradient/checkpoints/2", "is not finished: 2 of 4 steps; resume dpdfd.ensemble there"),
        ("student", "is a single network; 'record_ensemble' needs a checkpoint of dpdfd.ensemble"),
    ],
)
def test_another_network_of_that_class_is_refused(teachers, tmp_path, name, why):
    if name == "student":
        single = {**JOINT, "model": MEMBER["member"], "model_kwargs": MEMBER["member_kwargs"]}
        plain.train_and_evaluate(single, teachers / name)
    given = {**CONVERSION, "teacher": str(teachers / name)}
    with pytest.raises(InputError) as caught:
        train.train_and_evaluate(given, tmp_path / "run")
    assert str(caught.value).startswith(f"teacher: got {given['teacher']!r}; {why}")
    assert not (tmp_path / "run").exists()


BEFORE = {"mechanisms": [], "ancestors": [{"id": "d", "ledger": {}}]}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        *[({"method": name}, str(name)) for name in ("nasty.train", "torch", None)],
        ({"ledger": BEFORE}, "made from other checkpoints"),
        ({"ensemble": {}}, "partition: got None"),
        ({"ensemble.partition": "index mod M"}, "partition: got 'index mod"),
        ({"ensemble.disjoint": False}, "share records"),
        ({"ensemble.num_examples": 0}, "num_examples: got 0"),
        ({"ensemble.num_teachers": 500}, "500 teachers"),
        ({"ensemble.num_steps": 9}, "4 of 9 steps"),
    ],
)
def test_every_word_of_it_is_looked_at(teachers, changes, named):
    model = load_model(teachers / "gradient")
    metadata = {**model.metadata, "ensemble": dict(model.metadata["ensemble"])}
    for name, value in changes.items():
        group, _, inner = name.partition(".")
        if inner:
            metadata[group][inner] = value
        else:
            metadata[group] = value
    with pytest.raises(InputError, match=f"^teacher: got 'runs/e'; .*{named}"):
        provenance.check("runs/e", dataclasses.replace(model, metadata=metadata))


def test_no_ensemble_goes_on_from_a_joint_network(teachers, tmp_path):
    """It starts from no other network, and resumes no other binary's run."""
    with pytest.raises(InputError, match="init_from: got .*; no such field"):
        ensemble.train_and_evaluate({**GRADIENT, "init_from": "runs/e"}, tmp_path / "run")
    with pytest.raises(InputError, match="this run was started with"):
        ensemble.train_and_evaluate({**GRADIENT, "num_validation": 0}, teachers / "joint")


@pytest.mark.parametrize(
    ("field", "changes"),
    [("delta", {"delta": 1e-3}), ("num_examples", {"delta": 1e-3, "num_examples": 100})],
)
def test_delta_is_held_against_the_number_of_records_that_the_ensemble_names(
    teachers, tmp_path, field, changes
):
    given = {**CONVERSION, "teacher": str(teachers / "gradient"), **changes}
    with pytest.raises(InputError, match=f"^{field}: "):
        train.train_and_evaluate(given, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
