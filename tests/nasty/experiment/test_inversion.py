"""Images from a network: the terms by hand, and what inversion makes of small networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from distill_core import checkpoint, evaluate, train
from distill_core import load_model as load
from distill_core.config import InputError
from distill_core.models.network import Network
from nasty.experiment import inversion
from nasty.experiment.inversion import Inversion, NormInput

LABELS = np.repeat(np.arange(10), 4)


class Foreign(nn.Module):
    """A user's network: Flax's own normalisation, its channels not last, no argument `train`."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True, axis=2)(x)
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


def made(norm):
    """A network with fresh weights."""
    kwargs = {"widths": (4,), "hidden": 8, "norm": norm}
    network = Network("cnn", 10, kwargs, (8, 8, 1), (0.3,), (0.37,))
    params, model_state = network.init(jax.random.key(0))
    return checkpoint.LoadedModel({"params": params, **model_state}, network)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A small trained classifier of digits."""
    folder = tmp_path_factory.mktemp("teacher")
    train.train_and_evaluate(
        {
            "dataset": "digits",
            "model": "cnn",
            "model_kwargs": {"widths": (8,), "hidden": 32},
            "optimizer": "adam",
            "learning_rate": 3e-3,
            "batch_size": 64,
            "num_steps": 150,
        },
        folder,
    )
    return load(folder)


@pytest.fixture(scope="module")
def inverted(teacher):
    return inversion.invert(teacher, LABELS, Inversion(num_steps=200), seed=0)


def test_total_variation_by_hand():
    flat = np.full((2, 3, 3, 2), 0.5)
    np.testing.assert_array_equal(inversion.total_variation(jnp.asarray(flat)), [0, 0])
    step = np.zeros((1, 2, 3, 1), np.float32)
    step[:, :, 1:] = 2  # two rows, each with one jump of 2, over 6 pixels
    np.testing.assert_allclose(inversion.total_variation(jnp.asarray(step)), [4 / 6], rtol=1e-6)


def test_statistics_distance_by_hand():
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (5, 4, 4, 3)).astype(np.float32)
    mean, var = jnp.array([1.0, 2, 3]), jnp.array([4.0, 9, 16])
    rows = x.reshape(-1, 3).astype(np.float64)
    expected = np.linalg.norm(rows.mean(0) - mean) + np.linalg.norm(rows.var(0) - var)
    found = inversion.statistics_distance(NormInput(jnp.asarray(x), mean, var))
    assert found == pytest.approx(expected, rel=1e-5)


def test_matched_statistics_give_zero_and_no_nan_gradient():
    x = jnp.array([[1.0, 3.0], [3.0, 3.0]])
    mean, var = jnp.array([2.0, 3.0]), jnp.array([1.0, 0.0])
    value, gradient = jax.value_and_grad(
        lambda x: inversion.statistics_distance(NormInput(x, mean, var))
    )(x)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((2, 2)))


def test_the_loss_is_the_weighted_sum_of_its_terms():
    logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
    images = jnp.arange(8.0).reshape(2, 2, 2, 1)
    layers = [NormInput(images, jnp.zeros(1), jnp.ones(1))] * 2
    weights = {"cross_entropy": 1.0, "total_variation": 0.1, "l2": 0.01, "statistics": 10.0}
    loss, terms = jax.jit(lambda *a: inversion.inversion_loss(*a, weights=weights))(
        logits, labels, images, layers
    )
    assert terms["cross_entropy"] == pytest.approx(np.log1p(np.exp([-2, 1])).mean(), rel=1e-6)
    assert terms["total_variation"] == pytest.approx(6 / 4)
    assert terms["l2"] == pytest.approx(np.square(np.arange(8)).mean())
    assert terms["statistics"] == pytest.approx(2 * (3.5 + 5.25 - 1))
    assert loss == pytest.approx(sum(weights[name] * float(terms[name]) for name in weights))


def test_every_batch_normalisation_is_watched_along_its_own_axis():
    network, images = made("batch"), np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    with inversion.watch_normalisations() as seen:
        network.apply(network.variables, images)
    assert [each.inputs.shape for each in seen] == [(3, 8, 8, 4), (3, 8)]
    foreign = Foreign(10)
    variables = foreign.init(jax.random.key(0), images)
    with inversion.watch_normalisations() as seen:
        foreign.apply(variables, images)
    (layer,) = seen
    np.testing.assert_array_equal(layer.inputs, np.moveaxis(images, 2, -1))
    assert inversion.statistics_distance(layer) == pytest.approx(
        np.linalg.norm(images.mean((0, 1, 3))) + np.linalg.norm(images.var((0, 1, 3)) - 1),
        rel=1e-5,
    )


def test_inverted_images_are_the_wanted_classes(teacher, inverted):
    images = inverted.images
    assert (images.shape, images.dtype) == ((40, 8, 8, 1), np.float32)
    assert images.min() >= 0 and images.max() <= 1
    probabilities = jax.nn.softmax(teacher.apply(teacher.variables, images))
    np.testing.assert_allclose(
        inverted.confidence, probabilities[np.arange(40), LABELS], rtol=1e-3, atol=1e-5
    )
    assert inverted.confidence.mean() > 0.9
    assert np.mean(evaluate.compute_logits(teacher, images).argmax(-1) == LABELS) > 0.95
    first = inversion.invert(teacher, LABELS, Inversion(num_steps=1), seed=0)
    assert inverted.terms["statistics"] < 0.2 * first.terms["statistics"]


def test_images_are_a_function_of_the_seed(teacher):
    first, again, other = (
        inversion.invert(teacher, LABELS, Inversion(num_steps=3), seed=seed).images
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_a_network_without_batch_statistics_is_refused():
    with pytest.raises(InputError, match="^model: "):
        inversion.invert(made("group"), LABELS, Inversion(), seed=0)
