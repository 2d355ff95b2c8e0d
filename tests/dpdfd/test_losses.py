"""The generator's terms against their formulas, their gradients, and at the edges of float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from distill_core import cross_entropy
from distill_core.runtime.collectives import AXIS
from distill_core.training.step import Outputs, TrainState, train_step
from dpdfd import losses

B, K, IMAGE, Z = 6, 4, (3, 5, 2), 3


def np_probs(logits):
    return special.softmax(np.asarray(logits, np.float64), axis=-1)


def np_one_hot(logits):
    return -np.log(np_probs(logits).max(-1))


def np_balance(logits):
    mean = np_probs(logits).reshape(-1, np.shape(logits)[-1]).mean(0)
    return np.sum(mean * np.log(np.where(mean > 0, mean, 1)))


def np_activation(features):
    return -np.abs(features).mean(-1)


def np_diversity(images, z):
    def distance(x):
        x = np.asarray(x, np.float64).reshape(len(x), -1)
        other = x[(np.arange(len(x)) + len(x) // 2) % len(x)]
        return np.sqrt(np.square(x - other).mean(1))

    return -distance(images) / distance(z)


def np_smoothness(images):
    total = np.zeros(len(images))
    for i, image in enumerate(np.asarray(images, np.float64)):
        height, width, _ = image.shape
        for h in range(height):
            for w in range(width):
                total[i] += np.abs(image[min(h + 1, height - 1), w] - image[h, w]).sum()
                total[i] += np.abs(image[h, min(w + 1, width - 1)] - image[h, w]).sum()
    return total / np.prod(images.shape[1:])


def draw(*shape, seed=0, scale=2.0):
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)


LATENT = draw(B, Z, seed=1)


def diversity(images, where=None):
    return losses.diversity_loss(images, LATENT[: len(images)], where=where)


# name: (loss of one array, its formula, the array)
TERMS = {
    "one_hot": (losses.one_hot_loss, np_one_hot, draw(B, K)),
    "balance": (losses.balance_loss, np_balance, draw(B, K)),
    "activation": (losses.activation_loss, np_activation, draw(B, 7)),
    "diversity": (diversity, lambda x: np_diversity(x, LATENT), draw(B, *IMAGE)),
    "smoothness": (losses.smoothness_loss, np_smoothness, draw(B, *IMAGE)),
}
each = pytest.mark.parametrize("name", TERMS)


def summed_gradient(loss, x, **options):
    return jax.jit(jax.grad(lambda x: jnp.sum(loss(x, **options))))(x)


def central_differences(f, x, eps=1e-6):
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = eps
        gradient[i] = (np.sum(f(x + step)) - np.sum(f(x - step))) / (2 * eps)
    return gradient


@pytest.mark.parametrize(
    ("loss", "formula", "x"),
    [
        *TERMS.values(),
        *[(*TERMS[n][:2], draw(*s, K)) for n in ("one_hot", "activation") for s in ((), (2, 3))],
        *[(*TERMS["smoothness"][:2], draw(2, *s)) for s in ((1, 1, 1), (1, 4, 2), (4, 1, 1))],
        (diversity, lambda x: np_diversity(x, LATENT[:5]), draw(5, *IMAGE)),
    ],
)
def test_it_is_the_formula_under_jit_for_any_leading_axes_and_images_of_a_line(loss, formula, x):
    found, expected = jax.jit(loss)(x), formula(x)
    assert (found.shape, found.dtype) == (np.shape(expected), jnp.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@each
def test_its_gradient_is_that_of_the_formula(name):
    loss, formula, x = TERMS[name]
    expected = central_differences(formula, x)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(summed_gradient(loss, x), expected, rtol=1e-3, atol=1e-5)


@each
@pytest.mark.parametrize("huge", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_it_is_computed_in_float32_and_finite_at_huge_values(name, dtype, huge):
    loss, formula, x = TERMS[name]
    x = jnp.asarray(1e4 * np.sign(x) if huge else x, dtype)
    found = jax.jit(loss)(x)
    assert found.dtype == jnp.float32
    expected = formula(np.asarray(x, np.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    gradient = summed_gradient(loss, x)
    assert gradient.dtype == dtype
    exact = summed_gradient(loss, np.asarray(x, np.float32))
    assert np.isfinite(exact).all()
    np.testing.assert_allclose(np.asarray(gradient, np.float32), exact, rtol=0.01, atol=1e-3)


@each
# Half a batch apart, so that sliced pairs are the same; and of nothing.
@pytest.mark.parametrize("where", [np.arange(B) % 3 != 1, np.zeros(B, bool)], ids=["some", "none"])
def test_masked_examples_are_zero_and_harmless_whatever_they_hold(name, where):
    loss, _, x = TERMS[name]
    kept, held = x[where], np.where(where.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan)
    found, gradient = jax.jit(loss)(held, where=where), summed_gradient(loss, held, where=where)
    np.testing.assert_array_equal(gradient[~where], 0)
    if not where.any():
        np.testing.assert_array_equal(found, 0)
        return
    if name == "diversity":  # its latent vectors go with the images
        expected, sliced = loss(x)[where], summed_gradient(loss, x)[where]
    else:
        expected, sliced = loss(kept), summed_gradient(loss, kept)
    np.testing.assert_allclose(gradient[where], sliced, rtol=1e-4, atol=1e-6)
    if name == "balance":
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    else:
        np.testing.assert_array_equal(found[~where], 0)
        np.testing.assert_allclose(found[where], expected, rtol=1e-5)


def test_the_class_asked_for_replaces_the_first_choice():
    logits, labels = draw(B, K), np.arange(B) % K
    np.testing.assert_array_equal(
        losses.one_hot_loss(logits, labels), cross_entropy(logits, labels)
    )
    where = np.arange(B) % 2 == 0
    labels = np.where(where, labels, 99)
    found = losses.one_hot_loss(logits, labels, where=where)
    np.testing.assert_array_equal(found, cross_entropy(logits, labels, where=where))
    assert np.isnan(losses.one_hot_loss(logits, labels)[~where]).all()


def test_the_guide_may_exclude_classes():
    logits = draw(B, K)
    logits[:, 1] = -np.inf
    others = np.delete(logits, 1, axis=1)
    for name in ("one_hot", "balance"):
        loss, _, _ = TERMS[name]
        np.testing.assert_allclose(loss(logits), loss(others), rtol=1e-5)
        found = summed_gradient(loss, logits)
        np.testing.assert_array_equal(found[:, 1], 0)
        np.testing.assert_allclose(
            np.delete(found, 1, axis=1), summed_gradient(loss, others), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("exponent", [-80, -88, -95, -103, -110])
def test_balance_keeps_its_gradient_where_a_class_all_but_vanishes(exponent):
    """Between normal numbers and 0 a logarithm may say −∞ of what a comparison calls positive."""
    logits = jnp.zeros((B, K)).at[:, 0].set(exponent)
    assert np.isfinite(losses.balance_loss(logits))
    gradient = summed_gradient(losses.balance_loss, logits)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_terms_train_alike_on_one_device_and_on_eight():
    """Values per example and those of the batch, in the project's own step."""
    images, where = draw(8, 3, 5), np.ones((8, 3), bool)
    where[1, 2:], where[5] = False, False

    def objective(params, model_state, frozen, batch, key):
        logits = batch["image"] @ params["kernel"]
        terms = {
            "one_hot": losses.one_hot_loss(logits, where=batch["where"]),
            "balance": losses.balance_loss(logits, batch["where"]),
        }
        values = losses.generator_loss(terms, {"one_hot": 0.3, "balance": 5.0})
        return Outputs(values, batch["where"].astype(jnp.float32), model_state, {})

    params, tx = {"kernel": jnp.asarray(draw(5, K, seed=2))}, optax.sgd(0.1)
    state = TrainState.create(params=params, model_state={}, tx=tx, rng=jax.random.key(0))
    step = functools.partial(train_step, objective=objective, tx=tx)
    batch = {"image": images.reshape(24, 5), "where": where.reshape(24)}
    expected, metrics = step(state, {}, batch)
    found, many_metrics = jax.pmap(
        step, axis_name=AXIS, in_axes=(None, None, 0), out_axes=(None, None)
    )(state, {}, {"image": images, "where": where})
    np.testing.assert_allclose(found.params["kernel"], expected.params["kernel"], rtol=1e-5)
    assert np.abs(expected.params["kernel"] - state.params["kernel"]).max() > 0.01
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(many_metrics[name], metrics[name], rtol=1e-4, atol=1e-6)


