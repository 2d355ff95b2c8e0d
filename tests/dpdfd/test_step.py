"""The steps of a conversion: by hand, towards the teacher, and on any number of devices."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.data.images import procedural
from distill_core.models.network import Network
from distill_core.privacy.gaussian import standard_normal
from distill_core.runtime import parallel
from distill_core.training.optimizers import Optimizer
from distill_core.training.step import TrainState, Update
from dpdfd import step
from dpdfd.generator import Generator, adam, draw_latents
from dpdfd.losses import Weights
from dpdfd.step import Conversion, State

SIZES, BATCH, KEY = (64, 16, 10), 16, jax.random.key(21)


def init(seed, sizes=SIZES):
    rng = np.random.default_rng(seed)
    return [
        {
            "w": np.float32(rng.normal(size=pair) * np.sqrt(1.5 / pair[0])),
            "b": np.float32(rng.normal(size=pair[1:]) * 0.1),
        }
        for pair in itertools.pairwise(sizes)
    ]


def apply(variables, images):
    """Two dense layers; logits [b, 10]."""
    first, last = variables["params"]
    x = images.reshape(len(images), -1)
    x = jnp.tanh(x @ first["w"] + first["b"][None])
    return x @ last["w"] + last["b"][None]


@dataclasses.dataclass(frozen=True)
class TwoLayers:
    """Stands in for a `Network`: `apply`, and as features the images themselves."""

    def apply(self, variables, images):
        return apply(variables, images)

    def features(self, variables, images):
        return images.reshape(len(images), -1)


def probs_of(variables, images):
    return jax.nn.softmax(apply(variables, images))


@jax.jit
def targets_of(variables):
    return probs_of(variables, images())


GENERATOR = Network(
    "dpdfd.generator:Generator",
    10,
    {"image_shape": (8, 8, 1), "latent_size": 5, "width": 2, "norm": "batch"},
    input_shape=(5,),
    outputs="images",
)
SGD = Optimizer(learning_rate=1.0, num_steps=100, momentum=0.0)
CHOSEN = Conversion(
    student=TwoLayers(),
    teacher=TwoLayers(),
    generator=GENERATOR,
    batch_size=BATCH,
    optimizer=SGD,
    generator_rate=0.03,
    weights=Weights(one_hot=0.5, balance=5.0, activation=0.1, diversity=1.0, smoothness=0.3),
    mechanism=None,
    bound="normalize",
    loss="brier",
    temperature=1.0,
    crop_padding=0,
    guide="student",
)


def student_step(mechanism, bound="normalize", *, optimizer=SGD):
    chosen = dataclasses.replace(CHOSEN, mechanism=mechanism, bound=bound, optimizer=optimizer)
    return parallel.Bound(step.student_step, chosen)


def student(seed=1, *, step=0, optimizer=SGD):
    state = TrainState.create(
        params=init(seed), model_state={}, tx=optimizer.make(), rng=jax.random.key(0)
    )
    return state.replace(step=jnp.int32(step))


def noise(multiplier, norm=0.5):
    return {"key": KEY, "norm": norm, "noise_multiplier": multiplier}


@functools.cache
def images(num=BATCH, seed=0):
    drawn = procedural.mixture(
        seed, num, size=8, channels=1, weights={"strokes": 1.0, "noise": 1.0}
    )
    return jnp.asarray(drawn)


def moved(old, new):
    """What was subtracted from the parameters: the gradient, as the rate is 1."""
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), old.params, new.params)


def assert_close(found, expected, **tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-4, "atol": 2e-6, **tolerance})


def assert_same_bits(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def bounded(weights, norms, bound, norm):
    return weights * (norm / norms if bound == "normalize" else np.minimum(1.0, norm / norms))


# -- one step by hand --------------------------------------------------------------------------


@pytest.mark.parametrize("bound", ["normalize", "clip"])
def test_a_step_by_parameters_is_the_sum_of_bounded_gradients_and_noise(bound):
    teacher, norm, multiplier = {"params": init(2)}, 1.5, 0.7
    old = student(step=3)
    frozen = {"teacher": teacher, "noise": noise(multiplier, norm)}
    new, metrics = jax.jit(student_step("param", bound))(old, frozen, images())
    assert int(new.step) == 4

    def loss(params, image, target):
        return -jnp.sum(target * jax.nn.log_softmax(apply({"params": params}, image[None])[0]))

    grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(
        old.params, images(), targets_of(teacher)
    )
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, grads))
    norms = np.sqrt(sum(np.square(g).reshape(BATCH, -1).sum(1) for g in leaves))
    assert (norms < norm).any() and (norms > norm).any()
    weights = bounded(np.ones(BATCH), norms, bound, norm)
    key = jax.random.fold_in(KEY, 3)
    expected = []
    for i, leaf in enumerate(leaves):
        drawn = standard_normal(jax.random.fold_in(key, i), leaf.shape[1:])
        total = np.tensordot(weights, leaf, 1) + norm * multiplier * np.asarray(drawn)
        expected.append(total / BATCH)
    assert_close(moved(old, new), structure.unflatten(expected))
    length = np.sqrt(sum(np.square(g).sum() for g in expected))
    assert list(metrics) == ["grad_norm"]
    assert float(metrics["grad_norm"]) == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("bound", ["normalize", "clip"])
def test_a_step_by_logits_is_one_product_with_the_jacobian(bound):
    teacher, norm, multiplier = {"params": init(2)}, 0.3, 0.7
    old = student(step=3)
    frozen = {"teacher": teacher, "noise": noise(multiplier, norm)}
    new, metrics = jax.jit(student_step("logit", bound))(old, frozen, images())

    grads = np.asarray(targets_of({"params": old.params})) - np.asarray(targets_of(teacher))
    norms = np.linalg.norm(grads, axis=1)
    assert (norms < norm).any() and (norms > norm).any()
    drawn = np.asarray(standard_normal(jax.random.fold_in(KEY, 3), grads.shape))
    released = bounded(1, norms, bound, norm)[:, None] * grads + norm * multiplier * drawn

    @jax.jit
    def product(released):
        return jax.vjp(lambda params: apply({"params": params}, images()), old.params)[1](released)

    assert_close(moved(old, new), product(jnp.asarray(released / BATCH, jnp.float32))[0])
    assert list(metrics) == ["grad_norm"]


def test_without_noise_and_bound_a_step_is_that_of_plain_distillation():
    """No difference of two distributions is longer than √2."""
    teacher = {"params": init(2)}
    targets = targets_of(teacher)

    def distillation(params):
        log_probs = jax.nn.log_softmax(apply({"params": params}, images()))
        return -jnp.mean(jnp.sum(targets * log_probs, axis=-1))

    old = student()
    expected = jax.jit(jax.grad(distillation))(old.params)
    wide = {"teacher": teacher, "noise": noise(0.0, 1.5)}
    assert_close(
        moved(old, jax.jit(student_step("logit", "clip"))(old, wide, images())[0]), expected
    )
    plain, _ = jax.jit(student_step(None))(old, {"teacher": teacher}, images())
    assert_close(moved(old, plain), expected)


@pytest.mark.parametrize("mechanism", ["param", "logit"])
def test_every_step_draws_noise_of_its_own(mechanism):
    update = jax.jit(student_step(mechanism))
    frozen = {"teacher": {"params": init(2)}, "noise": noise(3.0)}
    first, again, next_one = (
        moved(student(step=n), update(student(step=n), frozen, images())[0]) for n in (3, 3, 4)
    )
    assert_same_bits(first, again)
    assert np.abs(first[0]["w"] - next_one[0]["w"]).max() > 0.1


# -- the generator -----------------------------------------------------------------------------


def generators_step():
    """(update, state, frozen, batch) of a generator whose guide is the teacher."""
    params, model_state = GENERATOR.init(jax.random.key(4))
    generator = TrainState.create(
        params=params,
        model_state=model_state,
        tx=adam(CHOSEN.generator_rate),
        rng=jax.random.key(6),
    )
    update = parallel.Bound(step.generator_step, dataclasses.replace(CHOSEN, guide="teacher"))
    state = State(student(), generator, {})
    return update, state, {"teacher": {"params": init(2)}}, {"index": np.arange(BATCH)}


def test_a_generators_step_lessens_the_loss_of_the_guide_that_it_is_given():
    update, fresh, frozen, batch = generators_step()
    program, state, values = parallel.wrap(update, "jit"), fresh, []
    for _ in range(60):
        state, metrics = program(state, frozen, batch)
        values.append(float(metrics["generator_loss"]))
    assert np.mean(values[-5:]) < np.mean(values[:5]) - 0.3
    assert_same_bits(state.student.params, fresh.student.params)
    # Of the guide: another one moves it another way, and the student is one, too.
    by_student = parallel.wrap(parallel.Bound(step.generator_step, CHOSEN), "jit")
    this, other, third = (
        jax.tree.leaves(new.generator.params)
        for new in (
            program(fresh, frozen, batch)[0],
            program(fresh, {"teacher": {"params": init(3)}}, batch)[0],
            by_student(fresh, {}, batch)[0],
        )
    )
    assert any((a != b).any() for a, b in zip(this, other, strict=True))
    assert any((a != b).any() for a, b in zip(this, third, strict=True))


def test_a_draw_depends_on_the_place_in_the_batch_and_pairs_have_one_class():
    sizes = {"image_shape": (8, 8, 1), "num_classes": 10, "latent_size": 5}
    module, some = Generator(**sizes, conditional=True), jnp.array([13, 2])
    z, labels = draw_latents(KEY, jnp.arange(BATCH), module, BATCH)
    assert_same_bits(draw_latents(KEY, some, module, BATCH), (z[some], labels[some]))
    assert (labels[: BATCH // 2] == labels[BATCH // 2 :]).all()
    assert len(set(labels.tolist())) > 1 and len(np.unique(np.asarray(z))) == z.size
    assert draw_latents(KEY, some, Generator(**sizes), BATCH)[1] is None


# -- devices -----------------------------------------------------------------------------------


def on(mode, update, state, frozen, batch):
    """Two steps by the devices of a mode: eight, or one for "jit"."""
    program = parallel.wrap(update, mode)
    state, frozen = parallel.place(state, mode), parallel.place(frozen, mode)
    batch = parallel.feed(batch, mode)
    for _ in range(2):
        state, metrics = program(state, frozen, batch)
    return jax.tree.map(np.asarray, (state.params, state.model_state, metrics))


def step_of(mechanism):
    frozen = {"teacher": {"params": init(2)}}
    if mechanism is not None:
        frozen["noise"] = noise(0.8)
    slow = dataclasses.replace(SGD, learning_rate=0.1)
    update = student_step(mechanism, optimizer=slow)
    return update, student(optimizer=slow), frozen, np.asarray(images())


@functools.cache
def one_device(mechanism):
    return on("jit", *step_of(mechanism))


@pytest.mark.parametrize(
    ("mechanism", "mode"),
    [
        *(("logit", mode) for mode in parallel.MODES),
        ("param", "pmap"),
        ("param", "mesh"),
        (None, "pmap"),
    ],
)
def test_eight_devices_give_the_students_step_of_one(mechanism, mode):
    """Noise included: eight times as much would be far off, and so would none."""
    found = on(mode, *step_of(mechanism))
    assert_close(found, one_device(mechanism), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["pmap", "mesh"])
def test_eight_devices_give_the_generators_step_of_one(mode):
    """All terms; diversity and balance, and the statistics, belong to the whole batch."""
    _, state, frozen, batch = generators_step()
    chosen = dataclasses.replace(CHOSEN, guide="teacher")
    sgd = dataclasses.replace(SGD, learning_rate=0.1)
    state = state.generator.replace(opt_state=sgd.make().init(state.generator.params))
    given = Update(step.GeneratorLoss(chosen), sgd), state, frozen["teacher"], batch
    assert_close(on(mode, *given), on("jit", *given), rtol=1e-3, atol=1e-5)


def test_equal_choices_compile_once():
    counted = chex.assert_max_traces(step.student_step, n=1)
    for seed in (1, 2):
        chosen = dataclasses.replace(CHOSEN, optimizer=SGD)
        update = parallel.wrap(parallel.Bound(counted, chosen), "jit")
        update(student(seed), {"teacher": {"params": init(2)}}, images())
