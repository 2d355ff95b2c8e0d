"""Bought answers: what is asked, what is kept, and what is replayed how often."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_core.runtime import parallel
from distill_core.training.step import TrainState
from dpdfd import privatize_logit_gradients, rounds
from dpdfd.answers import answer_counts
from dpdfd.features import FeatureRidge

BATCH, CLASSES, KEY = 16, 3, jax.random.key(8)
SHAPE = (4, 4, 1)


def apply(variables, images):
    """One dense layer on uint8 or float images; logits [b, 3]."""
    scale = 1 / 255 if images.dtype == jnp.uint8 else 1.0
    return images.reshape(len(images), -1).astype(jnp.float32) * scale @ variables["params"]


def outputs(variables, images):
    """Of one teacher [b, 3], or of several [M, b, 3]."""
    return jax.nn.softmax(apply(variables, images)) if variables["params"].ndim == 2 else (
        jax.vmap(lambda each: jax.nn.softmax(apply({"params": each}, images)))(variables["params"])
    )  # fmt: skip


def weights(seed, *leading):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(*leading, 16, CLASSES)), jnp.float32)


def images(num=BATCH, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, *SHAPE), dtype=np.uint8)


def predictions(classes):
    """Probabilities whose first choices these are."""
    return np.eye(CLASSES, dtype=np.float32)[np.asarray(classes)] * 0.5 + 0.1


# -- the bank ----------------------------------------------------------------------------------


def test_a_deposit_fills_its_rows_and_leaves_the_others():
    empty = rounds.empty_bank(12, SHAPE, CLASSES)
    answers = np.arange(12, dtype=np.float32).reshape(4, CLASSES)
    first = rounds.deposit(empty, 0, images(4), answers)
    second = rounds.deposit(first, 4, images(4, seed=1), answers + 100)
    for name, parts in (
        ("images", [images(4), images(4, seed=1), np.zeros((4, *SHAPE))]),
        ("answers", [answers, answers + 100, np.zeros((4, CLASSES))]),
        ("targets", [answers, answers + 100, np.zeros((4, CLASSES))]),
    ):
        np.testing.assert_array_equal(second[name], np.concatenate(parts))
    assert not any(value.any() for value in empty.values())
    np.testing.assert_array_equal(first["images"][4:], 0)
    assert {name: value.dtype for name, value in second.items()} == {
        "images": np.uint8, "answers": np.float32, "targets": np.float32, "reach": np.float32,
    }  # fmt: skip


def chances(bank):
    return np.diff(bank["reach"], prepend=0.0)


def test_all_that_is_bought_is_replayed_alike_at_first():
    bank = rounds.balance(rounds.empty_bank(10, SHAPE, CLASSES), 4, None)
    np.testing.assert_allclose(chances(bank), [0.25] * 4 + [0] * 6, atol=1e-7)


def test_then_classes_are_replayed_alike_and_a_rare_one_not_without_end():
    empty = rounds.empty_bank(10, SHAPE, CLASSES)
    classes = [0, 0, 0, 0, 1, 1, 2, 0]
    found = chances(rounds.balance(empty, 8, predictions(classes)))
    each = {0: 1 / 15, 1: 1 / 6, 2: 1 / 3}
    np.testing.assert_allclose(found, [each[c] for c in classes] + [0, 0], atol=1e-6)
    empty = rounds.empty_bank(1000, SHAPE, CLASSES)
    found = chances(rounds.balance(empty, 1000, predictions([0] * 999 + [1])))
    # 1/1000 of the queries would be half of all replays.
    assert found[-1] == pytest.approx(30 / (999 / 0.999 + 30), rel=1e-3)


@pytest.mark.parametrize("bought", [1, 7, 640, 999])
def test_no_draw_reaches_a_row_that_was_not_bought(bought):
    rng = np.random.default_rng(bought)
    empty = rounds.empty_bank(1000, SHAPE, CLASSES)
    extremes = np.array([0.0, 1e-30, np.nextafter(np.float32(1), np.float32(0))], np.float32)
    u = np.concatenate([extremes, rng.random(1000, np.float32)])
    for probs in (None, predictions(rng.integers(0, CLASSES, bought))):
        reach = rounds.balance(empty, bought, probs)["reach"]
        assert (np.diff(reach) >= 0).all()
        assert np.searchsorted(reach, u, side="right").max() < bought


def test_shared_noise_is_a_gaussian_processs_posterior_mean_of_what_was_bought():
    """By the dual formula; features are public random ones."""
    std, prior, bought = 0.3, 2 / 9, 10
    bank = rounds.deposit(
        rounds.empty_bank(12, SHAPE, CLASSES),
        0,
        images(10),
        np.random.default_rng(0).normal(size=(10, CLASSES)).astype(np.float32),
    )
    features = np.asarray(
        FeatureRidge(num_classes=2).random_features(images(10).astype(np.float32) / 255), np.float64
    )
    kernel = prior * features @ features.T
    away = bank["answers"][:bought] - 1 / 3
    expected = 1 / 3 + kernel @ np.linalg.solve(kernel + std**2 * np.eye(bought), away)
    found = rounds.smooth(bank, bought, std)
    np.testing.assert_allclose(found["targets"][:bought], expected, atol=1e-4)
    np.testing.assert_array_equal(found["targets"][bought:], 0)
    np.testing.assert_array_equal(found["answers"], bank["answers"])
    # Of next to no noise nothing is taken away, of much noise nothing is believed.
    sure, unsure = (rounds.smooth(bank, bought, std)["targets"][:bought] for std in (1e-3, 1e3))
    np.testing.assert_allclose(sure, bank["answers"][:bought], atol=0.01)
    np.testing.assert_allclose(unsure, 1 / 3, atol=0.01)


# -- which queries are bought ------------------------------------------------------------------


def test_queries_are_chosen_in_equal_parts_from_what_the_student_takes_them_for():
    rng = np.random.default_rng(0)
    classes = rng.choice(CLASSES, 300, p=[0.8, 0.15, 0.05])
    rare = int((classes == 2).sum())
    chosen = rounds.choose_balanced(predictions(classes), 60)
    assert len(chosen) == len(set(chosen.tolist())) == 60
    counts = np.bincount(classes[chosen], minlength=CLASSES)
    assert counts[2] == min(rare, 20)
    assert abs(counts[0] - counts[1]) <= 1
    few = rounds.choose_balanced(predictions(classes), 3)
    assert sorted(classes[few].tolist()) == [0, 1, 2]


def test_the_choice_is_a_function_of_the_predictions_and_keeps_the_order():
    classes = np.random.default_rng(1).integers(0, CLASSES, 50)
    chosen = rounds.choose_balanced(predictions(classes), 20)
    np.testing.assert_array_equal(chosen, rounds.choose_balanced(predictions(classes), 20))
    assert (np.diff(chosen) > 0).all()
    # The first of a class, as far as they are needed.
    for name in range(CLASSES):
        mine = np.flatnonzero(classes == name)
        taken = np.isin(mine, chosen)
        assert taken[: taken.sum()].all()
    everything = rounds.choose_balanced(predictions(classes), 50)
    np.testing.assert_array_equal(everything, np.arange(50))
    same = rounds.choose_balanced(predictions([1] * 9), 4)
    np.testing.assert_array_equal(same, np.arange(4))


# -- what is asked -----------------------------------------------------------------------------


def asking(mechanism, *, norm=0.4, multiplier=0.5, bound="normalize"):
    """(make(axis), student's variables, frozen)."""
    teacher = weights(2, 5) if mechanism == "answers" else weights(2)
    frozen = {"teacher": {"params": teacher}}
    if mechanism is not None:
        frozen["noise"] = {"key": KEY, "norm": norm, "noise_multiplier": multiplier}

    def make(axis):
        return rounds.make_ask(apply, outputs, mechanism=mechanism, bound=bound, axis_name=axis)

    return make, {"params": weights(1)}, frozen


def asked(number=7):
    return {"image": images(), "number": np.full(BATCH, number, np.int32)}


def test_an_ensemble_is_asked_for_whole_numbers_that_the_host_can_noise():
    make, student, frozen = asking("answers")
    expected = answer_counts(outputs(frozen["teacher"], images()))
    found = make(None)(student, frozen, asked())
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bound", ["normalize", "clip"])
def test_one_teacher_is_asked_for_the_students_noisy_way_towards_it(bound):
    make, student, frozen = asking("logit", bound=bound)
    logits = apply(student, images())
    grads = privatize_logit_gradients(
        jax.random.fold_in(KEY, 7),
        logits,
        outputs(frozen["teacher"], images()),
        norm=0.4,
        noise_multiplier=0.5,
        mode=bound,
    )
    expected = jax.nn.softmax(logits) - grads
    np.testing.assert_allclose(make(None)(student, frozen, asked()), expected, atol=1e-6)


@pytest.mark.parametrize("mechanism", ["logit", None])
def test_without_bound_and_noise_the_answer_is_the_teachers(mechanism):
    make, student, frozen = asking(mechanism, norm=1.5, multiplier=0.0, bound="clip")
    expected = outputs(frozen["teacher"], images())
    np.testing.assert_allclose(make(None)(student, frozen, asked()), expected, atol=1e-6)


def test_every_release_has_noise_of_its_own():
    make, student, frozen = asking("logit")
    first, again, other = (np.asarray(make(None)(student, frozen, asked(n))) for n in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other) > 1e-4).mean() > 0.9
    row = first - np.asarray(
        make(None)(
            student, {**frozen, "noise": {**frozen["noise"], "noise_multiplier": 0.0}}, asked()
        )
    )
    assert len(np.unique(row.round(6))) > 0.9 * row.size, "not one draw for all queries"


