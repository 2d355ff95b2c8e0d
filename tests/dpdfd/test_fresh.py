"""A fresh classifier learns from generated samples, and only from them, what the student knows."""

import jax
import numpy as np
import pytest

from distill_core import data
from distill_core.checkpoint import LoadedModel
from distill_core.config import InputError
from distill_core.models.network import Network, image_network
from dpdfd import fresh
from dpdfd.conversion import Prior
from dpdfd.fresh import Recipe
from dpdfd.priors.warm_start import warm_start

DIGITS = data.load_dataset("digits")
RECIPE = Recipe(num_samples=1000, num_steps=300)
STUDENT = image_network(DIGITS, model="dpdfd.features:FeatureMLP", model_kwargs={"hidden": [64]})
GENERATOR = Network(
    "dpdfd.generator:Generator",
    10,
    {"image_shape": (8, 8, 1), "latent_size": 8, "width": 8, "norm": "group"},
    input_shape=(8,),
    outputs="images",
)


@pytest.fixture(scope="module")
def student():
    """A network that has learnt the digits themselves."""
    hard = np.eye(10, dtype=np.float32)[DIGITS.train.labels]
    return fresh.fit_soft_labels(STUDENT, DIGITS.train.images, hard, Recipe(num_steps=300))


@pytest.fixture(scope="module")
def generator():
    """A network that draws something like digits: it has seen their train split."""
    params, _ = GENERATOR.init(jax.random.key(0))
    images = DIGITS.train.images.astype(np.float32) / 255
    variables = warm_start(GENERATOR.module(), {"params": params}, images, seed=0, num_steps=800)
    return LoadedModel(variables, GENERATOR)


@pytest.fixture(scope="module")
def samples(student, generator):
    return fresh.draw_samples(student, generator, RECIPE)


def test_it_is_far_above_chance_where_student_and_generator_are_good(student, samples):
    found = fresh.fit_soft_labels(fresh.network(student, RECIPE), *samples, RECIPE)
    assert found.network == student.network
    assert fresh.accuracy(student, DIGITS.test) > 0.95  # labels of the data itself; seen: 0.98
    assert fresh.accuracy(found, DIGITS.test) > 0.7  # seen: 0.92
    ours, theirs = (jax.tree.leaves(model.variables) for model in (found, student))
    assert all(np.abs(a - b).max() > 0.01 for a, b in zip(ours, theirs, strict=True))


def test_it_knows_nothing_that_the_samples_do_not_show(samples):
    images, probs = samples
    labels = probs.argmax(-1)
    kept, hard = labels < 5, np.eye(10, dtype=np.float32)[labels]
    found = fresh.fit_soft_labels(STUDENT, images[kept], hard[kept], RECIPE)
    logits = found.apply(found.variables, DIGITS.test.images)
    assert np.max(np.argmax(logits, -1)) < 5


def test_samples_are_balanced_and_labelled_by_the_student_on_their_very_pixels(
    samples, student, generator
):
    images, probs = samples
    assert (images.dtype, images.shape) == (np.uint8, (1000, 8, 8, 1))
    assert (probs.dtype, probs.shape) == (np.float32, (1000, 10))
    expected = jax.nn.softmax(student.apply(student.variables, images))
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
    counts = np.bincount(probs.argmax(-1), minlength=10)
    # Of two draws for a sample: classes are even, but for those of which no more were found.
    drawn = np.concatenate([fresh._draw(generator, RECIPE, None, i) for i in range(2)])
    logits = student.apply(student.variables, drawn)
    found = np.bincount(np.argmax(logits, -1), minlength=10)
    even = np.minimum(found, counts.max())
    assert (even - counts <= (counts < found)).all() and counts.sum() == 1000
    assert found.max() - found.min() > 2 * (counts.max() - counts.min())


def test_samples_are_a_function_of_the_seed(student, generator, samples):
    again, _ = fresh.draw_samples(student, generator, RECIPE)
    np.testing.assert_array_equal(again, samples[0])
    other, _ = fresh.draw_samples(student, generator, Recipe(num_samples=1000, seed=1))
    assert np.mean(other != samples[0]) > 0.3


def test_samples_of_the_prior_are_its_own_draws_balanced_and_labelled_by_the_student(
    student, generator
):
    recipe = Recipe(source="prior", num_samples=60, seed=2**32 - 1)
    prior = Prior({"strokes": 1.0, "noise": 1.0}, (0.85, 1.0))
    images, probs = fresh.draw_samples(student, generator, recipe, prior)
    drawn = [prior.draw(recipe.seed, (8, 8, 1), 900 + i, 60) for i in range(2)]
    drawn = np.round(np.concatenate(drawn) * 255).astype(np.uint8)
    places = {image.tobytes(): place for place, image in enumerate(drawn)}
    rows = [places[image.tobytes()] for image in images]
    assert len(set(rows)) == 60
    expected = jax.nn.softmax(student.apply(student.variables, drawn))
    np.testing.assert_allclose(probs, expected[np.array(rows)], atol=1e-5)
    spread = [np.bincount(np.argmax(x, -1), minlength=10) for x in (probs, expected)]
    assert spread[0].max() < spread[1].max() and spread[0].sum() == 60
    other = Recipe(source="prior", num_samples=60)
    assert (fresh.draw_samples(student, generator, other, prior)[0] != images).any()


def test_labels_and_network_are_softened_by_one_temperature():
    """τ² KL(labels^{1/τ} ‖ network^{1/τ}), by the formula."""
    params, _ = STUDENT.init(jax.random.key(1))
    images, probs = DIGITS.train.images[:5], np.random.default_rng(0).dirichlet([0.3] * 10, 5)
    frozen = {"images": images, "probs": probs.astype(np.float32)}
    rows = np.array([4, 0, 2])
    logits = np.asarray(STUDENT.apply({"params": params}, images))[rows]
    for tau in (1.0, 3.0):
        soft, own = probs[rows] ** (1 / tau), np.exp(logits / tau)
        soft, own = (x / x.sum(-1, keepdims=True) for x in (soft, own))
        expected = tau**2 * (soft * np.log(soft / own)).sum(-1)
        objective = fresh.SoftLabels(STUDENT, 0, tau)
        found = objective(params, {}, frozen, rows, jax.random.key(0))
        np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-5)


def test_another_network_can_be_named_and_fewer_samples_than_a_batch_do(student, samples):
    kwargs = {"widths": [2], "hidden": 4, "norm": "batch"}
    recipe = Recipe("cnn", kwargs, num_steps=2, crop_padding=1)
    few = [each[:3] for each in samples]
    found = fresh.fit_soft_labels(fresh.network(student, recipe), *few, recipe)
    assert set(found.variables) == {"params", "batch_stats"}
    logits = found.apply(found.variables, few[0])
    assert logits.shape == (3, 10) and np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("num_samples", 0), ("num_steps", 0), ("learning_rate", 0.0), ("model", "vgg")],
        ("model_kwargs", {"hidden": [3]}),
        *[("source", "air"), ("temperature", 0.0), ("temperature", -1.0), ("seed", 2**32)],
    ],
)
def test_wrong_arguments_are_refused(student, field, value):
    with pytest.raises(InputError, match=f"^{field}: "):
        fresh.network(student, Recipe(**{field: value}))
