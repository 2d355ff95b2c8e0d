"""Teachers on disjoint partitions: who learns from what, and what comes out."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core import data, load_model
from distill_core.config import InputError
from distill_core.models import CONSTANTS, checks
from distill_core.models.network import Network, image_network
from distill_core.runtime import config_file
from distill_core.training.optimizers import Optimizer
from distill_core.training.step import TrainState, Update
from dpdfd.ensemble import partition_fit, partitions
from dpdfd.ensemble.network import Ensemble, answers
from dpdfd.ensemble.partitions import partition
from dpdfd.ensemble.training import MODEL, Settings, train_and_evaluate

TEACHERS, NUM = 5, 48
RIDGE = {
    "model": "dpdfd.features:FeatureRidge", "model_kwargs": {"num_random": 24}, "copies": 2,
}  # fmt: skip
MEMBERS = {
    "ridge": RIDGE,
    "scattering": {
        "model": "scattering",
        "copies": 1,
        "ridge": 10.0,
        "model_kwargs": {"J": 1, "L": 2, "components": 12, "whitening": ("noise",)},
    },
    "mlp": {"model": "dpdfd.features:FeatureMLP", "model_kwargs": {"hidden": (6,)}},
    "cnn": {"model": "cnn", "model_kwargs": {"widths": (4,), "hidden": 6, "norm": "group"}},
}
GRADIENT = {"batch_size": 8, "num_steps": 3, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def digits():
    """The arrays of a small data set, as a file has them."""
    found = data.load_dataset("digits")
    return {
        "x_train": found.train.images[:NUM], "y_train": found.train.labels[:NUM],
        "x_test": found.test.images[:20], "y_test": found.test.labels[:20],
    }  # fmt: skip


@pytest.fixture(scope="module")
def fit(digits, tmp_path_factory):
    """`fit(name, arrays, **settings)`: the stacked parameters, and what the run returned."""
    folder = tmp_path_factory.mktemp("ensembles")

    def run(name, arrays=None, **settings):
        np.savez(folder / "data.npz", **(digits if arrays is None else arrays))
        workdir = folder / name
        result = train_and_evaluate(
            {
                "dataset": f"npz:{folder}/data.npz",
                "num_teachers": TEACHERS, **GRADIENT, **RIDGE, **settings,
            },
            workdir,
        )  # fmt: skip
        return load_model(workdir).variables["params"]["members"], result, workdir

    return run


def changed(first, second):
    """The teachers whose parameters differ in any bit."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    differ = [(a != b).reshape(len(a), -1).any(1) for a, b in pairs]
    return set(np.flatnonzero(np.any(differ, axis=0)).tolist())


def teacher_of(record):
    return int(partition(np.array([record]), TEACHERS)[0])


# Momentum, weight decay and rates that rise or fall couple no teachers.
COUPLED = {
    **MEMBERS["mlp"], "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01,
    "schedule": "cosine", "warmup_steps": 2, "deform": 0.0, "num_steps": 8, "save_every": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "what"),
    [
        *[(name, what) for name in MEMBERS for what in ("label", "content")],
        *[("sgd", "label"), ("ridge", "less"), ("mlp", "less")],
    ],
)
def test_a_changed_record_changes_its_own_teacher_and_no_bit_of_another(fit, digits, name, what):
    record, settings = 13, MEMBERS.get(name, COUPLED)
    before = fit(f"{name}_plain", **settings)[0]
    arrays = {key: array.copy() for key, array in digits.items()}
    if what == "label":
        arrays["y_train"][record] = (arrays["y_train"][record] + 1) % 10
    elif what == "content":
        arrays["x_train"][record] = 255 - arrays["x_train"][record]
    else:
        record = NUM - 1
        arrays |= {key: digits[key][:-1] for key in ("x_train", "y_train")}
    after = fit(f"{name}_{what}", arrays, **settings)[0]
    assert changed(before, after) == {teacher_of(record)}


