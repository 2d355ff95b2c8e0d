"""Optimisers against PyTorch's recurrences, schedules at their knots."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_core.training.optimizers import Optimizer

STEPS = 7


def gradient(step, x):
    """Of some function that is not quadratic, and different at every step."""
    return np.sin(x + step) + 0.3 * x


def run(tx, params):
    """The trajectory of one tree under jit."""
    state = tx.init(params)
    update = jax.jit(tx.update)
    trajectory = []
    for step in range(STEPS):
        grads = jax.tree.map(lambda x: jnp.asarray(gradient(step, np.asarray(x))), params)  # noqa: B023
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        trajectory.append(params)
    return trajectory


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {
        "kernel": rng.normal(size=(3, 2)).astype(np.float32),
        "bias": rng.normal(size=2).astype(np.float32),
    }


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_is_pytorchs(params, momentum, weight_decay):
    """torch.optim.SGD: g += λ p; v = μ v + g; p −= η v, with η dropping after steps 2 and 4."""
    drops = {"schedule": "step", "drop_steps": (2, 4), "drop_factor": 0.5}
    given = {"momentum": momentum, "weight_decay": weight_decay, "learning_rate": 0.2, **drops}
    rates = [0.2, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05]
    found = run(Optimizer(num_steps=STEPS, **given).make(), params)
    for name in params:
        p, v = params[name].astype(np.float64), 0.0
        for step in range(STEPS):
            v = momentum * v + gradient(step, p) + weight_decay * p
            p = p - rates[step] * v
            np.testing.assert_allclose(found[step][name], p, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_is_pytorchs(params, weight_decay):
    """torch.optim.Adam: its weight decay is L2, inside the moments (not AdamW's)."""
    given = {"optimizer": "adam", "weight_decay": weight_decay, "learning_rate": 0.1}
    found = run(Optimizer(num_steps=STEPS, **given).make(), params)
    for name in params:
        p, m, v = params[name].astype(np.float64), 0.0, 0.0
        for step in range(STEPS):
            g = gradient(step, p) + weight_decay * p
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            p = p - 0.1 * m_hat / (np.sqrt(v_hat) + 1e-8)
            np.testing.assert_allclose(found[step][name], p, rtol=1e-4, atol=1e-5)


def rates(count, **kwargs):
    """The rates of the first steps of a run of 100, from 0.4."""
    schedule = Optimizer(learning_rate=0.4, num_steps=100, **kwargs).make_schedule()
    return np.asarray(jax.vmap(schedule)(jnp.arange(count)))


def test_rates_are_constant_or_drop_at_steps_or_fall_in_a_cosine():
    np.testing.assert_allclose(rates(100), 0.4, rtol=1e-6)
    found = rates(100, schedule="step", drop_steps=(40, 60), drop_factor=0.2)
    expected = np.repeat([0.4, 0.08, 0.016], [40, 20, 40])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    found = rates(101, schedule="cosine")
    np.testing.assert_allclose(found[[0, 50, 100]], [0.4, 0.2, 0.0], atol=1e-7)
    assert np.all(np.diff(found) < 0)


def test_onecycle_peaks_at_the_rate_after_three_tenths():
    found = rates(101, schedule="onecycle")
    assert np.argmax(found) == 30
    np.testing.assert_allclose(found[30], 0.4, rtol=1e-6)
    np.testing.assert_allclose(found[0], 0.4 / 25, rtol=1e-3)
    assert 0 <= found[100] < 1e-4 * found[0] * 25
    assert np.all(np.diff(found[:31]) > 0)
    assert np.all(np.diff(found[30:]) < 0)


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "onecycle"])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_shortest_runs_have_finite_rates(schedule, num_steps):
    drops = {"drop_steps": (1,)} if schedule == "step" else {}
    made = Optimizer(learning_rate=0.4, schedule=schedule, num_steps=num_steps, **drops)
    found = np.array([made.make_schedule()(step) for step in range(num_steps)])
    assert np.isfinite(found).all()
    assert found.max() <= 0.4 + 1e-6
    assert found.max() > 0.1
