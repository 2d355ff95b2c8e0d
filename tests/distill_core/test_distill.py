"""Distillation from a checkpoint and from stored logits."""

import jax
import numpy as np
import pytest

from distill_core import distill, evaluate, step, train
from distill_core import load_model as load
from distill_core.config import InputError

TRAIN = 50


@pytest.fixture(scope="module")
def place(tmp_path_factory, three_classes):
    """A folder with data, a teacher and its logits of the train split."""
    folder = tmp_path_factory.mktemp("place")
    three_classes(folder / "data.npz", train=TRAIN)
    # Large, to be missed in a student's checkpoint.
    teacher = settings(folder, model_kwargs={"widths": (4,), "hidden": 1000})
    train.train_and_evaluate(teacher, folder / "teacher")
    evaluate.evaluate_checkpoint(
        folder / "teacher", split="train", logits_out=folder / "logits.npz"
    )
    return folder


def settings(place, **changes):
    network = {"model": "cnn", "model_kwargs": {"widths": (4,), "hidden": 8, "norm": "none"}}
    given = {"learning_rate": 0.05, "batch_size": 16, "num_steps": 4}
    return {"dataset": f"npz:{place}/data.npz", **network, **given, **changes}


def student(place, name, **changes):
    """Distils into `place/name`; returns the student's parameters."""
    live = {"teacher": str(place / "teacher"), **changes}
    distill.train_and_evaluate(settings(place, **live), place / name)
    return load(place / name).variables["params"]


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)


def differ(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(x - y).max()) for x, y in pairs) > 1e-3


@pytest.mark.parametrize("num_validation", [0, 9])
def test_stored_logits_teach_what_the_teacher_itself_does(place, num_validation):
    name, changes = f"of{num_validation}", {"num_validation": num_validation, "seed": 3}
    live = student(place, f"live_{name}", **changes)
    stored = student(place, f"stored_{name}", teacher=f"npz:{place}/logits.npz", **changes)
    assert_close(live, stored)

    arrays = dict(np.load(place / "logits.npz"))
    arrays["logits"] = np.roll(arrays["logits"], 1, axis=0)
    np.savez(place / "rolled.npz", **arrays)
    rolled = student(place, f"rolled_{name}", teacher=f"npz:{place}/rolled.npz", **changes)
    assert differ(live, rolled)  # the rows matter


def test_without_distillation_the_student_is_a_plain_classifier(place):
    plain = settings(place)
    train.train_and_evaluate(plain, place / "plain")
    alone = load(place / "plain").variables["params"]
    assert_close(student(place, "alpha0", alpha=0.0), alone)
    assert differ(student(place, "alpha1", alpha=1.0), alone)


def test_the_teacher_is_not_in_the_students_checkpoint(place):
    student(place, "small")
    sizes = {
        name: sum(
            p.stat().st_size for p in (place / name / "checkpoints").rglob("*") if p.is_file()
        )
        for name in ("small", "teacher")
    }
    teacher = load(place / "teacher")
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(teacher.variables))
    assert sizes["small"] < weights / 2 < sizes["teacher"]
    metadata = load(place / "small").metadata
    assert list(metadata["parts"]) == ["model"]
    assert metadata["parts"]["model"]["model_kwargs"]["hidden"] == 8
    assert metadata["method"] == "distill_core.distill"
    assert metadata["ledger"]["ancestors"] == [
        {"id": teacher.metadata["id"], "ledger": teacher.metadata["ledger"]}
    ]


@pytest.mark.parametrize("teacher", ["live", "stored"])
def test_students_that_differ_in_seed_temperature_and_alpha_compile_once(
    place, monkeypatch, teacher
):
    traces = []

    def loss(*args, **kwargs):
        traces.append(args)
        return original(*args, **kwargs)

    original = step.distillation_loss
    monkeypatch.setattr(step, "distillation_loss", loss)
    changes = {"model_kwargs": {"widths": (4,), "hidden": 7, "norm": "none"}}
    if teacher == "stored":
        changes["teacher"] = f"npz:{place}/logits.npz"
    found = [
        student(place, f"once_{teacher}_{i}", **changes, **more)
        for i, more in enumerate(({}, {"seed": 1}, {"temperature": 9.0}, {"alpha": 0.3}))
    ]
    assert len(traces) == 1
    assert all(differ(found[0], other) for other in found[1:])


def test_a_standardized_student_knows_neither_shift_nor_scale_of_its_teachers_logits(place):
    arrays = dict(np.load(place / "logits.npz"))
    shift = np.linspace(-4, 4, TRAIN, dtype=np.float32)[:, None]
    np.savez(place / "moved.npz", **{**arrays, "logits": 4.0 * arrays["logits"] - shift})
    found = {
        (name, way): student(
            place, f"{name}_{way}", teacher=f"npz:{place}/{name}.npz", standardize=way, alpha=1.0
        )
        for name in ("logits", "moved")
        for way in (True, False)
    }
    live = student(place, "standardized_live", standardize=True, alpha=1.0)
    assert_close(found["logits", True], live)
    assert_close(found["logits", True], found["moved", True])
    assert differ(found["logits", False], found["moved", False])
    assert differ(found["logits", False], found["logits", True])


def test_logits_that_are_not_of_this_training_split_are_refused(place):
    evaluate.evaluate_checkpoint(place / "teacher", logits_out=place / "test.npz")
    with pytest.raises(InputError, match=r"`logits` are \(21, 3\); the training split needs"):
        student(place, "refused", teacher=f"npz:{place}/test.npz")
    arrays = dict(np.load(place / "logits.npz"))
    np.savez(place / "shuffled.npz", **{name: each[::-1] for name, each in arrays.items()})
    with pytest.raises(InputError, match="its `labels` are not those of"):
        student(place, "refused", teacher=f"npz:{place}/shuffled.npz")
    np.save(place / "array.npy", arrays["logits"])
    with pytest.raises(InputError, match="holds no readable `logits`"):
        student(place, "refused", teacher=f"npz:{place}/array.npy")
    assert not (place / "refused").exists()
