"""A user's own arrays."""

import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.data import load_dataset

KERAS = ("x_train", "y_train", "x_test", "y_test")
MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")


def _save(path, keys=KERAS, shape=(4, 5, 3), dtype=np.uint8, column=False, **more):
    rng = np.random.default_rng(0)
    arrays = {}
    for key, num in zip(keys[::2], (6, 3), strict=True):
        arrays[key] = rng.integers(0, 256, (num, *shape)).astype(dtype)
    for key, num in zip(keys[1::2], (6, 3), strict=True):
        labels = np.arange(num) % 3
        arrays[key] = labels[:, None] if column else labels
    np.savez(path, **arrays, **more)
    return arrays


def _refused(path):
    with pytest.raises(InputError) as error:
        load_dataset(f"npz:{path}")
    message = str(error.value)
    assert message.startswith(f"dataset: got 'npz:{path}'; ")
    assert "\n" not in message
    return message


def test_keras(tmp_path):
    path = tmp_path / "a.npz"
    arrays = _save(path)
    dataset = load_dataset(f"npz:{path}")
    np.testing.assert_array_equal(dataset.train.images, arrays["x_train"])
    np.testing.assert_array_equal(dataset.test.labels, arrays["y_test"])
    assert dataset.name == f"npz:{path}"
    assert dataset.classes == ("0", "1", "2")
    assert dataset.mean == dataset.std == (0.5, 0.5, 0.5)


def test_medmnist(tmp_path):
    path = tmp_path / "a.npz"
    other = {"val_images": np.zeros((2, 4, 5)), "val_labels": np.zeros((2, 1))}
    arrays = _save(path, MEDMNIST, column=True, **other)
    dataset = load_dataset(f"npz:{path}")
    np.testing.assert_array_equal(dataset.train.labels, arrays["train_labels"][:, 0])
    np.testing.assert_array_equal(dataset.test.images, arrays["test_images"])


def test_grey_images_get_a_channel(tmp_path):
    path = tmp_path / "a.npz"
    arrays = _save(path, shape=(4, 5))
    dataset = load_dataset(f"npz:{path}")
    assert dataset.input_shape == (4, 5, 1)
    np.testing.assert_array_equal(dataset.train.images[..., 0], arrays["x_train"])


@pytest.mark.parametrize("dtype", ["U", "S"])
def test_names_of_classes(tmp_path, dtype):
    path = tmp_path / "a.npz"
    _save(path, classes=np.array(["cat", "dog", "eel", "fox"], dtype))
    assert load_dataset(f"npz:{path}").classes == ("cat", "dog", "eel", "fox")


def test_names_of_classes_in_other_bytes_are_read_as_latin_1(tmp_path):
    path = tmp_path / "a.npz"
    names = [name.encode("latin-1") for name in ("Größe", "dog", "eel", "fox")]
    _save(path, classes=np.array(names))
    assert load_dataset(f"npz:{path}").classes == ("Größe", "dog", "eel", "fox")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _save(tmp_path / "a.npz")
    assert len(load_dataset("npz:~/a.npz").train) == 6


def test_refuses_missing_keys(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros(3), y_train=np.zeros(3))
    message = _refused(path)
    assert f"needs the keys {', '.join(KERAS)} or {', '.join(MEDMNIST)}" in message
    assert message.endswith("found images, y_train")


def test_refuses_an_empty_archive(tmp_path):
    np.savez(tmp_path / "a.npz")
    assert _refused(tmp_path / "a.npz").endswith("found none")


def test_refuses_labels_that_the_train_split_lacks(tmp_path):
    path = tmp_path / "a.npz"
    arrays = _save(path)
    np.savez(path, **{**arrays, "y_test": arrays["y_test"] + 5})
    assert "test labels must lie in 0 to 2, and lie in 5 to 7" in _refused(path)


def test_refuses_floats_of_0_to_255(tmp_path):
    path = tmp_path / "a.npz"
    _save(path, dtype=np.float32)
    assert "scale them, or store uint8" in _refused(path)


def test_refuses_an_empty_train_split(tmp_path):
    path = tmp_path / "a.npz"
    arrays = _save(path)
    np.savez(path, **{**arrays, "x_train": arrays["x_train"][:0], "y_train": np.zeros(0, int)})
    assert "the train split must not be empty" in _refused(path)


def test_refuses_a_missing_file(tmp_path):
    assert "must be an existing .npz file" in _refused(tmp_path / "a.npz")
    assert "must be an existing .npz file" in _refused(tmp_path)


def _pickled(path):
    np.savez(path, **dict.fromkeys(KERAS, np.array([{}, []], dtype=object)))


def _one_array(path):
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