def test_a_batch_holds_each_teachers_own_records_all_of_them_once_an_epoch():
    members = partitions.members_of(np.arange(23), 4)
    rows = np.concatenate([partitions.batch_rows(3, step, 4, members) for step in range(30)])
    assert rows.shape == (120, 4)
    for teacher, mine in enumerate(members):
        epochs = rows[:, teacher][: 120 // len(mine) * len(mine)].reshape(-1, len(mine))
        assert (np.sort(epochs) == np.sort(mine)).all()
        assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1


def test_a_copy_depends_on_its_records_own_index_and_pixels_alone(digits):
    images = digits["x_train"][:4].astype(np.float32) / 255
    index = np.arange(4) + 9

    @functools.partial(jax.jit, static_argnames="flip")
    def copies(images, index, strength=1.0, flip=False):
        key, settings = jax.random.key(0), {"strength": strength, "flip": flip}
        return partitions.affine_copies(key, images, index, copies=4, **settings)

    found = np.asarray(copies(images, index))
    assert found.shape == (4, 4, 8, 8, 1)
    np.testing.assert_array_equal(np.asarray(copies(images[::-1], index[::-1]))[::-1], found)
    assert np.abs(found - images[:, None]).max((2, 3, 4)).min() > 0.01
    same = np.asarray(copies(images, index, 0.0))
    np.testing.assert_allclose(same, np.repeat(images[:, None], 4, 1), atol=1e-6)
    mirrored = np.asarray(copies(images, index, 0.0, flip=True))
    straight = np.isclose(mirrored, images[:, None], atol=1e-5).all((2, 3, 4))
    turned = np.isclose(mirrored, images[:, None, :, ::-1], atol=1e-5).all((2, 3, 4))
    assert (straight != turned).all() and 2 < turned.sum() < 14


@pytest.mark.parametrize("rows", [6, 40])
def test_the_closed_form_is_the_least_squares_solution(rows):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows, 12)), rng.normal(size=(rows, 3))
    weight = np.ones((rows, 1))
    weight[-2:] = 0
    kernel, bias, loss = jax.jit(partition_fit.solve_ridge)(
        *(jnp.asarray(each, jnp.float32) for each in (x, y, weight)), 0.3
    )
    x, y = x[:-2], y[:-2]
    centred = x - x.mean(0)
    expected = np.linalg.solve(centred.T @ centred + 0.3 * np.eye(12), centred.T @ (y - y.mean(0)))
    np.testing.assert_allclose(kernel, expected, atol=1e-5)
    np.testing.assert_allclose(bias, y.mean(0) - x.mean(0) @ expected, atol=1e-5)
    np.testing.assert_allclose(
        loss, np.square(x @ expected + np.asarray(bias) - y).sum() / len(x), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", MEMBERS)
def test_votes_and_probabilities_are_those_of_the_members(fit, digits, name):
    stacked, result, workdir = fit(f"{name}_plain", **MEMBERS[name])
    loaded = load_model(workdir)
    assert Network.from_json(json.loads(json.dumps(loaded.network.to_json()))) == loaded.network
    said = jax.jit(answers, static_argnums=0, static_argnames="kind")
    images = digits["x_test"]
    votes = np.asarray(said(loaded.network, loaded.variables, images))
    probs = np.asarray(said(loaded.network, loaded.variables, images, kind="probabilities"))
    assert votes.shape == probs.shape == (TEACHERS, 20, 10)
    assert votes.dtype == probs.dtype == np.float32
    assert set(np.unique(votes).tolist()) == {0, 1}
    np.testing.assert_allclose(votes.sum(-1), 1)
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(votes.argmax(-1), probs.argmax(-1))

    own = {field: MEMBERS[name][field] for field in ("model", "model_kwargs")}
    alone = jax.jit(dataclasses.replace(loaded.network, **own).apply)
    for teacher in range(TEACHERS):
        params = jax.tree.map(lambda leaf, m=teacher: leaf[m], stacked)
        own = jax.nn.softmax(alone({**loaded.variables, "params": params}, images))
        np.testing.assert_allclose(probs[teacher], own, atol=1e-5)

    log_mean = jax.jit(loaded.apply)(loaded.variables, images)
    np.testing.assert_allclose(log_mean, np.log(probs.mean(0)), atol=1e-4)
    right = digits["y_test"]
    assert result["accuracy"] == pytest.approx((votes.mean(0).argmax(-1) == right).mean())
    assert result["member_accuracy"] == pytest.approx((votes.argmax(-1) == right).mean())
    assert (result["num_test"], result["validation_accuracy"]) == (20, None)
    assert result["id"] == loaded.metadata["id"]
    assert loaded.metadata["ledger"] == {"mechanisms": [], "ancestors": []}
    assert (CONSTANTS in loaded.variables) == (name == "scattering")


def test_members_share_constants_that_are_stored_once(fit):
    own = MEMBERS["scattering"]
    loaded = load_model(fit("scattering_plain", **own)[2])
    alone = dataclasses.replace(loaded.network, **{f: own[f] for f in ("model", "model_kwargs")})
    expected = alone.init(jax.random.key(0))[1][CONSTANTS]
    jax.tree.map(np.testing.assert_array_equal, loaded.variables[CONSTANTS], expected)
    assert expected["projection"].shape[1] == 12


def test_a_resumed_ensemble_has_the_constants_of_its_checkpoint(fit, monkeypatch):
    """Another machine would fit others, and teachers before and after would differ."""
    settings = {**MEMBERS["scattering"], "save_every": 2}
    whole, _, path = fit("scattering_straight", **settings)
    original, init = partitions.whole, Network.init

    def dies(*args):
        if args[2] == 3:
            raise KeyboardInterrupt
        return original(*args)

    def elsewhere(self, key, constants=None):
        params, state = init(self, key, constants)
        return params, jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(1.01), state)

    with monkeypatch.context() as patch:
        patch.setattr(partitions, "whole", dies)
        with pytest.raises(KeyboardInterrupt):
            fit("scattering_moved", **settings)
    monkeypatch.setattr(Network, "init", elsewhere)
    resumed, _, moved = fit("scattering_moved", **settings)
    assert changed(resumed, whole) == set()
    found, expected = (load_model(each).variables[CONSTANTS] for each in (moved, path))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_separate_steps_are_the_joint_step_and_keep_teachers_apart(digits):
    """On one CPU device each teacher has a call of its own."""
    own = MEMBERS["cnn"]
    adam = Optimizer(optimizer="adam", learning_rate=0.01, num_steps=2)
    one = image_network(data.load_dataset("digits"), **own)
    kwargs = {"num_teachers": 3, "member": own["model"], "member_kwargs": own["model_kwargs"]}
    params, _ = dataclasses.replace(one, model=MODEL, model_kwargs=kwargs).init(jax.random.key(0))
    objective = partition_fit.MemberLoss(one, strength=1.0, flip=False)
    separate = partition_fit.SeparateUpdate(objective, adam)
    joint = Update(objective, adam, partition_fit.member_gradients)
    rows = np.arange(12).reshape(4, 3)

    def after_two(step, labels):
        own_params = jax.tree.map(jnp.copy, params)  # a step uses its state up
        tx, rng = adam.make(), jax.random.key(1)
        state = TrainState.create(params=own_params, model_state={}, tx=tx, rng=rng)
        batch = {"image": digits["x_train"][rows], "label": labels, "index": rows}
        for _ in range(2):
            state, metrics = step(state, {}, batch)
        return jax.device_get((state.params["members"], metrics))

    labels = digits["y_train"][rows]
    first, metrics = after_two(separate, labels)
    second, expected = after_two(jax.jit(joint), labels)
    assert metrics.keys() == expected.keys() == {"loss", "accuracy", "grad_norm"}
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), first, second)
    labels = labels.copy()
    labels[2, 1] = (labels[2, 1] + 1) % 10
    assert changed(first, after_two(separate, labels)[0]) == {1}


