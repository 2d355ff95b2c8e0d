"""Dense layers' per-example gradients as two vectors: which layers, and the same sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from distill_core.privacy import dense
from distill_core.privacy.per_example import bounded_gradient_sum

B, D = 12, 20


def doubled(*arrays, dtype=None, inexact=True):
    """Another kernel than the parameter."""
    return [None if x is None else 2 * x for x in arrays]


def _called(layer, x, extra):
    """By way of another transformation, in which the layer's input is another tracer."""
    if extra == "vmap":
        return jax.vmap(layer)(x)
    if extra == "jit":
        variables = layer.init(jax.random.key(0), x) if layer.is_initializing() else None
        return layer(x) if variables else jax.jit(lambda x: layer(x))(x)
    if extra == "penalty":
        return layer(x) + jax.grad(lambda x: jnp.square(layer(x)).sum())(x).sum()
    return layer(x)


class Net(nn.Module):
    """Two dense layers that fit, one that is small, and what `extra` adds."""

    extra: str = ""

    @nn.compact
    def __call__(self, x):
        dtype = jnp.bfloat16 if self.extra == "low" else None
        how = {"promote_dtype": doubled} if self.extra == "promote" else {}
        first = nn.Dense(30, name="first", dtype=dtype, **how)
        y = nn.relu(_called(first, x, self.extra)).astype(jnp.float32)
        if self.extra == "twice":
            y = y + nn.relu(first(2 * x))
        if self.extra == "tied":
            y = y + jnp.tanh(x @ first.variables["params"]["kernel"])
        if self.extra == "remat":
            y = nn.remat(nn.Dense)(30, name="again")(y)
        y = nn.Dense(24, name="second")(y)
        return nn.Dense(2, name="small")(nn.tanh(y))


def made(extra="", rows=1):
    """(loss, params, batch); an example is so many rows."""
    module = Net(extra)
    params = module.init(jax.random.key(0), jnp.zeros((1, D)))["params"]
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(B, rows, D)).astype(np.float32), rng.integers(0, 2, B)

    def loss(params, example):
        x, label = example
        return -jax.nn.log_softmax(module.apply({"params": params}, x).mean(0))[label]

    return loss, params, batch


def found(extra="", rows=1):
    loss, params, batch = made(extra, rows)
    kernels = dense.find(loss, params, jax.tree.map(lambda x: x[0], batch))
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    return [jax.tree_util.keystr(paths[i], simple=True, separator=".") for i in kernels]


@pytest.mark.parametrize(
    ("extra", "rows", "kernels"),
    [
        ("", 1, ["first.kernel", "second.kernel"]),
        ("", 2, []),  # a sum of outer products is none
        ("twice", 1, ["second.kernel"]),
        ("tied", 1, ["second.kernel"]),
        ("low", 1, ["second.kernel"]),
        ("remat", 1, ["first.kernel", "second.kernel"]),
        ("jit", 1, ["second.kernel"]),
        ("vmap", 1, ["second.kernel"]),
        ("penalty", 1, ["second.kernel"]),
        ("promote", 1, ["second.kernel"]),
    ],
)
def test_layers_of_one_call_on_one_row_are_found(extra, rows, kernels):
    assert found(extra, rows) == kernels


@pytest.mark.parametrize("mode", ["normalize", "clip"])
@pytest.mark.parametrize(
    ("extra", "rows"),
    [
        *[("", 1), ("", 2), ("twice", 1), ("tied", 1), ("low", 1), ("remat", 1)],
        *[("jit", 1), ("vmap", 1), ("penalty", 1), ("promote", 1)],
    ],
)
def test_the_sum_is_that_of_whole_gradients(extra, rows, mode):
    loss, params, batch = made(extra, rows)
    where = np.arange(B) != 3
    ours = jax.jit(
        lambda p, b: bounded_gradient_sum(
            loss, p, b, norm=0.5, mode=mode, where=where, microbatch_size=5
        )
    )(params, batch)
    whole = jax.vmap(jax.grad(loss), (None, 0))(params, batch)
    squares = sum(jnp.square(g).reshape(B, -1).sum(1) for g in jax.tree.leaves(whole))
    factors = 0.5 / np.sqrt(squares)
    factors = np.where(where, factors if mode == "normalize" else np.minimum(1, factors), 0)
    for one, all_of_it in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
        expected = np.tensordot(factors, all_of_it, 1)
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-5 if extra != "low" else 2e-2)


def test_parameters_that_the_loss_reads_besides_its_argument_are_constants():
    """A network as its own teacher: the gradient is of one of both."""
    loss, params, batch = made()

    def of_both(mine, example):
        return jnp.square(loss(mine, example) - 0.5 * loss(params, example) - 1)

    @jax.jit
    def both(params, batch):
        def of_both(mine, example):
            return jnp.square(loss(mine, example) - 0.5 * loss(params, example) - 1)

        ours = bounded_gradient_sum(of_both, params, batch, norm=1e3, mode="clip")
        return ours, jax.vmap(jax.grad(of_both), (None, 0))(params, batch)

    eager = bounded_gradient_sum(of_both, params, batch, norm=1e3, mode="clip")
    traced, whole = both(params, batch)
    for one, two, each in zip(*map(jax.tree.leaves, (eager, traced, whole)), strict=True):
        np.testing.assert_allclose(one, each.sum(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(two, each.sum(0), rtol=1e-4, atol=1e-5)


def test_two_leaves_may_be_one_array():
    kernel = jnp.ones((D, D)) / D
    params = {"a": {"kernel": kernel}, "b": {"kernel": kernel}}
    x = np.random.default_rng(0).normal(size=(B, 1, D)).astype(np.float32)
    layer = nn.Dense(D, use_bias=False)

    def loss(params, x):
        y = jnp.tanh(layer.apply({"params": params["a"]}, x))
        return jnp.square(layer.apply({"params": params["b"]}, y)).sum()

    ours = bounded_gradient_sum(loss, params, x, norm=1e3, mode="clip")
    whole = jax.vmap(jax.grad(loss), (None, 0))(params, x)
    for one, each in zip(*map(jax.tree.leaves, (ours, whole)), strict=True):
        np.testing.assert_allclose(one, each.sum(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_what_is_not_finite_counts_nothing_in_the_vectors(bad):
    loss, params, (x, labels) = made()
    broken = x.copy()
    broken[4] = bad

    def total(x, where):
        return bounded_gradient_sum(
            loss, params, (x, labels), norm=1.0, mode="normalize", where=where
        )

    ours = total(broken, None)
    others = np.arange(B) != 4
    expected = total(x, others)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(one).all()
        if not np.isfinite(bad):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("exponent", [-30, -18, -12, 0, 12, 18])
def test_no_scale_of_a_layer_carries_a_contribution_beyond_the_norm(exponent):
    """Inputs as large as their gradients are small: neither square is held by float32."""
    scale = 10.0**exponent

    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(40, use_bias=False)(x / scale).sum() * scale

    params = Scaled().init(jax.random.key(0), jnp.zeros((1, D)))["params"]
    x = np.random.default_rng(0).normal(size=(1, 1, D)).astype(np.float32)

    def loss(params, x):
        return Scaled().apply({"params": params}, x)

    assert dense.find(loss, params, x[0]) == [0]
    (kernel,) = jax.tree.leaves(bounded_gradient_sum(loss, params, x, norm=1.0, mode="normalize"))
    length = np.linalg.norm(np.asarray(kernel, np.float64))
    assert length <= 1.0001 and (length > 0.9999 or length == 0)
    if abs(exponent) <= 12:
        assert length > 0.9999
