"""A train step is the hand-written loop; its means are global; it is pure."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_core import Outputs, TrainState, train_step
from distill_core.training.step import (
    STREAM_INIT,
    STREAM_TRAIN,
    Evaluation,
    mean_gradient,
    stream_key,
)

DEVICES, ROWS, FEATURES = 3, 4, 5
SGD = optax.sgd(0.1)


def make_batch(seed=0, weights=None):
    """Three devices' rows, of which different numbers count, on one device none."""
    rng = np.random.default_rng(seed)
    batch = {
        "x": rng.normal(size=(DEVICES * ROWS, FEATURES)).astype(np.float32),
        "y": rng.normal(size=DEVICES * ROWS).astype(np.float32),
        "weight": np.array([1, 1, 1, 1, 0, 0, 0, 0, 2, 0.5, 0, 1], np.float32),
    }
    return batch if weights is None else batch | {"weight": weights}


def squared_error(params, model_state, frozen, batch, key):
    error = batch["x"] @ params["w"] + params["b"] - frozen["scale"] * batch["y"]
    aux = {"absolute": jnp.abs(error)}
    return Outputs(error**2, batch["weight"], {"seen": model_state["seen"] + 1}, aux)


def make_state(tx=SGD, seed=0):
    rng = np.random.default_rng(seed)
    return TrainState.create(
        params={"w": jnp.asarray(rng.normal(size=FEATURES), jnp.float32), "b": jnp.zeros(())},
        model_state={"seen": jnp.zeros((), jnp.int32)},
        tx=tx,
        rng=jax.random.key(seed),
    )


def split_over_devices(step):
    """The step over the mapped axis of three devices, without needing them."""

    def run(state, frozen, batch):
        batch = jax.tree.map(lambda a: a.reshape(DEVICES, ROWS, *a.shape[1:]), batch)
        return jax.vmap(step, (None, None, 0), axis_name="data")(state, frozen, batch)

    return jax.jit(run)


FROZEN = {"scale": jnp.float32(2.0)}


def step_of(objective=squared_error, tx=SGD, **options):
    return functools.partial(train_step, objective=objective, tx=tx, **options)


