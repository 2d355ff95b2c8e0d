import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from distill_core.config import InputError
from distill_core.models.norm import BatchNorm, moments, normalise
from distill_core.runtime import parallel
from distill_core.runtime.collectives import all_sum, num_devices


def _apply(norm, params, state, x, **options):
    y, changed = norm.apply(
        {"params": params, "batch_stats": state}, x, train=True, mutable=["batch_stats"], **options
    )
    return y, changed["batch_stats"]


def _fresh(channels):
    params = {"scale": jnp.linspace(0.5, 2, channels), "bias": jnp.linspace(-1, 1, channels)}
    return params, {"mean": jnp.zeros(channels), "var": jnp.ones(channels)}


def test_batch_norm_agrees_with_pytorch():
    # Computed once with torch.nn.BatchNorm2d(2), in train() and then in eval().
    indices = np.arange(24, dtype=np.float32)
    x = (indices * 7 % 11 / 4 - 1).reshape(3, 2, 2, 2)
    weights = (indices * 5 % 7 / 3 - 1).reshape(3, 2, 2, 2)
    params = {"scale": jnp.array([1.5, -0.5]), "bias": jnp.array([0.25, 1.0])}
    state = {"mean": jnp.zeros(2), "var": jnp.ones(2)}

    def loss(params, x):
        y, new_state = _apply(BatchNorm(), params, state, x)
        return (y * weights).sum(), (y, new_state)

    (d_params, d_x), (y, new_state) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    in_eval = BatchNorm().apply({"params": params, "batch_stats": new_state}, x)

    close = {"rtol": 1e-5, "atol": 2e-6}
    np.testing.assert_allclose(
        y[0].reshape(-1, 2),
        [[-1.8157153, 0.7021608], [-0.4636108, 0.2147877]]
        + [[0.8884938, 1.5144496], [2.2405984, 1.0270764]],
        **close,
    )
    np.testing.assert_allclose(
        d_x[0].reshape(-1, 2),
        [[-2.2172391, -0.5694737], [-0.175946, 0.1330832]]
        + [[1.8653471, -0.0797232], [-0.2999077, 0.6228339]],
        **close,
    )
    np.testing.assert_allclose(d_params["scale"], [-1.7610742, -3.1047478], **close)
    np.testing.assert_allclose(d_params["bias"], [1 / 3, -2 / 3], **close)
    np.testing.assert_allclose(new_state["mean"], [0.01458333, 0.02916667], **close)
    np.testing.assert_allclose(new_state["var"], [0.97552079, 0.96458334], **close)
    np.testing.assert_allclose(
        in_eval[0].reshape(-1, 2),
        [[-1.2908434, 0.6330281], [-0.1518216, 0.2512078]]
        + [[0.9872002, 1.2693956], [2.126222, 0.8875751]],
        **close,
    )


