"""scikit-learn's digits."""

import hashlib

import numpy as np

from distill_core.data import load_dataset


def test_digits():
    dataset = load_dataset("digits")
    train, test = dataset.train, dataset.test
    assert dataset.input_shape == (8, 8, 1)
    assert dataset.classes == tuple("0123456789")
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(test.labels), [36] * 10)
    # value · 255 / 16, rounded: 17 levels.
    levels = np.unique(train.images)
    np.testing.assert_array_equal(levels, np.round(np.arange(17) * 255 / 16))


def test_the_splits_share_no_example_and_cover_all():
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    data = load_digits()

    def rows(images, labels):
        flat = np.asarray(images, np.int64).reshape(len(images), -1)
        return sorted(map(tuple, np.c_[flat, labels].tolist()))

    both = rows(dataset.train.images, dataset.train.labels)
    both += rows(dataset.test.images, dataset.test.labels)
    assert sorted(both) == rows(np.round(data.images * 255 / 16), data.target)


def test_the_split_and_its_constants_never_change():
    # Accuracies of different versions are comparable only on the same 360 images.
    dataset = load_dataset("digits")
    digest = hashlib.sha256(dataset.test.images.tobytes()).hexdigest()
    assert digest.startswith("cfa9b0c51b0e776b")
    pixels = dataset.train.images / 255
    np.testing.assert_allclose(
        [dataset.mean[0], dataset.std[0]], [pixels.mean(), pixels.std()], atol=5e-5
    )
