"""What is checked of every data set, whatever it was read from; names; held-out examples."""

import subprocess
import sys

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
    dataset = _make(note="a note")
    assert dataset.num_classes == 3
    assert dataset.input_shape == (4, 4, 1)
    assert (len(dataset.train), len(dataset.test)) == (6, 3)
    assert (dataset.mean, dataset.std) == ((0.5,), (0.5,))
    assert dataset.note == "a note"
    assert dataset.train.labels.dtype == np.int32


def test_constants_have_one_value_a_channel():
    colour = _arrays(shape=(4, 4, 3))
    assert _make(colour, colour).mean == (0.5, 0.5, 0.5)
    assert _make(colour, colour, mean=(0.1, 0.2, 0.3)).mean == (0.1, 0.2, 0.3)


def test_split_is_read_only_and_leaves_the_callers_array_alone():
    images, labels = _arrays()
    split = Split(images, labels)
    with pytest.raises(ValueError, match="read-only"):
        split.images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        split.labels[0] = 0
    images[0] = 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_become_float32(dtype):
    assert _make(_arrays(dtype=dtype), _arrays(dtype=dtype)).test.images.dtype == np.float32


def _with(index, value, dtype=np.float32):
    images, labels = _arrays(dtype=dtype)
    images[index] = value
    return images, labels


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (None, _arrays(0), "the test split must not be empty"),
        (_arrays(0), None, "the train split must not be empty"),
        ((np.zeros((6, 4, 4), np.uint8), np.zeros(6, int)), None, "train images must have the sh"),
        (None, (np.zeros((6, 4), np.uint8), np.zeros(6, int)), "[N, H, W, C], and have (6, 4)"),
        (None, (_arrays(6)[0], np.zeros(5, int)), "test split must have one label an image, and "),
        ((_arrays(6)[0], np.full(6, 3)), None, "train labels must lie in 0 to 2, and lie in 3 to"),
        (None, (_arrays(6)[0], np.full(6, -1)), "test labels must lie in 0 to 2, and lie in -1 "),
        ((_arrays(6)[0], np.zeros(6)), None, "train labels must be integers of the shape [N], and"),
        ((_arrays(6)[0], np.zeros((6, 2), int)), None, "are int64 of the shape (6, 2)"),
        (_with((2, 1, 1, 0), np.nan), None, "train images that are floats must lie in [0, 1], and"),
        (_with((2, 1, 1, 0), 1.5), None, "and lie in [0, 1.5]"),
        (_with((2, 1, 1, 0), -0.5), None, "and lie in [-0.5, "),
        (
            (_arrays()[0].astype(int), _arrays()[1]),
            None,
            "uint8 or floats in [0, 1], and are int64",
        ),
        (None, _arrays(shape=(4, 5, 1)), "test images must be (4, 4, 1) as the train images are"),
    ],
)
def test_refuses(train, test, message):
    with pytest.raises(InputError) as error:
        _make(train, test)
    assert error.value.field == "dataset"
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_refuses_one_class():
    # A path one level too deep gives a single class, and 100% accuracy.
    with pytest.raises(InputError, match="needs at least 2 classes, and has 1"):
        _make(_arrays(classes=1), _arrays(classes=1), classes=("images",))


def test_split_name():
    assert split_name("digits") == ("digits", "")
    assert split_name("tfds:imagenet_resized/8x8:0.1.0") == (
        "tfds",
        "imagenet_resized/8x8:0.1.0",
    )
    assert split_name("npz:/a:b.npz") == ("npz", "/a:b.npz")


@pytest.mark.parametrize("name", ["", "mnist", "digits:", "digits:x", "tfds", "npz:", "text:a"])
def test_refuses_names(name):
    expected = "must be one of digits, tfds:NAME, npz:PATH, folder:PATH"
    with pytest.raises(InputError) as error:
        load_dataset(name)
    assert str(error.value) == f"dataset: got {name!r}; {expected}"


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
        assert not part.images.flags.writeable


def test_hold_out_depends_on_the_seed_alone():
    split = Split(np.zeros((50, 2, 2, 1), np.uint8), np.arange(50, dtype=np.int32))
    again = [hold_out(split, 12, seed=3)[1].labels for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert not np.array_equal(again[0], hold_out(split, 12, seed=4)[1].labels)


def test_hold_out_twice_keeps_the_first_places():
    split = Split(np.zeros((50, 2, 2, 1), np.uint8), np.arange(50, dtype=np.int32))
    rest, held = hold_out(hold_out(split, 12, seed=3)[0], 5, seed=3)
    for part in (rest, held):
        assert part.index.dtype == np.int32
        np.testing.assert_array_equal(part.index, part.labels)


def test_hold_out_nothing():
    split = Split(*_arrays(5))
    rest, held = hold_out(split, 0, seed=0)
    np.testing.assert_array_equal(rest.images, split.images)
    assert len(held) == 0
    assert held.images.shape == (0, 4, 4, 1)


@pytest.mark.parametrize("num", [-1, 5, 6])
def test_hold_out_refuses(num):
    with pytest.raises(InputError, match="^num_validation: .* less than the 5 training examples"):
        hold_out(Split(*_arrays(5)), num, seed=0)


def test_import_is_light():
    code = """
import sys
import distill_core.data
import distill_core.data.augment, distill_core.data.preprocess, distill_core.data.sampling
slow = {"tensorflow_datasets", "tensorflow", "sklearn", "matplotlib", "orbax", "PIL"}
assert not slow & set(sys.modules), slow & set(sys.modules)
from jax._src import xla_bridge
assert not xla_bridge._backends
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((123.7,), (58.4,)),
        ((0.5,), (58.4,)),
        ((-0.1,), (0.5,)),
        ((0.5,), (0.0,)),
        ((float("nan"),), (0.5,)),
    ],
)
def test_refuses_constants_of_another_scale(mean, std):
    with pytest.raises(
        InputError, match=r"^dataset: .*mean must lie in \[0, 1\] and std in \(0, 1"
    ):
        make_dataset("x", _arrays(), _arrays(), classes=("a", "b", "c"), mean=mean, std=std)


def test_names_that_are_not_unicode_become_such_as_any_file_and_console_takes():
    latin = b"Gr\xf6\xdfe".decode("utf-8", "surrogateescape")
    dataset = _make(classes=(latin, "Größe, cost $5", "\ud800"))
    assert dataset.classes == ("Größe", "Größe, cost $5", "\\ud800")
    for name in (dataset.name, *dataset.classes):
        name.encode()