def test_diversity_pairs_halves_and_lets_no_gradient_into_the_latent_vectors():
    images, z = draw(4, *IMAGE), draw(4, Z, seed=2)
    values = losses.diversity_loss(images, z)
    np.testing.assert_array_equal(values[:2], values[2:])
    gradient = jax.grad(lambda z: losses.diversity_loss(images, z).sum())(z)
    np.testing.assert_array_equal(gradient, 0)
    # A weight serves every size: repeated entries change nothing.
    repeated = losses.diversity_loss(np.tile(images, (1, 2, 2, 1)), np.tile(z, 3))
    np.testing.assert_allclose(repeated, values, rtol=1e-5)


@pytest.mark.parametrize("far", [0.0, 1e-21, 1e-30])
def test_diversity_of_equals_is_zero_with_gradient_zero(far):
    images = np.zeros((2, *IMAGE), np.float32)
    images[1] += far
    z = draw(2, Z)
    for images_, z_ in ((images, z), (draw(2, *IMAGE), np.ones((2, Z)))):
        np.testing.assert_array_equal(losses.diversity_loss(images_, z_), 0)
        gradient = summed_gradient(lambda x, z=z_: losses.diversity_loss(x, z), images_)
        np.testing.assert_array_equal(gradient, 0)
    single = losses.diversity_loss(images[:1], z[:1])
    np.testing.assert_array_equal(single, 0)
    assert losses.diversity_loss(images[:0], z[:0]).shape == (0,)


