"""Asking and replaying: what the teacher answers, and what the student makes of the bank."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.models.network import Network
from distill_core.runtime import parallel
from distill_core.training.optimizers import Optimizer
from distill_core.training.step import TrainState
from dpdfd import answers, ensemble, privatize_logit_gradients, step
from dpdfd import bank as bank_lib
from dpdfd.losses import Weights, answer_loss
from dpdfd.privacy.exact_noise import answer_counts
from dpdfd.step import Conversion, State

BATCH, CLASSES, KEY = 16, 3, jax.random.key(8)
SHAPE = (4, 4, 1)


@dataclasses.dataclass(frozen=True)
class Linear:
    """Stands in for a `Network`: one dense layer on uint8 images; logits [b, 3]."""

    def apply(self, variables, images):
        return images.reshape(len(images), -1).astype(jnp.float32) / 255 @ variables["params"]


MEMBERS = {
    "num_teachers": 5,
    "member": "dpdfd.features:FeatureMLP",
    "member_kwargs": {"hidden": [4]},
}
ENSEMBLE = Network(ensemble.MODEL, CLASSES, MEMBERS, input_shape=SHAPE, mean=(0.5,), std=(0.5,))
SGD = Optimizer(learning_rate=1.0, num_steps=100, momentum=0.0)
CHOSEN = Conversion(
    student=Linear(),
    teacher=Linear(),
    generator=None,
    batch_size=BATCH,
    optimizer=SGD,
    generator_rate=0.1,
    weights=Weights(0.0, 0.0, 0.0, 0.0, 0.0),
    mechanism=None,
    bound="normalize",
    loss="brier",
    temperature=1.0,
    crop_padding=0,
    guide="student",
)


def apply(variables, images):
    return Linear().apply(variables, images)


def outputs(variables, images):
    return jax.nn.softmax(apply(variables, images))


def weights(seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(16, CLASSES)), jnp.float32)


def images(num=BATCH, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, *SHAPE), dtype=np.uint8)


def state_of(bank, optimizer=SGD):
    student = TrainState.create(
        params=weights(1), model_state={}, tx=optimizer.make(), rng=jax.random.key(3)
    )
    return State(student, student, bank)


# -- what is asked -----------------------------------------------------------------------------


@functools.cache
def members():
    params, _ = ENSEMBLE.init(jax.random.key(1))
    return {"params": params}


def asking(mechanism, *, norm=0.4, multiplier=0.5, bound="normalize"):
    """(answers.ask of its choices, state, frozen)."""
    chosen = dataclasses.replace(CHOSEN, mechanism=mechanism, bound=bound)
    frozen = {"teacher": {"params": weights(2)}}
    if mechanism == "answers":
        chosen, frozen = dataclasses.replace(chosen, teacher=ENSEMBLE), {"teacher": members()}
    if mechanism is not None:
        frozen["noise"] = {"key": KEY, "norm": norm, "noise_multiplier": multiplier}
    return parallel.Bound(answers.ask, chosen), state_of({}), frozen


def asked(number=7):
    return {"image": images(), "number": np.full(BATCH, number, np.int32)}


def test_an_ensemble_is_asked_for_whole_numbers_that_the_host_can_noise():
    ask, state, frozen = asking("answers")
    said = ensemble.answers(ENSEMBLE, frozen["teacher"], images())
    expected = answer_counts(said)
    found = ask(state, frozen, asked())
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bound", ["normalize", "clip"])
def test_one_teacher_is_asked_for_the_students_noisy_way_towards_it(bound):
    ask, state, frozen = asking("logit", bound=bound)
    logits = apply({"params": state.student.params}, images())
    grads = privatize_logit_gradients(
        jax.random.fold_in(KEY, 7),
        logits,
        outputs(frozen["teacher"], images()),
        norm=0.4,
        noise_multiplier=0.5,
        mode=bound,
    )
    expected = jax.nn.softmax(logits) - grads
    np.testing.assert_allclose(ask(state, frozen, asked()), expected, atol=1e-6)


def test_without_bound_and_noise_the_answer_is_the_teachers():
    for mechanism in ("logit", None):
        ask, state, frozen = asking(mechanism, norm=1.5, multiplier=0.0, bound="clip")
        expected = outputs(frozen["teacher"], images())
        np.testing.assert_allclose(ask(state, frozen, asked()), expected, atol=1e-6)


def test_every_release_has_noise_of_its_own():
    ask, state, frozen = asking("logit")
    first, again, other = (np.asarray(ask(state, frozen, asked(n))) for n in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other) > 1e-4).mean() > 0.9
    row = first - np.asarray(
        ask(state, {**frozen, "noise": {**frozen["noise"], "noise_multiplier": 0.0}}, asked())
    )
    assert len(np.unique(row.round(6))) > 0.9 * row.size, "not one draw for all queries"


# -- replay ------------------------------------------------------------------------------------


def bank_of_one(answers):
    """Room for 5, of which row 0 alone can be replayed; the others would be noticed."""
    bank = bank_lib.empty_bank(5, SHAPE, CLASSES)
    bank["targets"][:] = np.nan
    return bank_lib.balance(bank_lib.deposit(bank, 0, images(1), np.float32([answers])), 1, None)


def replay(loss="brier", optimizer=SGD, crop_padding=0):
    chosen = dataclasses.replace(CHOSEN, loss=loss, optimizer=optimizer, crop_padding=crop_padding)
    return parallel.Bound(step.replay_step, chosen)


@pytest.mark.parametrize("loss", ["brier", "cross_entropy"])
def test_a_step_is_that_of_the_loss_to_the_raw_answer(loss):
    answer = np.float32([1.3, -0.4, 0.2])  # as noise leaves it
    batch, old = {"index": np.arange(BATCH)}, state_of(bank_of_one(answer))
    new, metrics = replay(loss)(old, {}, batch)
    old, new = old.student, new.student

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
    noisy = truth + rng.normal(size=(512, CLASSES)).astype(np.float32) * 0.5
    noisy += truth - noisy.mean(0)

    def gradient(logits, noisy):
        return jax.grad(lambda z: answer_loss(jnp.tile(z, (512, 1)), noisy, "brier").mean())(logits)

    np.testing.assert_allclose(gradient(jnp.log(truth), noisy), 0, atol=1e-6)
    there = jnp.array([0.4, -1.0, 0.1])
    expected = gradient(there, jnp.tile(truth, (512, 1)))
    np.testing.assert_allclose(gradient(there, noisy), expected, atol=1e-6)


@pytest.mark.parametrize("crop_padding", [0, 1])
def test_replay_goes_by_the_chances_and_never_beyond_what_was_bought(crop_padding):
    """The mean loss tells the rows, as row i has an answer at distance ~10ⁱ."""
    bank = bank_lib.empty_bank(64, SHAPE, CLASSES)
    bank["targets"][:] = np.nan
    bank = bank_lib.deposit(bank, 0, np.zeros((4, *SHAPE)), np.zeros((4, CLASSES)))
    bank["targets"][:4, 0] = [0, 100, 10_000, 1_000_000]
    bank = bank_lib.balance(bank, 4, np.eye(CLASSES)[[0, 0, 1, 1]])
    still = Optimizer(learning_rate=0.0, num_steps=100)
    state = state_of(bank, still)
    update = jax.jit(replay(optimizer=still, crop_padding=crop_padding))
    counts = np.zeros(4)
    for _ in range(4):
        state, metrics = update(state, {}, {"index": np.arange(256)})
        rest = float(metrics["loss"]) * 256
        assert np.isfinite(rest)
        for row, size in ((3, 1e12), (2, 1e8), (1, 1e4)):
            counts[row] += (found := round(rest / size))
            rest -= found * size
    assert 4 * 256 * 0.18 < counts[3] < 4 * 256 * 0.32


# -- devices -----------------------------------------------------------------------------------


def on(mode, function, state, frozen, batch):
    state, frozen = parallel.place(state, mode), parallel.place(frozen, mode)
    return parallel.wrap(function, mode)(state, frozen, parallel.feed(batch, mode))


@functools.cache
def asked_of_one(mechanism):
    ask, state, frozen = asking(mechanism)
    return np.asarray(on("jit", ask, state, frozen, asked()))


@pytest.mark.parametrize("mode", parallel.MODES)
@pytest.mark.parametrize("mechanism", ["answers", "logit", None])
def test_eight_devices_get_the_answers_of_one_in_their_order(mechanism, mode):
    ask, state, frozen = asking(mechanism)
    found = np.asarray(on(mode, ask, state, frozen, asked()))
    assert found.shape == (BATCH, CLASSES)
    # A forward pass may round otherwise: some parts of the million that a teacher gives.
    np.testing.assert_allclose(found, asked_of_one(mechanism), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", parallel.MODES)
def test_eight_devices_replay_the_rows_of_one(mode):
    bank = bank_lib.deposit(bank_lib.empty_bank(24, SHAPE, CLASSES), 0, images(20), np.asarray(
        outputs({"params": weights(2)}, images(20))
    ))  # fmt: skip
    bank = bank_lib.balance(bank, 20, None)
    slow, batch = dataclasses.replace(SGD, learning_rate=0.3), {"index": np.arange(BATCH)}
    results = []
    for each in ("jit", mode):
        update = replay(optimizer=slow, crop_padding=1)
        state, metrics = on(each, update, state_of(bank, slow), {}, batch)
        results.append((np.asarray(state.student.params), np.asarray(metrics["loss"])))
    for found, expected in zip(*reversed(results), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