def test_steps_equal_a_hand_written_optax_loop():
    tx = optax.adamw(0.1)
    step, state = jax.jit(step_of(tx=tx)), make_state(tx)
    params, opt_state = state.params, state.opt_state

    @jax.jit
    def by_hand(params, opt_state, batch):
        def loss(params):
            error = batch["x"] @ params["w"] + params["b"] - 2.0 * batch["y"]
            return jnp.sum(error**2 * batch["weight"]) / jnp.sum(batch["weight"])

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value, optax.tree.norm(grads)

    for i in range(4):
        batch = make_batch(i)
        params, opt_state, value, norm = by_hand(params, opt_state, batch)
        state, metrics = step(state, FROZEN, batch)
        assert metrics.keys() == {"loss", "absolute", "grad_norm"}
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-5)
    np.testing.assert_allclose(state.params["b"], params["b"], rtol=1e-5)
    for ours, theirs in zip(
        jax.tree.leaves(state.opt_state), jax.tree.leaves(opt_state), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert (int(state.step), int(state.model_state["seen"])) == (4, 4)


def test_means_and_gradients_are_global_over_devices():
    step = step_of()
    expected, expected_metrics = jax.jit(step)(make_state(), FROZEN, make_batch())
    found, found_metrics = split_over_devices(step)(make_state(), FROZEN, make_batch())
    for device in range(DEVICES):
        np.testing.assert_allclose(found.params["w"][device], expected.params["w"], rtol=1e-5)
        for name, value in expected_metrics.items():
            np.testing.assert_allclose(found_metrics[name][device], value, rtol=1e-5)

    rows = [{k: a[i : i + ROWS] for k, a in make_batch().items()} for i in (0, ROWS, 2 * ROWS)]
    naive = np.mean([jax.jit(step)(make_state(), FROZEN, each)[1]["loss"] for each in rows])
    assert abs(naive - expected_metrics["loss"]) > 0.05, "the case cannot tell the means apart"


@pytest.mark.parametrize("mapped", [False, True])
def test_a_batch_of_weight_zero_moves_nothing(mapped):
    step = split_over_devices(step_of()) if mapped else jax.jit(step_of())
    batch = make_batch(weights=np.zeros(DEVICES * ROWS, np.float32))
    before = make_state()
    after, metrics = step(before, FROZEN, batch)
    np.testing.assert_array_equal(
        jnp.broadcast_to(before.params["w"], after.params["w"].shape), after.params["w"]
    )
    for value in metrics.values():
        np.testing.assert_array_equal(value, 0)


def test_extra_metrics_are_arrays_like_the_losses_or_pairs_with_weights_of_their_own():
    def loss_fn(params, model_state, frozen, batch, key):
        values, weights, model_state, _ = squared_error(params, model_state, frozen, batch, key)
        tokens = jnp.arange(2.0 * values.size).reshape(-1, 2)
        kept = (tokens % 3 == 0) * values[:, None] ** 0
        aux = {"like": values * 10, "pair": (tokens, kept), "never": (tokens, 0 * kept)}
        return Outputs(values, weights, model_state, aux)

    _, metrics = jax.jit(step_of(loss_fn))(make_state(), FROZEN, make_batch())
    np.testing.assert_allclose(metrics["like"], 10 * metrics["loss"], rtol=1e-5)
    tokens = np.arange(2 * DEVICES * ROWS)
    np.testing.assert_allclose(metrics["pair"], tokens[tokens % 3 == 0].mean(), rtol=1e-6)
    assert metrics["never"] == 0


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_an_extra_metric_may_not_take_the_steps_own_name(name):
    def loss_fn(*args):
        values, weights, model_state, _ = squared_error(*args)
        return Outputs(values, weights, model_state, {name: values})

    with pytest.raises(ValueError, match=rf"metrics: got \['{name}'\]"):
        jax.eval_shape(step_of(loss_fn), make_state(), FROZEN, make_batch())


def test_gradients_come_from_the_given_function():
    def doubled(objective, *given):
        assert objective is squared_error
        grads, model_state, metrics = mean_gradient(objective, *given)
        return jax.tree.map(lambda g: 2 * g, grads), model_state, {**metrics, "noise": jnp.ones(())}

    state = make_state()
    moved, metrics = jax.jit(step_of(gradient=doubled))(state, FROZEN, make_batch())
    plain, plain_metrics = jax.jit(step_of())(state, FROZEN, make_batch())
    np.testing.assert_allclose(
        moved.params["w"] - state.params["w"],
        2 * (plain.params["w"] - state.params["w"]),
        rtol=1e-4,
    )
    np.testing.assert_allclose(metrics["grad_norm"], 2 * plain_metrics["grad_norm"], rtol=1e-5)
    assert metrics["noise"] == 1


def test_the_frozen_side_is_an_argument_gets_no_gradient_and_is_not_in_the_state():
    traces = []

    def loss_fn(params, model_state, frozen, batch, key):
        traces.append(1)
        values = jnp.sum(params["w"] * frozen["w"]) * jnp.ones(2)  # symmetric in the two
        return Outputs(values, jnp.ones(2), model_state, {})

    tx = optax.sgd(1.0)
    step, state = jax.jit(step_of(loss_fn, tx)), make_state(tx)
    for factor in (1.0, 3.0):
        teacher = {"w": factor * state.params["w"]}
        after, _ = step(state, teacher, {})
        # d/dw of w·w would be 2 w, were the teacher not held.
        np.testing.assert_allclose(state.params["w"] - after.params["w"], teacher["w"], rtol=1e-5)
        assert jax.tree.structure(after) == jax.tree.structure(state)
    assert len(traces) == 1, "another teacher must not compile another step"


def test_the_key_is_the_steps_own_and_the_same_when_repeated():
    keys = []

    def loss_fn(params, model_state, frozen, batch, key):
        draw = jax.random.uniform(key, (2,))
        return Outputs(0 * draw * params["b"], jnp.ones(2), model_state, {"draw": draw})

    step, state = jax.jit(step_of(loss_fn)), make_state()
    for i in range(3):
        again = step(state, {}, {})[1]["draw"]
        state, metrics = step(state, {}, {})
        assert metrics["draw"] == again
        expected = jax.random.uniform(stream_key(jax.random.key(0), STREAM_TRAIN, i), (2,))
        np.testing.assert_allclose(metrics["draw"], expected.mean(), rtol=1e-6)
        keys.append(float(again))
    assert len(set(keys)) == 3
    assert jnp.array_equal(jax.random.key_data(state.rng), jax.random.key_data(jax.random.key(0)))


def test_streams_and_steps_do_not_meet():
    rng = jax.random.key(0)
    found = {
        tuple(jax.random.key_data(stream_key(rng, stream, step)).tolist())
        for stream in (STREAM_INIT, STREAM_TRAIN)
        for step in range(3)
    }
    assert len(found) == 6


def test_a_step_is_pure():
    tx = optax.sgd(0.1, momentum=0.9)
    state, batch = make_state(tx), make_batch()
    before = jax.tree.map(np.array, (state.params, state.opt_state, batch))
    step = step_of(tx=tx)
    with jax.checking_leaks():
        once, again = (jax.jit(step)(state, FROZEN, batch)[0].params for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, once, again)
    jax.tree.map(np.testing.assert_array_equal, before, (state.params, state.opt_state, batch))


def test_an_evaluation_sums_over_examples_and_devices():
    def eval_fn(variables, frozen, batch):
        error = batch["x"] @ variables["w"] - frozen["scale"] * batch["y"]
        return {"error": (error, batch["weight"]), "rows": (jnp.ones_like(error), 1.0)}

    batch, variables = make_batch(), {"w": np.ones(FEATURES, np.float32)}
    batch["y"][4:8] = np.nan  # weight 0
    pairs = jax.jit(Evaluation(eval_fn))(variables, FROZEN, batch)
    error = batch["x"].sum(1) - 2 * batch["y"]
    kept = batch["weight"] > 0
    np.testing.assert_allclose(pairs["error"][0], (error * batch["weight"])[kept].sum(), rtol=1e-4)
    assert pairs["error"][1] == batch["weight"].sum()
    assert pairs["rows"] == (12, 12)

    spread = split_over_devices(Evaluation(eval_fn))
    for name, pair in spread(variables, FROZEN, batch).items():
        for ours, whole in zip(pair, pairs[name], strict=True):
            np.testing.assert_allclose(ours, np.full(DEVICES, whole), rtol=1e-5)