def test_a_pair_counts_only_whole():
    where = np.array([True, True, False, True])
    found = losses.diversity_loss(draw(4, *IMAGE), draw(4, Z), where=where)
    np.testing.assert_array_equal(found != 0, [False, True, False, True])


def test_the_sum_is_weighted_and_a_term_of_weight_zero_is_left_out():
    terms = {"a": draw(B), "b": jnp.float32(-0.5), "c": draw(B, seed=1).astype(jnp.bfloat16)}
    terms["nan"] = np.full(B, np.nan, np.float32)
    weights = {"a": 0.5, "b": 4.0, "c": 2, "nan": 0.0, "missing": 0.0}
    expected = 0.5 * terms["a"] - 2 + 2 * np.asarray(terms["c"], np.float32)
    found, gradients = jax.value_and_grad(
        lambda terms: losses.generator_loss(terms, weights).sum()
    )(terms)
    np.testing.assert_allclose(losses.generator_loss(terms, weights), expected, rtol=1e-6)
    np.testing.assert_allclose(found, expected.sum(), rtol=1e-5)
    np.testing.assert_array_equal(gradients["nan"], 0)
    assert losses.generator_loss({"balance": jnp.float32(-1)}, {"balance": 3.0}) == -3


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: losses.one_hot_loss(jnp.zeros(())), "class axis|one shape"),
        (lambda: losses.one_hot_loss(draw(B, K), np.zeros(B + 1, int)), "^labels: "),
        (lambda: losses.one_hot_loss(draw(B, K), np.zeros(B)), "^labels: "),
        (lambda: losses.one_hot_loss(draw(B, K), where=np.ones(K, bool)), "^where: "),
        (lambda: losses.balance_loss(draw(B, K), np.ones(K, bool)), "^where: "),
        (lambda: losses.activation_loss(jnp.zeros(())), "one shape"),
        (lambda: losses.smoothness_loss(draw(B, K)), "^images: "),
        (lambda: losses.smoothness_loss(draw(B, *IMAGE), where=np.ones(2, bool)), "^where: "),
        (lambda: losses.diversity_loss(draw(B, 4), draw(B + 1, Z)), r"must be \[B, ...\]"),
        (lambda: losses.diversity_loss(draw(B), draw(B, Z)), r"must be \[B, ...\]"),
        (lambda: losses.diversity_loss(draw(B, 4), draw(B, Z), where=np.ones(2, bool)), "^where"),
    ],
)
def test_what_does_not_belong_together_is_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call()