def test_the_vote_of_ridge_teachers_reads_digits(tmp_path):
    path = Path(__file__).parents[3] / "configs/dpdfd/ensemble_digits.py"
    more = [("num_validation", "100"), ("num_teachers", "16")]
    found = train_and_evaluate(config_file.read(f"{path}:smoke", more, Settings), tmp_path)
    assert found["accuracy"] > 0.9
    assert found["accuracy"] > found["member_accuracy"] > 0.7
    assert found["validation_accuracy"] > 0.85  # of 100 examples


@pytest.mark.parametrize("name", ["ridge", "mlp"])
def test_a_killed_run_goes_on_to_the_same_teachers(fit, monkeypatch, capsys, name):
    settings = {**MEMBERS[name], "save_every": 2}
    whole = fit(f"{name}_whole", **settings)[0]
    reader = "whole" if name == "ridge" else "batch_rows"
    original = getattr(partitions, reader)

    def dies(*args):
        if args[1 if name == "mlp" else 2] == 2:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(partitions, reader, dies)
        with pytest.raises(KeyboardInterrupt):
            fit(f"{name}_killed", **settings)
    resumed = fit(f"{name}_killed", **settings)[0]
    assert changed(resumed, whole) == set()
    assert "resumes from step 2" in capsys.readouterr().err
    with pytest.raises(InputError, match="seed: got 5; this run was started with 0"):
        fit(f"{name}_killed", **settings, seed=5)


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("clip_norm", {**COUPLED, "clip_norm": 1.0}),
        ("num_teachers", {"num_teachers": NUM + 1}),
        ("num_teachers", {"num_teachers": NUM - 8, "num_validation": 8}),
        ("num_teachers", {"num_teachers": 0}),
        ("model", {"model": "cnn", "model_kwargs": {"widths": (4,)}}),  # batch statistics
        ("batch_size", {**MEMBERS["mlp"], "batch_size": 9}),
        ("model_kwargs.num_classes", {"model_kwargs": {"num_classes": 3}}),
        ("ridge", {"ridge": 0.0}),
    ],
)
def test_what_cannot_be_is_refused(fit, field, settings):
    with pytest.raises(InputError, match=f"^{field}: "):
        fit("refused", **settings)


def test_only_an_ensemble_has_answers_and_of_two_kinds():
    dataset = data.load_dataset("digits")
    images = np.zeros((3, 8, 8, 1), np.float32)
    plain = image_network(dataset, model="cnn", model_kwargs={})
    with pytest.raises(InputError, match="^teacher: "):
        answers(plain, {}, images)
    kwargs = {"num_teachers": 2, "member": "cnn", "member_kwargs": {"widths": [4], "norm": "none"}}
    network = image_network(dataset, model=MODEL, model_kwargs=kwargs)
    checks.check(network)
    with pytest.raises(InputError, match="^kind: "):
        jax.eval_shape(lambda v: answers(network, v, images, kind="logits"), network.shapes())
    assert hash(network.module()) == hash(Ensemble(num_classes=10, **kwargs))