# -- replay ------------------------------------------------------------------------------------


def bank_of_one(answers):
    """Room for 5, of which row 0 alone can be replayed; the others would be noticed."""
    bank = rounds.empty_bank(5, SHAPE, CLASSES)
    bank["targets"][:] = np.nan
    return rounds.balance(rounds.deposit(bank, 0, images(1), np.float32([answers])), 1, None)


def learner(tx):
    return TrainState.create(
        params=weights(1), model_state={}, tx=tx, rng=jax.random.key(3)
    )  # fmt: skip


def replay(loss, axis=None, tx=None, crop_padding=0):
    return rounds.make_replay_step(
        apply, tx or optax.sgd(1.0), loss=loss, crop_padding=crop_padding, axis_name=axis
    )


@pytest.mark.parametrize("loss", rounds.LOSSES)
def test_a_step_is_that_of_the_loss_to_the_raw_answer(loss):
    answer = np.float32([1.3, -0.4, 0.2])  # as noise leaves it
    batch, old = {"index": np.arange(BATCH)}, learner(optax.sgd(1.0))
    new, metrics = replay(loss)(old, {"bank": bank_of_one(answer)}, batch)

    def value(params):
        logits = apply({"params": params}, images(1))[0]
        if loss == "brier":
            return jnp.sum(jnp.square(jax.nn.softmax(logits) - answer))
        target = jnp.array([1.3, 0.0, 0.2]) / 1.5
        kept = target[jnp.array([0, 2])]
        return jnp.sum(kept * jnp.log(kept)) - jnp.sum(target * jax.nn.log_softmax(logits))

    expected, grads = jax.value_and_grad(value)(old.params)
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-4)
    np.testing.assert_allclose(old.params - new.params, grads, rtol=1e-3, atol=1e-5)


