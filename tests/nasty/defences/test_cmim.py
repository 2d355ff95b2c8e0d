"""CMIM: the loss and the centroids against NumPy, and a run that concentrates each class."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from distill_core import cross_entropy, data, evaluate, load_model
from distill_core.config import InputError
from distill_core.runtime import collectives, parallel
from distill_core.training import loop
from nasty import step as nasty_step
from nasty import train as nasty_train
from nasty.defences.cmim import cmim_loss, update_centroids

C, WEIGHT, TEMPERATURES, DECAY = 5, 3.0, (1.0, 4.0), 0.9
loss = functools.partial(cmim_loss, weight=WEIGHT, temperatures=TEMPERATURES)
update = functools.partial(update_centroids, temperatures=TEMPERATURES, decay=DECAY)
softmax = functools.partial(special.softmax, axis=-1)


def draw(shape=(4,)):
    rng = np.random.default_rng(0)
    return (
        rng.normal(scale=3, size=(*shape, C)).astype(np.float32),
        rng.integers(0, C, shape, dtype=np.int32),
        softmax(rng.normal(size=(len(TEMPERATURES), C, C))).astype(np.float32),
    )


def divergence(logits, labels, centroids):
    found = []
    for t, of_class in zip(TEMPERATURES, centroids, strict=True):
        p, q = softmax(logits / t), of_class[labels]
        found.append((p * np.log(p / q)).sum(-1))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
def test_the_loss_is_the_formulas(shape):
    logits, labels, centroids = draw(shape)
    found = jax.jit(loss)(logits, labels, centroids)
    assert found.shape == shape
    assert found.dtype == jnp.float32
    expected = cross_entropy(logits, labels) + WEIGHT * divergence(logits, labels, centroids)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    half = loss(logits.astype(jnp.bfloat16), labels, centroids)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, expected, rtol=0.05)


def test_weight_and_temperatures_may_be_traced():
    args = draw()
    traced = jax.jit(lambda w, t: cmim_loss(*args, weight=w, temperatures=t))
    found = traced(jnp.float32(WEIGHT), jnp.asarray(TEMPERATURES))
    np.testing.assert_allclose(found, loss(*args), rtol=1e-6)
    plain = cross_entropy(*args[:2])
    np.testing.assert_array_equal(cmim_loss(*args, weight=0, temperatures=TEMPERATURES), plain)
    each = np.array([0.0, 1.0, 2.0, 3.0], np.float32)
    found = cmim_loss(*args, weight=each, temperatures=TEMPERATURES)
    np.testing.assert_allclose(found - plain, each * divergence(*args), rtol=1e-4, atol=1e-6)


def test_the_gradient_by_hand_and_none_for_the_centroids():
    logits, labels, centroids = draw()
    of_logits, of_centroids = jax.jit(
        jax.grad(lambda z, q: jnp.sum(loss(z, labels, q)), argnums=(0, 1))
    )(logits, centroids)
    expected = softmax(logits) - np.eye(C)[labels]
    for t, of_class in zip(TEMPERATURES, centroids, strict=True):
        p = softmax(logits / t)
        ratio = np.log(p / of_class[labels])
        mean = (p * ratio).sum(-1, keepdims=True)
        expected += WEIGHT / len(TEMPERATURES) / t * p * (ratio - mean)
    np.testing.assert_allclose(of_logits, expected, atol=1e-5)
    np.testing.assert_array_equal(of_centroids, 0)
    moved = jax.grad(lambda z: jnp.sum(update(centroids, z, labels)))(logits)
    np.testing.assert_array_equal(moved, 0)


def test_it_stays_finite_at_huge_logits_and_empty_centroids():
    logits, labels, _ = draw()
    logits = 1e4 * np.sign(logits)
    logits[0, (labels[0] + 1) % C] = -np.inf
    centroids = np.stack([np.eye(C, dtype=np.float32)] * 2)[:, ::-1]  # of another class
    values = jax.jit(loss)(logits, labels, centroids)
    gradient = jax.jit(jax.grad(lambda z: loss(z, labels, centroids).sum()))(logits)
    chex.assert_tree_all_finite((values, gradient))
    assert (values > cross_entropy(logits, labels) + 1).any()


def test_masked_entries_are_zero_and_harmless_whatever_they_hold(masked_is_sliced):
    logits, labels, centroids = draw((2, 3))
    masked_is_sliced(
        lambda z, y, where=None: loss(z, y, centroids, where=where), [logits, labels], 0
    )


def test_centroids_move_towards_the_means_of_their_classes():
    logits, _, centroids = draw((2, 3))
    labels = np.array([[0, 3, 3], [0, 0, 3]])
    found = np.asarray(jax.jit(update)(centroids, logits, labels))
    for i, t in enumerate(TEMPERATURES):
        for y in (0, 3):
            mean = softmax(logits / t)[labels == y].mean(0)
            np.testing.assert_allclose(
                found[i, y], DECAY * centroids[i, y] + (1 - DECAY) * mean, rtol=1e-5
            )
    absent = [1, 2, 4]
    np.testing.assert_array_equal(found[:, absent], centroids[:, absent])
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("mode", ["pmap", "shard_map", "mesh"])
def test_eight_devices_agree_with_one(mode):
    logits, labels, centroids = draw((16,))

    def step(state, frozen, batch):
        values = loss(batch["logits"], batch["labels"], state, weight=frozen)
        moved = update(state, batch["logits"], batch["labels"])
        return moved, collectives.all_sum(jnp.sum(values))

    batch = parallel.feed({"logits": logits, "labels": labels}, mode)
    state, frozen = parallel.place((centroids, jnp.float32(WEIGHT)), mode)
    moved, total = parallel.wrap(step, mode)(state, frozen, batch)
    np.testing.assert_allclose(moved, jax.jit(update)(centroids, logits, labels), rtol=1e-5)
    np.testing.assert_allclose(total, jnp.sum(loss(logits, labels, centroids)), rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("weight", {"weight": -1.0}),
        ("temperatures", {"temperatures": (1.0, 0.0)}),
        *[("centroids", {"temperatures": each}) for each in ((), (1.0,))],
    ],
)
def test_wrong_arguments_are_refused(field, changes):
    with pytest.raises(ValueError, match=f"^{field}: "):
        loss(*draw(), **changes)


def settings(**changes):
    return {
        "dataset": "digits",
        "model": "cnn",
        "model_kwargs": {"widths": (4,), "hidden": 8},
        "optimizer": "adam",
        "learning_rate": 1e-2,
        "batch_size": 32,
        "num_steps": 60,
        **changes,
    }


def run(workdir, **changes):
    given = {"defence": "cmim", "cmim_weight": 10.0, "cmim_temperatures": (1.0, 4.0), **changes}
    return nasty_train.train_and_evaluate(settings(**given), workdir)


def within_class_divergence(workdir, temperature=4.0):
    split = data.load_dataset("digits").train
    answers = softmax(evaluate.compute_logits(load_model(workdir), split.images) / temperature)
    total = 0.0
    for y in range(10):
        p = answers[split.labels == y].astype(np.float64)
        total += (p * np.log(p / p.mean(0))).sum()
    return total / len(split)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cmim") / "straight"
    return workdir, run(workdir)


def test_a_run_makes_the_answers_of_a_class_alike(straight, tmp_path):
    workdir, result = straight
    plain = run(tmp_path / "plain", cmim_weight=0.0)
    assert result.keys() == {"accuracy", "validation_accuracy", "num_test", "id"}
    assert result["accuracy"] > plain["accuracy"] - 0.1 > 0.7
    assert within_class_divergence(workdir) < 0.3 * within_class_divergence(tmp_path / "plain")


def test_its_checkpoint_is_that_of_the_network_alone(straight):
    model = load_model(straight[0])
    assert model.variables.keys() == {"params", "batch_stats"}
    config = model.metadata["config"]
    assert (config["defence"], config["cmim_weight"]) == ("cmim", 10.0)
    assert {config[name] for name in ("adversary", "omega", "temperature")} == {None}


def test_a_stopped_run_resumes_to_the_same_bits(straight, tmp_path, monkeypatch):
    asked = []

    def stop(signalled):
        asked.append(signalled)
        return signalled or len(asked) == 26

    with monkeypatch.context() as patched:
        patched.setattr(parallel, "should_stop", stop)
        with pytest.raises(loop.StoppedError, match="at step 25"):
            run(tmp_path / "run")
    assert run(tmp_path / "run") | {"id": ""} == straight[1] | {"id": ""}
    with pytest.raises(InputError, match="^cmim_weight: "):
        run(tmp_path / "run", cmim_weight=3.0)


def test_weights_and_as_many_temperatures_compile_once(tmp_path, monkeypatch):
    chex.clear_trace_counter()
    monkeypatch.setattr(nasty_step, "cmim_loss", chex.assert_max_traces(cmim_loss, n=1))
    for i, temperatures in enumerate([(1.0, 4.0), (2.0, 20.0)]):
        changes = {"cmim_weight": i, "cmim_temperatures": temperatures}
        run(tmp_path / str(i), num_steps=1, learning_rate=0.07, **changes)


def test_augmented_images_give_the_same_network_in_other_modes(tmp_path):
    first, other = [
        nasty_train.train_and_evaluate(
            settings(defence="cmim", optimizer="sgd", num_steps=2, flip=True, crop_padding=1),
            tmp_path / mode,
            parallel=mode,
        )
        and load_model(tmp_path / mode).variables["params"]
        for mode in ("pmap", "mesh")  # with a mapped axis, and without
    ]
    chex.assert_trees_all_close(first, other, atol=1e-5)
