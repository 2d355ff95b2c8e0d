import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from flax import linen as nn

from distill_core.models import apply_model, count_parameters, features, init_model


class Plain(nn.Module):
    """A user's network that takes neither `train` nor `where`."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Dropping(nn.Module):
    """A user's network that takes `train`, and keeps two collections and no `where`."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(x.shape[0], -1))
        calls = self.variable("counters", "calls", jnp.zeros, ())
        self.variable("constants", "answer", jnp.ones, ())
        if train:
            calls.value += 1
        return x


@pytest.fixture
def x():
    return jnp.ones((2, 4, 4, 1))


def test_a_network_with_neither_argument(x):
    module = Plain()
    params, state = init_model(module, jax.random.key(0), (4, 4, 1))
    assert type(params) is dict
    assert state == {}
    assert count_parameters(params) == 16 * 3 + 3
    where = jnp.ones(2, bool)
    logits = apply_model(module, {"params": params}, x, train=False, where=where)
    trained, new_state = apply_model(module, {"params": params}, x, train=True, where=where)
    np.testing.assert_array_equal(logits, trained)
    assert logits.shape == (2, 3)
    assert new_state == {}
    assert features(module, {"params": params}, x) is None


def test_state_and_dropout(x):
    module = Dropping()
    params, state = init_model(module, jax.random.key(0), (4, 4, 1))
    assert params == {}
    assert set(state) == {"counters", "constants"}
    state["unused"] = {"value": jnp.zeros(())}
    dropped, new_state = apply_model(module, state, x, train=True, key=jax.random.key(1))
    other, _ = apply_model(module, state, x, train=True, key=jax.random.key(2))
    assert (dropped == 0).any() and (dropped != other).any()
    changed = {name: list(each.values()) for name, each in new_state.items()}
    assert changed == {"counters": [1], "constants": [1], "unused": [0]}
    np.testing.assert_array_equal(apply_model(module, state, x, train=False), jnp.ones((2, 16)))


class Sowing(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False, where=None):
        self.sow("intermediates", "features", x.reshape(x.shape[0], -1))
        self.variable("counters", "calls", jnp.zeros, ())
        return x.mean(axis=(1, 2))


def test_further_collections_come_on_request(x):
    module = Sowing()
    _, state = init_model(module, jax.random.key(0), (4, 4, 1))
    for train, wanted in ((False, {"intermediates"}), (True, {"counters", "intermediates"})):
        _, found = apply_model(module, state, x, train=train, mutable=("intermediates",))
        assert set(found) == wanted
    np.testing.assert_array_equal(features(module, state, x), jnp.ones((2, 16)))


class Remembering(nn.Module):
    """A user's network that writes to its constants in training."""

    @nn.compact
    def __call__(self, x, train):
        kept = self.variable("constants", "mean", jnp.zeros, (16,))
        if train:
            kept.value = x.reshape(len(x), -1).mean(0)
        return nn.Dense(3)(x.reshape(len(x), -1))


def test_training_changes_no_constant(x):
    module = Remembering()
    params, state = init_model(module, jax.random.key(0), (4, 4, 1))
    with pytest.raises(errors.ModifyScopeVariableError):
        apply_model(module, {"params": params, **state}, x, train=True)
