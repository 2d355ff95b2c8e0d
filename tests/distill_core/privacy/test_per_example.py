"""Bounded sums of per-example gradients: the formula, the bound under attack, and the noise."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax_privacy import clipping

from distill_core.losses import cross_entropy
from distill_core.models import create_model
from distill_core.models.apply import apply_model, init_model
from distill_core.privacy.per_example import (
    SLACK,
    bounded_gradient_sum,
    linear_gradient_sum,
    noisy_sum,
    slack,
)

B = 12
MODES = ["normalize", "clip"]
KEY = jax.random.key(5)


def draw_mlp(seed=0, width=7):
    rng = np.random.default_rng(seed)
    params = {
        "first": rng.normal(size=(4, width)).astype(np.float32),
        "bias": rng.normal(size=width).astype(np.float32),
        "last": rng.normal(size=(width, 3)).astype(np.float32),
    }
    batch = {
        "x": rng.normal(size=(B, 4)).astype(np.float32),
        "y": rng.integers(0, 3, B),
        "scale": np.float32(10) ** rng.integers(-6, 3, B),
    }
    return params, batch


def mlp_loss(params, example):
    hidden = jnp.tanh(example["x"] @ params["first"] + params["bias"])
    return example["scale"] * cross_entropy(hidden @ params["last"], example["y"])


def contributions(loss_fn, params, batch, **settings):
    """What each example puts into the sum of the whole batch, float64 [B, P]."""
    rows = jax.tree.leaves(batch)[0].shape[0]

    @jax.jit
    def alone(where):
        return bounded_gradient_sum(loss_fn, params, batch, where=where, **settings)

    found = [jax.tree.leaves(alone(where)) for where in jnp.eye(rows, dtype=bool)]
    return np.array([np.concatenate([np.ravel(g) for g in leaves]) for leaves in found], float)


def direct(loss_fn, params, batch, norm, mode, where):
    """The formula, from `vmap(grad)`, in float64."""
    grads = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(params, batch)
    grads = jax.tree.map(lambda g: np.asarray(g, np.float64), grads)
    norms = np.sqrt(sum((g.reshape(len(g), -1) ** 2).sum(1) for g in jax.tree.leaves(grads)))
    weights = norm / norms if mode == "normalize" else np.minimum(1, norm / norms)
    weights = np.where(where, weights, 0)
    return jax.tree.map(lambda g: np.tensordot(weights, g, 1), grads)


def assert_close(found, expected, rtol=1e-5, atol=1e-6):
    chex.assert_trees_all_close(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("microbatch_size", [None, 3, 5, B, 100])
def test_it_is_the_formula_for_any_microbatch(mode, microbatch_size):
    params, batch = draw_mlp()
    where = np.arange(B) % 5 != 2

    settings = {"mode": mode, "where": where, "microbatch_size": microbatch_size}

    def found(norm):
        return bounded_gradient_sum(mlp_loss, params, batch, norm=norm, **settings)

    expected = direct(mlp_loss, params, batch, 0.3, mode, where)
    assert_close(jax.jit(found)(0.3), expected)


@pytest.mark.filterwarnings("ignore:optax.global_norm:DeprecationWarning")  # jax_privacy's
@pytest.mark.parametrize("mode", MODES)
def test_on_a_convolutional_network_it_is_what_jax_privacy_computes(mode):
    module = create_model("cnn", num_classes=3, widths=[4, 8], hidden=8, norm="group")
    params, model_state = init_model(module, jax.random.key(0), (8, 8, 1))
    assert not model_state, "a network with batch statistics cannot be used"
    rng = np.random.default_rng(1)
    batch = rng.normal(size=(B, 8, 8, 1)).astype(np.float32), rng.integers(0, 3, B)

    def loss_fn(params, example):
        logits = apply_model(module, {"params": params}, example[0][None], train=False)
        return cross_entropy(logits[0], example[1])

    norm = 1.0 if mode == "normalize" else 0.5
    oracle = clipping.clipped_grad(
        loss_fn,
        l2_clip_norm=0.0 if mode == "normalize" else norm,
        rescale_to_unit_norm=mode == "normalize",
        keep_batch_dim=False,
    )
    expected = jax.jit(oracle)(params, batch)

    @jax.jit
    def ours(params, batch):
        return bounded_gradient_sum(loss_fn, params, batch, norm=norm, mode=mode, microbatch_size=4)

    assert_close(ours(params, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_a_gradient_counts_as_exactly_nothing_and_touches_no_other(mode):
    tiny, huge = 1e-30, 1e30  # a square of either is lost
    rows = np.array(
        [[3, 4], [0, 0], [np.nan, 1], [np.inf, 0], [1, -np.inf], [tiny, 0], [huge, 1], [0, 0.01]],
        np.float32,
    )
    where = np.arange(len(rows)) < 7

    def found(rows, where=None):
        settings = {"norm": 0.5, "mode": mode, "where": where, "microbatch_size": 3}
        call = jax.jit(
            lambda w: bounded_gradient_sum(lambda w, x: jnp.sum(w * x), w, rows, **settings)
        )
        return np.asarray(call(jnp.ones(2)))

    np.testing.assert_array_equal(found(rows, where), found(rows[:1]))
    np.testing.assert_allclose(found(rows, where), [0.3, 0.4], rtol=1e-6)
    np.testing.assert_array_equal(found(rows[1:7]), 0.0)
    masked = np.where(where[:, None], rows, np.nan)
    np.testing.assert_array_equal(found(masked, where), found(rows, where))


def agreeing(precision):
    """A teacher that returns what the student does: gradients are little more than rounding."""
    rng = np.random.default_rng(0)
    params = rng.normal(size=(30, 10)).astype(np.float32)
    x = rng.normal(size=(8, 30)).astype(np.float32)

    def logits(params, x):
        if precision == "params":
            params, x = params.astype(jnp.bfloat16), x.astype(jnp.bfloat16)
        return jnp.tanh(x @ params).astype(jnp.float32)

    def loss_fn(params, example):
        x, probs = example
        return -jnp.sum(probs * jax.nn.log_softmax(logits(params, x)))

    return loss_fn, params, (x, jax.nn.softmax(logits(params, x)))


@pytest.mark.parametrize("microbatch_size", [2, 8])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "params"])
def test_no_teacher_and_no_precision_carries_a_contribution_beyond_the_norm(
    precision, microbatch_size
):
    with jax.default_matmul_precision("bfloat16" if precision == "bfloat16" else "highest"):
        loss_fn, params, batch = agreeing(precision)
        found = contributions(
            loss_fn, params, batch, norm=0.7, mode="normalize", microbatch_size=microbatch_size
        )
    norms = np.linalg.norm(found, axis=1)
    assert np.count_nonzero(norms) > 4, "nothing was tried"
    np.testing.assert_allclose(norms[norms > 0], 0.7, rtol=SLACK / 50)


@pytest.mark.parametrize("exponent", [-25, -19, -14, -9, 0, 16])
@pytest.mark.parametrize("mode", MODES)
def test_the_bound_holds_at_any_scale(exponent, mode):
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(4, 5000)) * 10.0**exponent).astype(np.float32)
    rows[0] = np.float32(10.0**exponent)  # each sum of equal terms is rounded the same way
    found = contributions(lambda w, x: jnp.sum(w * x), jnp.zeros(5000), rows, norm=1e-3, mode=mode)
    norms = np.linalg.norm(found, axis=1)
    if exponent < -13:
        np.testing.assert_array_equal(norms, 0.0)
    elif mode == "clip" and exponent < -4:
        np.testing.assert_allclose(found, rows, rtol=1e-6)
    else:
        np.testing.assert_allclose(norms, 1e-3, rtol=SLACK / 50)


def test_examples_may_bring_keys_and_the_rest_of_the_batch_changes_no_contribution():
    rows, keys = np.arange(15, dtype=np.float32).reshape(5, 3), jax.random.split(KEY, 5)

    def loss_fn(w, example):
        x, key = example
        return jnp.sum(w * x * jax.random.bernoulli(key, 0.5, x.shape))

    settings = {"norm": 1e3, "mode": "clip", "microbatch_size": 2}
    found = contributions(loss_fn, jnp.ones(3), (rows, keys), **settings)
    kept = np.array([jax.random.bernoulli(key, 0.5, (3,)) for key in keys])
    np.testing.assert_allclose(found, rows * kept)
    assert 0 < kept.sum() < 15


def test_on_accelerators_microbatches_run_in_a_loop_with_the_same_result(monkeypatch):
    params, batch = draw_mlp()
    settings = {"norm": 1.0, "mode": "normalize", "where": np.arange(B) != 3, "microbatch_size": 5}

    def found():
        return bounded_gradient_sum(mlp_loss, params, batch, **settings)

    expected = jax.jit(found)()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "scan" in str(jax.make_jaxpr(lambda: found())())
    assert_close(jax.jit(lambda: found())(), expected)


def test_gradients_of_the_whole_batch_are_never_held_at_once():
    rows, width = 64, 128
    params = {"a": jnp.ones((width, width)), "b": jnp.ones((width, width))}

    def loss_fn(params, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]))

    def temporary(microbatch_size):
        def found(params, x):
            return bounded_gradient_sum(
                loss_fn, params, x, norm=1.0, mode="clip", microbatch_size=microbatch_size
            )

        compiled = jax.jit(found).lower(params, jnp.ones((rows, 16, width))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = rows * 2 * width**2 * 4
    assert temporary(rows) > whole / 2, "the measure measures"
    assert temporary(4) < whole / 4


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mode": "norm"}, "^mode: "),
        ({"norm": 0.0}, "^norm: "),
        ({"norm": np.inf}, "^norm: "),
        ({"microbatch_size": 0}, "^microbatch_size: "),
        ({"where": np.ones(3, bool)}, "leading axis"),
        ({"loss_fn": lambda w, x: w * x}, r"\(2,\)"),
    ],
)
def test_wrong_arguments_are_refused(settings, named):
    wanted = {"loss_fn": lambda w, x: jnp.sum(w * x), "norm": 1.0, "mode": "clip", **settings}
    loss_fn = wanted.pop("loss_fn")
    with pytest.raises(ValueError, match=named):
        bounded_gradient_sum(loss_fn, jnp.ones(2), jnp.ones((4, 2)), **wanted)


def test_the_noise_is_gaussian_of_the_given_scale_once_and_new_for_each_leaf_and_key():
    tree = {"a": jnp.full((50, 200), 3.0, jnp.bfloat16), "b": jnp.zeros(10_000)}

    def noise(key, multiplier=1.5):
        found = jax.jit(lambda key: noisy_sum(key, tree, norm=0.4, noise_multiplier=multiplier))(
            key
        )
        assert found["a"].dtype == jnp.float32
        return np.array([np.ravel(found["a"] - 3.0), found["b"]])

    found = noise(KEY)
    assert scipy.stats.kstest(found.ravel(), scipy.stats.norm(0, 0.6).cdf).pvalue > 0.01
    for wrong in (0.94, 1.06):
        assert scipy.stats.kstest(found.ravel(), scipy.stats.norm(0, wrong * 0.6).cdf).pvalue < 0.01
    together = np.corrcoef(np.concatenate([found, noise(jax.random.key(6))])) - np.eye(4)
    assert np.abs(together).max() < 5 / 10_000**0.5
    np.testing.assert_array_equal(noise(KEY, 0.0), 0.0)
    with pytest.raises(ValueError, match="noise_multiplier: got -1"):
        noise(KEY, -1)


@pytest.mark.parametrize("mode", MODES)
def test_eight_devices_give_the_numbers_of_one(mode):
    params, batch = draw_mlp()
    batch = jax.tree.map(lambda x: np.concatenate([x, x])[:24], batch)
    where = np.arange(24) % 7 != 0
    where[3:6] = False  # one device has nothing

    def step(batch, where):
        total = bounded_gradient_sum(mlp_loss, params, batch, norm=1.0, mode=mode, where=where)
        return noisy_sum(KEY, total, norm=1.0, noise_multiplier=0.1)

    expected = jax.jit(step)(batch, where)
    split = jax.tree.map(lambda x: x.reshape(8, 3, *x.shape[1:]), (batch, where))
    found = jax.pmap(step, axis_name="data")(*split)
    for device in range(8):
        assert_close(jax.tree.map(lambda g, d=device: g[d], found), expected)
    moved = noisy_sum(jax.random.key(9), expected, norm=1.0, noise_multiplier=0.1)
    assert np.abs(moved["bias"] - expected["bias"]).max() > 0.05, "the noise is seen"


@pytest.mark.parametrize("num", [1, 3])
def test_a_sum_of_many_that_point_one_way_moves_by_its_norm_and_the_slack_of_its_rounding(num):
    """float32 knows a sum of 2,000 to 1e-4 only: that is more than a single gradient's slack."""
    rng, count, norm = np.random.default_rng(0), 2000, 0.7
    way = rng.normal(size=num)
    batch = jnp.asarray(way / np.linalg.norm(way) * rng.uniform(1.5, 9.0, (count, 1)), jnp.float32)

    @jax.jit
    def clipped(where):
        loss, params = (lambda w, x: jnp.sum(w * x)), jnp.zeros(num)
        given = {"norm": norm, "mode": "clip", "where": where, "microbatch_size": count}
        return bounded_gradient_sum(loss, params, batch, **given)

    whole, moves = np.asarray(clipped(np.ones(count, bool)), np.float64), []
    for record in range(0, count, 50):
        where = np.ones(count, bool)
        where[record] = False
        moves.append(np.linalg.norm(whole - np.asarray(clipped(where), np.float64)))
    assert max(moves) <= norm * (1 + slack(count))


