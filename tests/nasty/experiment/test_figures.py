"""A PNG of sensible size comes of every figure, whatever the images and classes."""

import numpy as np
import pytest
from PIL import Image

from nasty.experiment import figures

DIGITS = [str(k) for k in range(10)]
MANY = [f"class {i}" for i in range(100)]


def height(path):
    with Image.open(path) as picture:
        assert (picture.format, picture.width) == ("PNG", 1080)
        return picture.height


@pytest.mark.parametrize(
    ("channels", "classes"), [((), DIGITS), ((1,), MANY), ((3,), DIGITS), ((8,), DIGITS)]
)
def test_the_response_of_both_teachers(tmp_path, channels, classes):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 2, len(classes))) * 8
    logits[0, 0, :3] = 1e4, -1e4, -np.inf
    images = rng.integers(0, 256, (2, 8, 8, *channels), dtype=np.uint8)
    path = tmp_path / "new" / "response.png"
    assert figures.logit_response(path, images, *logits, [3, 5], classes, 4.0) == path
    assert 400 < height(path) < 700


@pytest.mark.parametrize("classes", [DIGITS, MANY])
def test_embeddings_of_few_and_of_many_classes(tmp_path, classes):
    rng = np.random.default_rng(0)
    labels = np.arange(3 * len(classes)) % len(classes)
    points = rng.normal(size=(len(labels), 2))
    panels = [
        figures.Panel(name, points, labels, 0.986, cka)
        for name, cka in zip("abcd", [None, 0.5] * 2, strict=True)
    ]
    path = figures.embedding_figure(tmp_path / "embedding.png", panels, classes)
    assert 1000 < height(path) < 1200


def test_softened_probabilities():
    logits = np.array([[2.0, 0.0], [1e4, -1e4]])
    expected = [[1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(0.5))], [1.0, 0.0]]
    np.testing.assert_allclose(figures._softmax(logits, 4.0), expected, atol=1e-12)
