"""What is checked of every data set, whatever it was read from; names; held-out examples."""

import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.data import Split, hold_out, load_dataset, split_name
from distill_core.data.images.dataset import make_dataset


def _arrays(num=6, shape=(4, 4, 1), dtype=np.uint8, classes=3):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num, *shape))
    images = images.astype(np.uint8) if dtype == np.uint8 else (images / 255).astype(dtype)
    return images, np.arange(num) % classes


def _make(train=None, test=None, classes=("a", "b", "c"), **kwargs):
    return make_dataset("npz:x", train or _arrays(), test or _arrays(3), classes=classes, **kwargs)


def test_fields():
    dataset = _make()
    assert dataset.num_classes == 3
    assert dataset.input_shape == (4, 4, 1)
    assert (len(dataset.train), len(dataset.test)) == (6, 3)
    assert (dataset.mean, dataset.std) == ((0.5,), (0.5,))
    assert dataset.train.labels.dtype == np.int32
    for dtype in (np.float16, np.float32, np.float64):
        colour = _arrays(shape=(4, 4, 3), dtype=dtype)
        dataset = _make(colour, colour, mean=(0.1, 0.2, 0.3))
        assert dataset.test.images.dtype == np.float32
        assert (dataset.mean, dataset.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))


def test_split_is_read_only_and_leaves_the_callers_array_alone():
    images, labels = _arrays()
    split = Split(images, labels)
    for array in (split.images, split.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    images[0] = 0


def _with(index, value, dtype=np.float32):
    images, labels = _arrays(dtype=dtype)
    images[index] = value
    return images, labels


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"test": _arrays(0)}, "test split must not be empty"),
        ({"train": _arrays(0)}, "train split must not be empty"),
        ({"train": (np.zeros((6, 4, 4), np.uint8), np.zeros(6, int))}, "train images"),
        ({"test": (np.zeros((6, 4), np.uint8), np.zeros(6, int))}, r"\(6, 4\)"),
        ({"test": (_arrays(6)[0], np.zeros(5, int))}, "test split must have one label"),
        ({"train": (_arrays(6)[0], np.full(6, 3))}, "train labels .* 0 to 2"),
        ({"test": (_arrays(6)[0], np.full(6, -1))}, "test labels .* -1 to -1"),
        ({"train": (_arrays(6)[0], np.zeros(6))}, "train labels must be integers"),
        ({"train": (_arrays(6)[0], np.zeros((6, 2), int))}, r"\(6, 2\)"),
        ({"train": _with((2, 1, 1, 0), np.nan)}, "train images .*image 2 holds NaN"),
        ({"train": _with((2, 1, 1, 0), 1.5)}, r"\[0, 1.5\]"),
        ({"train": _with((2, 1, 1, 0), -0.5)}, r"\[-0.5, "),
        ({"train": (_arrays()[0].astype(int), _arrays()[1])}, "int64"),
        ({"test": _arrays(shape=(4, 5, 1))}, r"test images must be \(4, 4, 1\)"),
        # A path one level too deep gives a single class, and 100% accuracy.
        ({"train": _arrays(classes=1), "test": _arrays(classes=1), "classes": ("a",)}, "2 classes"),
        *[({"mean": (mean,), "std": (58.4,)}, "mean .* std") for mean in (123.7, 0.5)],
        *[({"mean": (mean,), "std": (0.5,)}, "mean .* std") for mean in (-0.1, float("nan"))],
        ({"mean": (0.5,), "std": (0.0,)}, "mean .* std"),
    ],
)
def test_refuses(change, reason):
    with pytest.raises(InputError, match=f"^dataset: .*{reason}"):
        _make(**change)


def test_split_name():
    assert split_name("digits") == ("digits", "")
    assert split_name("tfds:imagenet_resized/8x8:0.1.0") == ("tfds", "imagenet_resized/8x8:0.1.0")
    assert split_name("npz:/a:b.npz") == ("npz", "/a:b.npz")


@pytest.mark.parametrize("name", ["", "mnist", "digits:", "digits:x", "tfds", "npz:", "text:a"])
def test_refuses_names(name):
    with pytest.raises(InputError, match="^dataset: .*digits, tfds:NAME, npz:PATH, folder:PATH"):
        load_dataset(name)


def test_hold_out_partitions():
    # Every pixel of image i is i, so an image says where it came from.
    images = np.broadcast_to(np.arange(50, dtype=np.uint8)[:, None, None, None], (50, 2, 2, 1))
    split = Split(images, np.arange(50, dtype=np.int32))
    rest, held = hold_out(split, 12, seed=3)
    assert (len(rest), len(held)) == (38, 12)
    np.testing.assert_array_equal(np.sort(np.r_[rest.labels, held.labels]), np.arange(50))
    for part in (rest, held):
        np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.labels)
        np.testing.assert_array_equal(part.index, part.labels)
        assert np.all(np.diff(part.labels) > 0)
    np.testing.assert_array_equal(held.labels, hold_out(split, 12, seed=3)[1].labels)
    assert not np.array_equal(held.labels, hold_out(split, 12, seed=4)[1].labels)

    for part in hold_out(rest, 5, seed=3):  # keeps the places of the whole split
        assert part.index.dtype == np.int32
        np.testing.assert_array_equal(part.index, part.labels)


def test_hold_out_nothing_or_too_much():
    split = Split(*_arrays(5))
    rest, held = hold_out(split, 0, seed=0)
    np.testing.assert_array_equal(rest.images, split.images)
    assert held.images.shape == (0, 4, 4, 1)
    for num in (5, 6):
        with pytest.raises(InputError, match="^num_validation: .* the 5 training examples"):
            hold_out(split, num, seed=0)


def test_names_that_are_not_unicode_become_such_as_any_file_and_console_takes():
    latin = b"Gr\xf6\xdfe".decode("utf-8", "surrogateescape")
    dataset = _make(classes=(latin, "Größe, cost $5", "\ud800"))
    assert dataset.classes == ("Größe", "Größe, cost $5", "\\ud800")
    for name in (dataset.name, *dataset.classes):
        name.encode()
