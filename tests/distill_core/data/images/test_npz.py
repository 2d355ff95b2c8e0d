"""A user's own arrays."""

from pathlib import Path

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


@pytest.mark.parametrize(("keys", "column"), [(KERAS, False), (MEDMNIST, True)])
def test_arrays_have_the_names_of_keras_or_of_medmnist(tmp_path, keys, column):
    path = tmp_path / "a.npz"
    other = {"val_images": np.zeros((2, 4, 5)), "val_labels": np.zeros((2, 1))} if column else {}
    arrays = _save(path, keys, column=column, **other)
    dataset = load_dataset(f"npz:{path}")
    np.testing.assert_array_equal(dataset.train.images, arrays[keys[0]])
    np.testing.assert_array_equal(dataset.train.labels, arrays[keys[1]].ravel())
    np.testing.assert_array_equal(dataset.test.images, arrays[keys[2]])
    np.testing.assert_array_equal(dataset.test.labels, arrays[keys[3]].ravel())
    assert (dataset.name, dataset.classes) == (f"npz:{path}", ("0", "1", "2"))
    assert dataset.mean == dataset.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("stored", "first"), [("cat", "cat"), (b"cat", "cat"), ("Größe".encode("latin-1"), "Größe")]
)
def test_names_of_classes_are_text_or_bytes(tmp_path, stored, first):
    others = ["dog", "eel"] if isinstance(stored, str) else [b"dog", b"eel"]
    _save(tmp_path / "a.npz", classes=np.array([stored, *others]))
    assert load_dataset(f"npz:{tmp_path}/a.npz").classes == (first, "dog", "eel")


def _one_array(path):
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


def _truncated(path):
    _save(path)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    "write",
    [
        lambda path: np.savez(path, **dict.fromkeys(KERAS, np.array([{}, []], dtype=object))),
        *[_one_array, _truncated, np.savez, lambda path: path.write_text("hello")],
        *[Path.touch, Path.mkdir, lambda path: None],
    ],
    ids=["pickle", "one array", "truncated", "no arrays", "text", "empty", "folder", "missing"],
)
def test_refuses_what_is_no_npz(tmp_path, monkeypatch, write):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.npz")
    with pytest.raises(InputError, match="^dataset: "):
        load_dataset("npz:~/a.npz")


@pytest.mark.parametrize("shape", [(28, 28, 28), (1, 5, 5)])
def test_a_layout_says_that_channels_are_last(tmp_path, shape):
    path = tmp_path / "a.npz"
    _save(path, shape=shape, layout="NHWC")
    assert load_dataset(f"npz:{path}").input_shape == shape
    _save(path, shape=shape, layout="NCHW")
    with pytest.raises(InputError, match="^dataset: .*'NCHW'"):
        load_dataset(f"npz:{path}")


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        *[((32, 32, 3), True), ((16, 16, 8), True), ((1, 1, 3), True), ((1, 1, 64), True)],
        *[((3, 5, 1), True), ((2, 2, 3), True), ((3, 3, 3), True), ((4, 5), True)],
        *[((3, 32, 32), False), ((1, 28, 28), False), ((28, 28, 28), False)],
        *[((3, 24, 32), False), ((8, 16, 16), False), ((4, 6, 6), False)],
    ],
)
def test_without_a_layout_only_what_must_be_channels_last_is_read(tmp_path, shape, read):
    arrays = _save(tmp_path / "a.npz", shape=shape)
    if read:
        images = load_dataset(f"npz:{tmp_path}/a.npz").train.images
        np.testing.assert_array_equal(images, arrays["x_train"].reshape(6, *(*shape, 1)[:3]))
    else:
        with pytest.raises(InputError, match="^dataset: .*channels"):
            load_dataset(f"npz:{tmp_path}/a.npz")


@pytest.mark.parametrize(
    ("key", "change", "reason"),
    [
        ("y_train", lambda y: np.array([1, 2, 3, 1, 2, 3]), "renumber"),
        ("y_train", lambda y: np.array([0, 255] * 3), "renumber"),
        ("y_train", lambda y: y.astype(float), "integers"),
        ("y_train", lambda y: y[:0], ""),
        ("x_train", lambda x: (x > 127).astype(np.uint8), "only 0 and 1"),
        ("x_train", lambda x: x / 255.0 / 255.0, "twice"),
        ("x_test", lambda x: None, "found x_train, y_test, y_train"),
        ("classes", lambda _: np.array(["cat", "dog", "cat"]), "'cat'"),
    ],
)
def test_wrong_arrays_are_refused_by_what_is_wrong_with_them(tmp_path, key, change, reason):
    path = tmp_path / "a.npz"
    arrays = _save(path)
    arrays[key] = change(arrays.get(key))
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=f"^dataset: .*{reason}"):
        load_dataset(f"npz:{path}")


def test_named_classes_may_lack_examples(tmp_path):
    path = tmp_path / "a.npz"
    arrays = _save(path)
    np.savez(path, **{**arrays, "y_train": arrays["y_train"] + 1}, classes=["a", "b", "c", "d"])
    dataset = load_dataset(f"npz:{path}")
    assert dataset.named and dataset.train.labels.max() == 3
    _save(path)
    assert not load_dataset(f"npz:{path}").named


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
    with pytest.raises(InputError, match="^dataset: .*1.001"):
        load_dataset(f"npz:{path}")