@pytest.mark.parametrize("shape", [(6, 3, 2, 4), (6, 4)])
def test_masked_is_sliced_even_with_nan(rng, shape):
    params, state = _fresh(4)
    x = rng.normal(size=shape).astype(np.float32)
    weights = rng.normal(size=shape).astype(np.float32)
    where = np.array([True, False, True, True, False, True])
    x[~where] = np.nan

    def loss(params, x, weights, mask):
        y, new_state = _apply(BatchNorm(), params, state, x, where=mask)
        counts = jnp.ones(len(x), bool) if mask is None else mask
        y_kept = jnp.where(counts.reshape(-1, *[1] * (x.ndim - 1)), y * weights, 0)
        return y_kept.sum(), (y, new_state)

    grad = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (d_params, d_x), (y, new_state) = grad(params, x, weights, where)
    (d_params_s, d_x_s), (y_s, new_state_s) = grad(params, x[where], weights[where], None)

    np.testing.assert_allclose(y[where], y_s, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_x[where], d_x_s, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(
        (d_params, new_state), (d_params_s, new_state_s), rtol=1e-5, atol=1e-6
    )
    assert np.isfinite(y).all()
    assert (np.asarray(d_x)[~where] == 0).all()


def test_statistics_are_global_over_devices(rng):
    devices = 8
    assert jax.device_count() >= devices
    params, state = _fresh(4)
    x = rng.normal(size=(devices, 2, 3, 3, 4), loc=2).astype(np.float32)
    weights = rng.normal(size=x.shape).astype(np.float32)
    where = np.ones((devices, 2), bool)
    where[0], where[3, 1], where[7] = False, False, False  # uneven, two devices empty
    x[~where] = np.nan

    def loss(params, x, weights, mask):
        y, new_state = _apply(BatchNorm(), params, state, x, where=mask)
        return jnp.where(mask[:, None, None, None], y * weights, 0).sum(), (y, new_state)

    def local(params, x, weights, mask):
        grad, (y, new_state) = jax.grad(loss, has_aux=True)(params, x, weights, mask)
        return jax.lax.psum(grad, "data"), y, new_state

    d_params, y, new_state = jax.pmap(
        local, axis_name="data", in_axes=(None, 0, 0, 0), out_axes=(None, 0, None)
    )(params, x, weights, where)

    def merged(a):
        return a.reshape(-1, *a.shape[2:])

    d_params_one, (y_one, new_state_one) = jax.grad(loss, has_aux=True)(
        params, merged(x), merged(weights), merged(where)
    )
    np.testing.assert_allclose(merged(y), y_one, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(
        (d_params, new_state), (d_params_one, new_state_one), rtol=1e-5, atol=1e-5
    )


def test_gradients_of_inputs_cross_devices(rng):
    # The rows of one device move the statistics, and so the loss, of the others.
    x = rng.normal(size=(8, 2, 3)).astype(np.float32)
    weights = rng.normal(size=x.shape).astype(np.float32)
    params, state = _fresh(3)

    def loss(x, weights):
        return (_apply(BatchNorm(), params, state, x)[0] * weights).sum()

    d_x = jax.pmap(jax.grad(loss), axis_name="data")(x, weights)
    d_x_one = jax.grad(loss)(x.reshape(-1, 3), weights.reshape(-1, 3))
    np.testing.assert_allclose(d_x.reshape(-1, 3), d_x_one, rtol=1e-5, atol=1e-5)


def test_variance_survives_a_large_mean(rng):
    x = (1e4 + rng.normal(size=(4096, 1))).astype(np.float32)
    params, state = _fresh(1)
    _, new_state = _apply(BatchNorm(momentum=0.0), params, state, x)
    np.testing.assert_allclose(new_state["var"], x.astype(np.float64).var(0, ddof=1), rtol=1e-3)


@dataclasses.dataclass(frozen=True)
class Normed:
    """A step that tells the statistics of its batch and the gradient of its inputs."""

    def __call__(self, state, frozen, batch):
        def loss(shift):
            mean, var, count = moments(batch["x"] + shift, batch["where"])
            return jnp.sum(mean * frozen["a"] + var * frozen["b"]), (mean, var, count)

        grad, found = jax.grad(loss, has_aux=True)(jnp.zeros((1, 2)))
        return state, (*found, all_sum(grad) / num_devices())


@pytest.mark.parametrize("mode", ["jit", *parallel.MODES])
def test_moments_are_exact_on_devices_of_uneven_masks_even_of_large_means(mode, rng):
    x = (np.array([1e4, -3.0]) + rng.normal(size=(64, 2)) * [1, 100]).astype(np.float32)
    where = rng.uniform(size=64) < np.repeat([0.0, 0.1, 0.9, 1.0, 0.5, 0.5, 1.0, 0.3], 8)
    batch = parallel.feed({"x": np.where(where[:, None], x, 0), "where": where}, mode)
    frozen = parallel.place({"a": np.float32([2, 0]), "b": np.float32([0, 3])}, mode)
    _, (mean, var, count, grad) = parallel.wrap(Normed(), mode)({}, frozen, batch)
    kept = x[where].astype(np.float64)
    assert count == where.sum()
    np.testing.assert_allclose(mean, kept.mean(0), rtol=1e-6)
    np.testing.assert_allclose(var, kept.var(0), rtol=1e-4)
    # A shift of all moves the mean by as much, and no variance.
    np.testing.assert_allclose(grad[0], [2, 0], atol=1e-3)


def test_masked_rows_come_out_finite_and_a_fully_masked_batch_changes_nothing():
    params, state = _fresh(2)
    x = jnp.full((3, 2), jnp.nan)
    y, new_state = _apply(BatchNorm(), params, state, x, where=jnp.zeros(3, bool))
    jax.tree.map(np.testing.assert_array_equal, new_state, state)
    variables, some = {"params": params, "batch_stats": state}, jnp.array([True, False, True])
    kept = BatchNorm().apply(variables, x.at[::2].set(1.5), where=some)
    np.testing.assert_array_equal(kept[2], BatchNorm().apply(variables, jnp.full((1, 2), 1.5))[0])
    assert np.isfinite(y).all() and np.isfinite(kept).all()


class _Normalised(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x, train=False, where=None):
        return normalise(self.kind, x, train=train, where=where)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((3, 2, 2, 1), 1), ((3, 2, 2, 20), 10), ((3, 6), 6), ((3, 17), 17), ((3, 64), 16)],
)
def test_group_norm_takes_any_width_and_keeps_examples_apart(rng, shape, channels):
    x = rng.normal(size=shape).astype(np.float32)
    y, variables = _Normalised("group").init_with_output(jax.random.key(0), x, train=True)
    assert list(variables) == ["params"]
    alone = _Normalised("group").apply(variables, x[1:2])
    np.testing.assert_allclose(y[1:2], alone, rtol=1e-5, atol=1e-6)
    groups = np.reshape(y, (3, -1, shape[-1] // channels, channels))
    np.testing.assert_allclose(groups.mean(axis=(1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(groups.var(axis=(1, 3)), 1, atol=1e-3)


def test_no_norm_is_the_identity_and_an_unknown_one_is_refused(rng):
    x = rng.normal(size=(2, 3)).astype(np.float32)
    y, variables = _Normalised("none").init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, x)
    assert not variables
    with pytest.raises(InputError, match="^norm: "):
        normalise("layer", x)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