def draw_layer(rows=40, width=6, classes=3):
    rng = np.random.default_rng(2)
    layer = {"kernel": rng.normal(size=(width, classes)), "bias": rng.normal(size=classes)}
    layer = jax.tree.map(np.float32, layer)
    features = rng.normal(size=(rows, width)).astype(np.float32) * rng.uniform(0.01, 9, (rows, 1))
    batch = {
        "y": rng.integers(0, classes, rows),
        "scale": np.float32(10) ** rng.integers(-4, 3, rows),
    }
    return layer, features.astype(np.float32), batch


def layer_loss(logits, batch):
    return batch["scale"] * cross_entropy(logits, batch["y"])


def layer_example_loss(layer, example):
    features, batch = example
    logits = features @ layer["kernel"] + layer["bias"]
    return batch["scale"] * cross_entropy(logits, batch["y"])


@pytest.mark.filterwarnings("ignore:optax.global_norm:DeprecationWarning")  # jax_privacy's
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk", [1, 7, 20, 4096])
def test_of_a_linear_layer_the_closed_form_is_what_jax_privacy_computes(mode, chunk):
    layer, features, batch = draw_layer()
    norm = 1.0 if mode == "normalize" else 0.5
    oracle = clipping.clipped_grad(
        layer_example_loss,
        l2_clip_norm=0.0 if mode == "normalize" else norm,
        rescale_to_unit_norm=mode == "normalize",
        keep_batch_dim=False,
    )
    expected = jax.jit(oracle)(layer, (features, batch))

    @jax.jit
    def ours(layer, features, batch):
        settings = {"norm": norm, "mode": mode, "chunk": chunk}
        return linear_gradient_sum(layer_loss, layer, features, batch, **settings)

    assert_close(ours(layer, features, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_the_closed_form_counts_the_rows_that_the_sum_of_gradients_counts(mode):
    layer, features, batch = draw_layer()
    where = np.arange(40) % 5 != 2
    features[2], features[3, 1], features[4, 0] = np.nan, np.nan, -np.inf
    features[7] = np.inf  # masked
    batch["scale"][[6, 8]] = np.nan, 1e-30
    settings = {"norm": 0.3, "mode": mode, "where": where}

    @jax.jit
    def both(features, batch):
        direct = bounded_gradient_sum(layer_example_loss, layer, (features, batch), **settings)
        return direct, linear_gradient_sum(layer_loss, layer, features, batch, **settings, chunk=7)

    expected, found = both(features, batch)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # What does not count is exactly nothing: other junk in its place changes no bit.
    gone = ~where | np.isin(np.arange(40), [3, 4, 6, 8])
    others = np.where(gone[:, None], np.float32(np.nan), features)
    chex.assert_trees_all_equal(both(others, batch)[1], found)
    nothing = linear_gradient_sum(
        layer_loss, layer, features, batch, norm=0.3, mode=mode, where=where & gone
    )
    chex.assert_trees_all_equal(nothing, jax.tree.map(np.zeros_like, layer))


@pytest.mark.parametrize("exponent", [-30, -21, -19, -13, -5, 0, 9, 18, 25])
@pytest.mark.parametrize("mode", MODES)
def test_no_features_and_no_residual_carry_a_row_of_the_closed_form_beyond_the_norm(exponent, mode):
    rng = np.random.default_rng(0)
    params = {"kernel": np.zeros((50, 4), np.float32), "bias": np.zeros(4, np.float32)}
    features = (rng.normal(size=(6, 50)) * 10.0 ** rng.integers(-12, 19, (6, 1))).astype(np.float32)
    residuals = (rng.normal(size=(6, 4)) * 10.0**exponent).astype(np.float32)

    @jax.jit
    def alone(where):
        def loss(logits, given):
            return jnp.sum(logits * given, axis=1)

        settings = {"norm": 0.7, "mode": mode, "where": where}
        return linear_gradient_sum(loss, params, features, residuals, **settings)

    for row in np.eye(6, dtype=bool):
        leaves = jax.tree.leaves(alone(row))
        norm = np.linalg.norm(np.concatenate([np.ravel(x) for x in leaves]).astype(np.float64))
        assert norm <= 0.7 * (1 + SLACK / 50)
        if mode == "normalize" and norm:
            assert norm == pytest.approx(0.7, rel=SLACK / 50)


@pytest.mark.parametrize("mode", MODES)
def test_large_features_do_not_magnify_what_the_square_of_a_residual_loses(mode):
    params = {"kernel": jnp.zeros((1, 9)), "bias": jnp.zeros(9)}
    residuals = jnp.array([[1.2e-19] + 8 * [0.9e-19]])  # most squares are too small for float32
    found = linear_gradient_sum(
        lambda logits, given: jnp.sum(logits * given, axis=1),
        params,
        jnp.full((1, 1), 1e18),
        residuals,
        norm=0.1,
        mode=mode,
    )
    assert np.linalg.norm(found["kernel"]) <= 0.1 * (1 + SLACK)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_slack_covers_a_closed_form_sum_of_60_000_rows_that_point_one_way(devices):
    rng, count, norm = np.random.default_rng(0), 60_000, 0.7
    features = jnp.asarray(rng.uniform(1, 9, (count, 1)) * np.array([[0.6, 0.8]]), jnp.float32)
    residuals = jnp.asarray(rng.uniform(1.5, 9, (count, 1)), jnp.float32)
    params = {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}
    given = {"norm": norm, "mode": "clip"}

    @jax.jit
    def clipped(where):
        loss, total = (lambda z, residual: jnp.sum(z * residual, axis=1)), None
        for rows in np.split(np.arange(count), devices):
            rows = slice(rows[0], rows[-1] + 1)
            given["where"] = where[rows]
            part = linear_gradient_sum(loss, params, features[rows], residuals[rows], **given)
            total = part if total is None else jax.tree.map(jnp.add, total, part)
        return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(total)])

    whole, moves = np.asarray(clipped(np.ones(count, bool)), np.float64), []
    for record in range(0, count, 1500):
        where = np.ones(count, bool)
        where[record] = False
        moves.append(np.linalg.norm(whole - np.asarray(clipped(where), np.float64)))
    assert np.linalg.norm(whole) > 0.9 * norm * count, "all point one way"
    assert max(moves) <= norm * (1 + slack(count))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mode": "norm"}, "^mode: "),
        ({"norm": -1.0}, "^norm: "),
        ({"chunk": 0}, "^chunk: "),
        ({"where": np.ones(3, bool)}, "leading axis"),
    ],
)
def test_wrong_arguments_of_the_closed_form_are_refused(settings, named):
    layer, features, batch = draw_layer()
    with pytest.raises(ValueError, match=named):
        linear_gradient_sum(
            layer_loss, layer, features, batch, **{"norm": 1.0, "mode": "clip", **settings}
        )
