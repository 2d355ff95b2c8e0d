"""Every image method's checkpoint is a teacher to every other method, and a network to evaluate."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from distill_core import checkpoint, data, distill, evaluate, load_model, train
from distill_core.privacy import ledger
from distill_core.runtime import parallel
from dpdfd import train as conversion
from dpdfd.ensemble import training as ensemble
from nasty import attack
from nasty import train as nasty_train

NETWORK = {"model": "cnn", "model_kwargs": {"widths": (4,), "hidden": 8}}
# Without batch statistics, as private gradients and conversions want it.
PLAIN = {"model": "cnn", "model_kwargs": {"widths": (4,), "hidden": 8, "norm": "none"}}
SKEPTICAL = {"model": "nasty.attacks.skeptical:SkepticalCNN"}
RIDGE = {
    "model": "dpdfd.features:FeatureRidge",
    "model_kwargs": {"num_random": 8},
    "copies": 0,
}


class Run(NamedTuple):
    """A binary with its settings; the field `source` takes the checkpoint that it learns from."""

    binary: Any
    settings: dict[str, Any]
    source: str = "teacher"


METHODS = {
    "distill": Run(distill, {}),
    "nasty": Run(nasty_train, {"temperature": 4.0, "omega": 0.2, "check_nastiness": False},
                 "adversary"),
    "kd": Run(attack, {"attack": "kd"}),
    "skeptical": Run(attack, {"attack": "skeptical", **SKEPTICAL}),
    "convert": Run(conversion, {
        **PLAIN, "dataset": None, "privacy_unit": "none",
        "generator": {"width": 2, "latent_size": 4, "norm": "none"},
    }),
    # The other attacks.
    "htc": Run(attack, {"attack": "htc", "temperature": 50.0}),
    "averager": Run(attack, {"attack": "averager"}),
    "scm": Run(attack, {"attack": "scm", "num_intermediates": 1}),
}  # fmt: skip
FOR_ALL = ("distill", "nasty", "kd", "convert")
OTHERS = ("htc", "averager", "scm", "skeptical")

# How each teacher was made, and from which other one.
TEACHERS = {
    "plain": (Run(train, {"seed": 1}), None),
    "dp_sgd": (Run(train, {**PLAIN, "dp": {"epsilon": 5.0, "delta": 1e-4, "norm": 0.5}}), None),
    "distilled": (METHODS["distill"], "plain"),
    "nasty": (METHODS["nasty"], "plain"),
    "nasty_head": (
        Run(nasty_train, {**METHODS["nasty"].settings, "train_only_head": True}, "adversary"),
        "plain",
    ),
    "cmim": (Run(nasty_train, {"defence": "cmim"}), None),
    "of_nasty": (METHODS["kd"], "nasty"),
    "skeptical": (METHODS["skeptical"], "nasty"),
    "converted": (METHODS["convert"], "plain"),
    "ensemble": (Run(ensemble, {**RIDGE, "num_teachers": 3}), None),
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Eight cost more to compile."""
    monkeypatch.setattr(parallel, "choose_mode", lambda mode=None: mode or "jit")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(teacher)` and `made(teacher, method)`: folders of the finished runs, made on demand."""
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def begin(run, name, source):
        given = {
            "dataset": "digits", **NETWORK, "learning_rate": 0.05, "batch_size": 16,
            "num_steps": 2, **run.settings,
        }  # fmt: skip
        if source is not None:
            given[run.source] = str(source)
        if given.get("train_only_head"):
            given["init_from"] = str(source)
        run.binary.train_and_evaluate(given, folder / name)
        return folder / name

    def get(teacher, method=None):
        if (teacher, method) not in done:
            if method is None:
                run, source = TEACHERS[teacher]
                path = begin(run, teacher, source and get(source))
            else:
                path = begin(METHODS[method], f"{method}_of_{teacher}", get(teacher))
            done[teacher, method] = path
        return done[teacher, method]

    return get


def metadata(path):
    return checkpoint.find(path)[1]


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("method", FOR_ALL)
def test_every_method_learns_from_every_methods_checkpoint(made, method, teacher):
    """And names it, with all that it cost in privacy."""
    path, theirs = made(teacher, method), metadata(made(teacher))
    (ancestor,) = metadata(path)["ledger"]["ancestors"]
    assert ancestor["id"] == theirs["id"]
    assert ledger.read(ancestor["ledger"]) == ledger.read(theirs["ledger"])
    student = load_model(path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(student.variables))


@pytest.mark.parametrize("method", FOR_ALL)
def test_students_of_different_teachers_differ(made, method):
    """They are equal in all else, so each has heard its own."""
    students = [load_model(made(teacher, method)).variables for teacher in TEACHERS]
    assert len(set(map(checkpoint.digest, students))) == len(TEACHERS)


@pytest.mark.parametrize("method", OTHERS)
def test_other_attacks_learn_from_a_nasty_teacher(made, method):
    path, id = made("nasty", method), metadata(made("nasty"))["id"]
    first = path / "intermediate1" if method == "scm" else path
    (ancestor,) = metadata(first)["ledger"]["ancestors"]
    assert ancestor["id"] == id
    students = [load_model(each).variables for each in (path, made("nasty", "kd"))]
    assert checkpoint.digest(students[0]) != checkpoint.digest(students[1])


@pytest.mark.parametrize("teacher", TEACHERS)
def test_every_checkpoint_can_be_evaluated(made, teacher):
    found = evaluate.evaluate_checkpoint(made(teacher), dataset="digits")
    model, test = load_model(made(teacher)), data.load_dataset("digits").test
    logits = np.asarray(jax.jit(model.apply)(model.variables, test.images))
    assert found["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == test.labels), abs=1e-6)
    assert found["examples"] == len(test)


def test_the_price_of_private_training_reaches_students_of_students(made):
    """Through any method between: here, of a DP-SGD teacher's nasty heir."""
    (nasty,) = metadata(made("dp_sgd", "nasty"))["ledger"]["ancestors"]
    (entry,) = nasty["ledger"]["mechanisms"]
    assert (entry["mechanism"], entry["count"]) == ("poisson_gaussian", 2)