def test_brier_is_least_at_the_mean_of_noisy_answers():
    """Noise leaves it unbiased: raw answers around the truth teach the truth."""
    rng, truth = np.random.default_rng(0), np.float32([0.7, 0.2, 0.1])
    bank = rounds.empty_bank(512, SHAPE, CLASSES)
    noisy = truth + rng.normal(size=(512, CLASSES)).astype(np.float32) * 0.5
    noisy += truth - noisy.mean(0)
    bank = rounds.balance(rounds.deposit(bank, 0, np.repeat(images(1), 512, 0), noisy), 512, None)
    tx = optax.adam(0.02)
    step, state = jax.jit(replay("brier", tx=tx)), learner(tx)
    for _ in range(150):
        state, _ = step(state, {"bank": bank}, {"index": np.arange(128)})
    found = jax.nn.softmax(apply({"params": state.params}, images(1)))[0]
    np.testing.assert_allclose(found, truth, atol=0.08)


@pytest.mark.parametrize("crop_padding", [0, 1])
def test_replay_goes_by_the_chances_and_never_beyond_what_was_bought(crop_padding):
    """The mean loss tells the rows, as row i has an answer at distance ~10ⁱ."""
    bank = rounds.empty_bank(64, SHAPE, CLASSES)
    bank["targets"][:] = np.nan
    bank = rounds.deposit(bank, 0, np.zeros((4, *SHAPE)), np.zeros((4, CLASSES)))
    bank["targets"][:4, 0] = [0, 100, 10_000, 1_000_000]
    bank = rounds.balance(bank, 4, predictions([0, 0, 1, 1]))
    state = learner(optax.sgd(0.0))
    step = jax.jit(replay("brier", tx=optax.sgd(0.0), crop_padding=crop_padding))
    counts = np.zeros(4)
    for _ in range(4):
        state, metrics = step(state, {"bank": bank}, {"index": np.arange(256)})
        rest = float(metrics["loss"]) * 256
        assert np.isfinite(rest)
        for row, size in ((3, 1e12), (2, 1e8), (1, 1e4)):
            counts[row] += (found := round(rest / size))
            rest -= found * size
    assert 4 * 256 * 0.18 < counts[3] < 4 * 256 * 0.32


