"""One arbitrary teacher: no student, however it is made, beats what its ε for a record allows.

The teacher knows K kinds of inputs and calls each by another class, as a random permutation has it.
Whatever a student of it finds out about the permutation it has from the noisy releases alone.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.training.optimizers import Optimizer
from distill_core.training.step import TrainState
from dpdfd import step
from dpdfd.answers import ask
from dpdfd.losses import Weights
from dpdfd.privacy.units import Release, accuracy_bound, calibrate
from dpdfd.step import Conversion, State

DELTA, CLASSES, TRIALS = 1e-5, 10, 2000
QUERIES, NORM, STEPS, BATCH = 200, 1.4143, 10, 100
RELEASED = {"answers": ("query_gradients", "clip", QUERIES, 1),
            "student": ("gradient_sum", "normalize", BATCH, STEPS)}  # fmt: skip


def noise_multiplier(attack, unit, epsilon):
    """With which all that the attack sees spends ε, if it is about `unit`."""
    released, mode, size, steps = RELEASED[attack]
    release = Release(unit, released, size, norm=NORM, mode=mode)
    return calibrate(release, epsilon=epsilon, delta=DELTA, steps=steps)


@dataclasses.dataclass(frozen=True)
class Table:
    """Stands in for a `Network` on kinds of inputs int32 [B], in place of images."""

    def apply(self, variables, kinds):
        """Logits [B, K], one row of the parameters each."""
        return variables["params"][kinds]


CHOSEN = Conversion(
    student=Table(),
    teacher=Table(),
    generator=None,
    batch_size=BATCH,
    optimizer=Optimizer(
        learning_rate=1e-3, num_steps=STEPS, momentum=0.0
    ),  # small, to average the noise
    generator_rate=0.1,
    weights=Weights(0.0, 0.0, 0.0, 0.0, 0.0),
    mechanism="param",
    bound="normalize",
    loss="brier",
    temperature=1.0,
    crop_padding=0,
    guide="student",
)


def untrained():
    params = jnp.zeros((CLASSES, CLASSES))
    tx, rng = CHOSEN.optimizer.make(), jax.random.key(0)
    return TrainState.create(params=params, model_state={}, tx=tx, rng=rng)


def certain(permutation):
    """Variables of the teacher that calls kind i by the class permutation[i]."""
    return {"params": jnp.where(jax.nn.one_hot(permutation, CLASSES) > 0, 0.0, -jnp.inf)}


def decode(kinds, permutation, noise):
    """The class of each kind that its noisy answers make likeliest: the mean's largest entry."""
    chosen = dataclasses.replace(CHOSEN, mechanism="logit", bound="clip")
    batch = {"image": kinds, "number": jnp.zeros(len(kinds), jnp.int32)}
    state, frozen = (
        State(untrained(), untrained(), {}),
        {"teacher": certain(permutation), "noise": noise},
    )
    answers = ask(chosen, state, frozen, batch)
    return jnp.argmax(jax.ops.segment_sum(answers, kinds, CLASSES), axis=-1)


def distil(kinds, permutation, noise):
    """Classes by a student that took private steps."""
    frozen = {"teacher": certain(permutation), "noise": noise}

    def once(student, _):
        return step.student_step(CHOSEN, student, frozen, kinds)[0], None

    student, _ = jax.lax.scan(once, untrained(), None, STEPS)
    return jnp.argmax(student.params, axis=-1)


ATTACKS = {"answers": decode, "student": distil}


@functools.partial(jax.jit, static_argnums=0)
def _agreements(attack, kinds, permutations, keys, multiplier):
    def trial(permutation, key):
        noise = {"key": key, "norm": NORM, "noise_multiplier": multiplier}
        return jnp.mean((ATTACKS[attack](kinds, permutation, noise) == permutation)[kinds])

    return jax.vmap(trial)(permutations, keys)


def agreement(attack, shown, multiplier):
    """(mean over permutations of how many inputs the student classifies as its teacher does, its
    standard error), where `shown` kinds of inputs are asked about and judged by."""
    kinds = np.arange(RELEASED[attack][2], dtype=np.int32) % shown
    unmoved = np.tile(np.arange(CLASSES, dtype=np.int32), (TRIALS, 1))
    permutations = np.random.default_rng(7).permuted(unmoved, axis=1)
    keys = jax.random.split(jax.random.key(7), TRIALS)
    found = np.asarray(_agreements(attack, kinds, permutations, keys, multiplier), np.float64)
    return found.mean(), found.std(ddof=1) / math.sqrt(TRIALS)


# One kind alone is the strongest attack: all queries are spent on it.
CASES = [(attack, shown) for attack in ATTACKS for shown in (1, CLASSES)]


@pytest.mark.parametrize("epsilon", [1.0, 10.0])
@pytest.mark.parametrize(("attack", "shown"), CASES)
def test_agreement_with_permuted_labels_stays_below_the_bound(attack, shown, epsilon):
    found, error = agreement(attack, shown, noise_multiplier(attack, "record_single", epsilon))
    assert found <= accuracy_bound(epsilon, DELTA, CLASSES) + 3 * error


@pytest.mark.parametrize(("attack", "shown"), CASES)
def test_noise_that_is_meant_for_a_query_breaks_the_bound_for_a_record(attack, shown):
    found, error = agreement(attack, shown, noise_multiplier(attack, "query", 1.0))
    assert found > accuracy_bound(1.0, DELTA, CLASSES) + 3 * error


def test_half_of_the_noise_is_found_out():
    """The likeliest class is an attack strong enough to see a factor of two."""
    multiplier = noise_multiplier("answers", "record_single", 10.0) / 2
    found, error = agreement("answers", 1, multiplier)
    assert found > accuracy_bound(10.0, DELTA, CLASSES) + 3 * error


@pytest.mark.parametrize("attack", ATTACKS)
def test_without_noise_the_teacher_is_copied_so_that_noise_alone_protects_it(attack):
    assert agreement(attack, CLASSES, 1e-6)[0] == 1.0