def _truncated(path):
    _save(path)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    "write",
    [_pickled, _one_array, _truncated, lambda p: p.write_text("hello"), lambda p: p.touch()],
)
def test_refuses_what_is_no_npz(tmp_path, write):
    path = tmp_path / "a.npz"
    write(path)
    assert "must be an .npz of plain arrays, and cannot be read as one (" in _refused(path)


@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (1, 28, 28), (28, 28, 28), (3, 24, 32), (8, 16, 16), (4, 6, 6)]
)
def test_refuses_channels_that_may_come_first(tmp_path, shape):
    path = tmp_path / "a.npz"
    _save(path, shape=shape)
    message = _refused(path)
    assert f"with the channels last, and are {(6, *shape)}: {shape[2]} channels of " in message
    assert "store x.transpose(0, 2, 3, 1)" in message


@pytest.mark.parametrize("shape", [(28, 28, 28), (1, 5, 5)])
def test_a_layout_says_that_channels_are_last(tmp_path, shape):
    path = tmp_path / "a.npz"
    _save(path, shape=shape, layout="NHWC")
    assert load_dataset(f"npz:{path}").input_shape == shape
    _save(path, shape=shape, layout="NCHW")
    assert "its layout is 'NCHW'; must be 'NHWC'" in _refused(path)


@pytest.mark.parametrize(
    "shape", [(32, 32, 3), (16, 16, 8), (1, 1, 3), (1, 1, 64), (3, 5, 1), (2, 2, 3), (3, 3, 3)]
)
def test_what_can_only_be_channels_last_needs_no_layout(tmp_path, shape):
    _save(tmp_path / "a.npz", shape=shape)
    assert load_dataset(f"npz:{tmp_path}/a.npz").input_shape == shape


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 3, 1, 2, 3], "are 3 numbers from 1 to 3; renumber them, or name all 4 in"),
        ([0, 255, 0, 255, 0, 255], "are 2 numbers from 0 to 255; renumber them, or name all 256"),
        ([-1, 1, -1, 1, -1, 1], "train labels must lie in 0 to 1, and lie in -1 to 1"),
        ([0.0, 1.0, 2.0, 0.0, 1.0, 2.0], "train labels must be integers of the shape [N], and"),
        (np.eye(3, dtype=int)[[0, 1, 2] * 2], "of one-hot labels take the argmax"),
    ],
)
def test_refuses_labels_that_do_not_number_the_classes(tmp_path, labels, message):
    path = tmp_path / "a.npz"
    arrays = _save(path)
    np.savez(path, **{**arrays, "y_train": np.array(labels)})
    assert message in _refused(path)


def test_named_classes_may_lack_examples(tmp_path):
    path = tmp_path / "a.npz"
    arrays = _save(path)
    np.savez(path, **{**arrays, "y_train": arrays["y_train"] + 1}, classes=["a", "b", "c", "d"])
    dataset = load_dataset(f"npz:{path}")
    assert dataset.named and dataset.train.labels.max() == 3
    _save(path)
    assert not load_dataset(f"npz:{path}").named


def test_refuses_two_classes_of_one_name(tmp_path):
    _save(tmp_path / "a.npz", classes=["cat", "dog", "cat"])
    assert "names of classes must differ; 'cat' stands twice" in _refused(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x > 127).astype(np.uint8), "values of 0 to 255, and have 0 and 1 alone"),
        (lambda x: x / 255.0 / 255.0, "they were divided by 255 twice"),
        (lambda x: x.astype(np.uint16) * 257, "must be uint8 or floats in [0, 1], and are uint16"),
        (lambda x: x / 127.5 - 1, "that are floats must lie in [0, 1], and lie in [-1, "),
        (lambda x: np.where(x == x.max(), np.nan, x / 255.0), "holds NaN"),
    ],
)
def test_refuses_pixels_of_another_scale(tmp_path, change, message):
    path = tmp_path / "a.npz"
    arrays = _save(path)
    np.savez(path, **{**arrays, "x_train": change(arrays["x_train"])})
    assert message in _refused(path)


def test_pixels_that_rounding_moved_out_of_range_are_cut(tmp_path):
    path = tmp_path / "a.npz"
    arrays = _save(path)
    x = arrays["x_train"].astype(np.float32) / 255
    x.flat[:2] = 1 + 3e-7, -3e-7
    np.savez(path, **{**arrays, "x_train": x, "x_test": x[: len(arrays["x_test"])]})
    found = load_dataset(f"npz:{path}").train.images
    assert (found.min(), found.max()) == (0, 1)
    np.testing.assert_allclose(found.ravel(), x.ravel(), atol=1e-6)
    x.flat[0] = 1.001
    np.savez(path, **{**arrays, "x_train": x})
    assert "that are floats must lie in [0, 1], and lie in [-3e-07, 1.001]" in _refused(path)