# -- devices -----------------------------------------------------------------------------------


def on(mode, step, first, frozen, batch):
    first, frozen = parallel.place(first, mode), parallel.place(frozen, mode)
    return parallel.wrap(step, mode)(first, frozen, parallel.feed(batch, mode))


@functools.cache
def asked_of_one(mechanism):
    make, student, frozen = asking(mechanism)
    return np.asarray(on("jit", make(None), student, frozen, asked()))


@pytest.mark.parametrize("mode", parallel.MODES)
@pytest.mark.parametrize("mechanism", ["answers", "logit", None])
def test_eight_devices_get_the_answers_of_one_in_their_order(mechanism, mode):
    make, student, frozen = asking(mechanism)
    found = np.asarray(on(mode, make(parallel.axis_name(mode)), student, frozen, asked()))
    assert found.shape == (BATCH, CLASSES)
    # A forward pass may round otherwise: some parts of the million that a teacher gives.
    np.testing.assert_allclose(found, asked_of_one(mechanism), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", parallel.MODES)
def test_eight_devices_replay_the_rows_of_one(mode):
    bank = rounds.deposit(rounds.empty_bank(24, SHAPE, CLASSES), 0, images(20), np.asarray(
        outputs({"params": weights(2)}, images(20))
    ))  # fmt: skip
    bank = rounds.balance(bank, 20, None)
    tx, batch = optax.sgd(0.3), {"index": np.arange(BATCH, dtype=np.int32)}
    results = []
    for each in ("jit", mode):
        step = replay("brier", parallel.axis_name(each), tx, crop_padding=1)
        state, metrics = on(each, step, learner(tx), {"bank": bank}, batch)
        results.append((np.asarray(state.params), np.asarray(metrics["loss"])))
    for found, expected in zip(*reversed(results), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
