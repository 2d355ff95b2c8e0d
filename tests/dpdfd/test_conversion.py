"""The steps of a conversion: by hand, towards the teacher, and on any number of devices."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_core import data
from distill_core.losses import cross_entropy
from distill_core.privacy.gaussian import standard_normal
from distill_core.runtime import parallel
from distill_core.training import optimizers
from distill_core.training.step import TrainState
from dpdfd import conversion
from dpdfd.generator import Generator
from dpdfd.priors import images as priors

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


def probs_of(variables, images):
    return jax.nn.softmax(apply(variables, images))


@jax.jit
def targets_of(variables):
    return probs_of(variables, images())


def student_step(mechanism, bound="normalize", *, tx=None, axis_name=None):
    return conversion.make_student_step(
        apply, probs_of, tx or optax.sgd(1.0), mechanism=mechanism, bound=bound, axis_name=axis_name
    )


def student(seed=1, *, step=0, tx=None):
    state = TrainState.create(
        params=init(seed), model_state={}, tx=tx or optax.sgd(1.0), rng=jax.random.key(0)
    )
    return state.replace(step=jnp.int32(step))


def noise(multiplier, norm=0.5):
    return {"key": KEY, "norm": norm, "noise_multiplier": multiplier}


@functools.cache
def images(num=BATCH, seed=0):
    drawn = priors.mixture(seed, num, size=8, channels=1, weights={"strokes": 1.0, "noise": 1.0})
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
    step = jax.jit(student_step(mechanism))
    frozen = {"teacher": {"params": init(2)}, "noise": noise(3.0)}
    first, again, next_one = (
        moved(student(step=n), step(student(step=n), frozen, images())[0]) for n in (3, 3, 4)
    )
    assert_same_bits(first, again)
    assert np.abs(first[0]["w"] - next_one[0]["w"]).max() > 0.1


# -- towards the teacher -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_teacher():
    """Fitted to real digits."""
    found, tx = data.load_dataset("digits"), optax.adam(1e-2)
    x, y = jnp.asarray(found.train.images / 255.0, jnp.float32), found.train.labels

    @jax.jit
    def fit(params):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: cross_entropy(apply({"params": p}, x), y).mean())(params)
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), None, length=200)[0][0]

    params = fit(init(0))
    logits = apply({"params": params}, found.test.images / 255.0)
    assert (logits.argmax(-1) == found.test.labels).mean() > 0.9
    return {"params": params}


def distil(teacher, mechanism, multipliers, *, steps, rate, pool):
    """Norms of the true gradient over the queries, without the noise, [runs, steps]."""
    tx = optimizers.make_optimizer(
        optimizer="adam", learning_rate=rate, schedule="cosine", num_steps=steps
    )
    step = student_step(mechanism, "clip", tx=tx)
    targets = probs_of(teacher, pool)

    def true_norm(params):
        def loss(params):
            return cross_entropy_to(targets, apply({"params": params}, pool)).mean()

        return optax.tree.norm(jax.grad(loss)(params))

    def run(multiplier):
        frozen = {"teacher": teacher}
        if mechanism is not None:
            frozen["noise"] = noise(multiplier, 1.5)

        def once(state, _):
            length = true_norm(state.params)
            return step(state, frozen, pool)[0], length

        return jax.lax.scan(once, student(tx=tx), None, length=steps)[1]

    return np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(multipliers, jnp.float32)))


def cross_entropy_to(targets, logits):
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def test_without_noise_the_mean_gradient_vanishes(digits_teacher):
    norms = distil(digits_teacher, None, [0.0], steps=600, rate=0.01, pool=images(64))[0]
    assert norms[-20:].mean() < norms[0] / 10


def test_with_noise_it_stays_the_higher_the_more_there_is(digits_teacher):
    levels = [0.0, 0.3, 1.5, 8.0]
    norms = distil(digits_teacher, "logit", levels, steps=400, rate=0.01, pool=images(64))
    plateau = norms[:, -50:].mean(1)
    assert (plateau[1:] > 1.3 * plateau[:-1]).all(), plateau


# -- the generator -----------------------------------------------------------------------------


WEIGHTS = {
    "one_hot": 0.5, "balance": 5.0, "activation": 0.1, "diversity": 1.0, "smoothness": 0.3,
}  # fmt: skip
GENERATOR = {"image_shape": (8, 8, 1), "num_classes": 10, "latent_size": 5, "width": 2}


def guide(variables, images):
    return apply(variables, images), images.reshape(len(images), -1)


def maker(module, tx):
    variables = dict(module.init(jax.random.key(4), jnp.zeros((1, 5))))
    params = variables.pop("params")
    return TrainState.create(params=params, model_state=variables, tx=tx, rng=jax.random.key(6))


def generators_step(norm="batch"):
    module, tx = Generator(**GENERATOR, norm=norm), optax.sgd(0.1)

    def make(axis):
        return conversion.make_generator_step(
            module.clone(axis_name=axis),
            guide,
            tx,
            weights=WEIGHTS,
            batch_size=BATCH,
            axis_name=axis,
        )

    return make, maker(module, tx), {"guide": {"params": init(2)}}, {"index": np.arange(BATCH)}


@functools.cache
def generators_program():
    return parallel.wrap(generators_step()[0](None), "jit")


def test_a_generators_step_lessens_the_loss_of_the_guide_that_it_is_given():
    _, fresh, frozen, batch = generators_step()
    step, state, values = generators_program(), fresh, []
    for _ in range(60):
        state, metrics = step(state, frozen, batch)
        values.append(float(metrics["loss"]))
    assert np.mean(values[-5:]) < np.mean(values[:5]) - 0.3
    # Of the guide: another one moves it another way.
    other, _ = step(fresh, {"guide": {"params": init(3)}}, batch)
    this, _ = step(fresh, frozen, batch)
    pairs = zip(jax.tree.leaves(other.params), jax.tree.leaves(this.params), strict=True)
    assert any((a != b).any() for a, b in pairs)


def test_a_draw_depends_on_the_place_in_the_batch_and_pairs_have_one_class():
    module = Generator(**GENERATOR, conditional=True)
    z, labels = conversion.draw_latents(KEY, jnp.arange(BATCH), module, BATCH)
    some = jnp.array([13, 2])
    part = conversion.draw_latents(KEY, some, module, BATCH)
    assert_same_bits(part, (z[some], labels[some]))
    assert (labels[: BATCH // 2] == labels[BATCH // 2 :]).all()
    assert len(set(labels.tolist())) > 1
    assert len(np.unique(np.asarray(z))) == z.size
    _, none = conversion.draw_latents(KEY, some, Generator(**GENERATOR), BATCH)
    assert none is None


# -- devices -----------------------------------------------------------------------------------


def on(mode, make, state, frozen, batch):
    """Two steps by the devices of a mode: eight, or one for "jit"."""
    placed = parallel.place(state, mode), parallel.place(frozen, mode), parallel.feed(batch, mode)
    return repeat(parallel.wrap(make(parallel.axis_name(mode)), mode), *placed)


def repeat(step, state, frozen, batch):
    for _ in range(2):
        state, metrics = step(state, frozen, batch)
    return jax.tree.map(np.asarray, (state.params, state.model_state, metrics))


@functools.cache
def one_device(mechanism):
    return on("jit", *step_of(mechanism))


def step_of(mechanism):
    frozen = {"teacher": {"params": init(2)}}
    if mechanism is not None:
        frozen["noise"] = noise(0.8)
    return (
        lambda axis: student_step(mechanism, tx=optax.sgd(0.1), axis_name=axis),
        student(tx=optax.sgd(0.1)),
        frozen,
        np.asarray(images()),
    )


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
    make, state, frozen, batch = generators_step()
    expected = repeat(generators_program(), state, frozen, batch)
    assert_close(on(mode, make, state, frozen, batch), expected, rtol=1e-3, atol=1e-5)


def test_a_state_is_parts_for_others_and_what_only_a_resume_needs():
    module, tx = Generator(**GENERATOR), optax.adam(1e-3)
    bank = {"images": np.ones((2, 8, 8, 1), np.uint8), "reach": np.float32([0.5, 1.0])}
    state = conversion.ConversionState(student(step=5, tx=tx), maker(module, tx), bank)
    parts, train = conversion.split_state(state)
    assert set(parts) == {"student", "generator"}
    assert all(set(part) == {"params", "model_state"} for part in parts.values())
    assert set(train["bank"]) == {"reach"}, "images and answers lie in private/"
    kept = {**bank, "reach": np.zeros(2, np.float32)}
    blank = conversion.ConversionState(student(9, tx=tx), maker(module, tx), kept)
    back = conversion.merge_state(blank, parts, train)
    assert int(back.step) == 5
    assert_same_bits((back.student.params, back.generator.params, back.bank),
                     (state.student.params, state.generator.params, bank))  # fmt: skip
    assert_same_bits((back.student.opt_state, back.generator.opt_state),
                     (state.student.opt_state, state.generator.opt_state))  # fmt: skip
