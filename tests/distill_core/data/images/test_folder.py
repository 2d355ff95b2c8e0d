"""A user's own image files."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from distill_core.config import InputError
from distill_core.data import load_dataset


def _image(path, seed=0, shape=(5, 4, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def _tree(root, shape=(5, 4, 3)):
    """Two classes, 3 + 2 train images and 1 + 1 test images; {relative path: pixels}."""
    names = ["train/cat/0.png", "train/cat/1.png", "train/cat/2.png", "train/dog/0.png"]
    names += ["train/dog/1.PNG", "test/cat/0.png", "test/dog/0.png"]
    return {name: _image(root / name, i, shape) for i, name in enumerate(names)}


def _refused(root):
    with pytest.raises(InputError) as error:
        load_dataset(f"folder:{root}")
    message = str(error.value)
    assert message.startswith(f"dataset: got 'folder:{root}'; ")
    assert "\n" not in message
    return message


def test_colour(tmp_path):
    pixels = _tree(tmp_path)
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.classes == ("cat", "dog")
    assert dataset.input_shape == (5, 4, 3)
    assert dataset.mean == (0.5, 0.5, 0.5)
    np.testing.assert_array_equal(dataset.test.labels, [0, 1])
    np.testing.assert_array_equal(dataset.test.images, np.stack(list(pixels.values())[5:]))
    # By file name, then by class; files of one name share a record.
    order = ["cat/0.png", "dog/0.png", "dog/1.PNG", "cat/1.png", "cat/2.png"]
    expected = np.stack([pixels[f"train/{name}"] for name in order])
    np.testing.assert_array_equal(dataset.train.images, expected)
    np.testing.assert_array_equal(dataset.train.labels, [0, 1, 1, 0, 0])
    np.testing.assert_array_equal(dataset.train.record, [0, 0, 1, 2, 3])


def test_grey(tmp_path):
    pixels = _tree(tmp_path, shape=(5, 4))
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.input_shape == (5, 4, 1)
    np.testing.assert_array_equal(dataset.train.images[1, ..., 0], pixels["train/dog/0.png"])


def test_one_colour_image_among_grey_ones_makes_all_rgb(tmp_path):
    grey = _tree(tmp_path, shape=(5, 4))
    colour = _image(tmp_path / "test/dog/0.png", 9)
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.input_shape == (5, 4, 3)
    np.testing.assert_array_equal(dataset.test.images[1], colour)
    expected = np.repeat(grey["train/cat/0.png"][..., None], 3, axis=-1)
    np.testing.assert_array_equal(dataset.train.images[0], expected)


def test_alpha_is_dropped(tmp_path):
    pixels = _tree(tmp_path, shape=(5, 4, 4))
    dataset = load_dataset(f"folder:{tmp_path}")
    np.testing.assert_array_equal(dataset.train.images[0], pixels["train/cat/0.png"][..., :3])


def test_other_files_are_ignored(tmp_path):
    _tree(tmp_path)
    for name in ("train/README.md", "train/cat/notes.txt", "train/cat/._0.png", "test/.DS_Store"):
        (tmp_path / name).write_text("x")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    assert len(load_dataset(f"folder:{tmp_path}").train) == 5


def test_a_class_may_miss_in_the_test_split_only(tmp_path):
    _tree(tmp_path)
    (tmp_path / "test/dog/0.png").unlink()
    (tmp_path / "test/dog").rmdir()
    dataset = load_dataset(f"folder:{tmp_path}")
    np.testing.assert_array_equal(dataset.test.labels, [0])
    _image(tmp_path / "test/eel/0.png")
    assert f"{tmp_path}/test/eel is a class that the train split does not" in _refused(tmp_path)


def test_refuses_missing_folders(tmp_path):
    assert f"and {tmp_path}/train is no folder" in _refused(tmp_path)
    _image(tmp_path / "train/cat/0.png")
    assert f"and {tmp_path}/test is no folder" in _refused(tmp_path)
    (tmp_path / "test").mkdir()
    assert f"{tmp_path}/test must hold one folder a class, and holds none" in _refused(tmp_path)


def test_refuses_an_empty_class(tmp_path):
    _tree(tmp_path)
    (tmp_path / "train/eel").mkdir()
    message = f"{tmp_path}/train/eel must hold images (.png, .jpg, .jpeg, .bmp, .webp), and holds"
    assert message in _refused(tmp_path)


def test_refuses_one_class(tmp_path):
    _image(tmp_path / "train/images/0.png")
    _image(tmp_path / "test/images/0.png")
    assert "needs at least 2 classes, and has 1" in _refused(tmp_path)


def test_names_the_first_file_that_differs_in_size(tmp_path):
    _tree(tmp_path)
    _image(tmp_path / "train/cat/2.png", shape=(6, 4, 3))
    _image(tmp_path / "test/cat/0.png", shape=(7, 4, 3))
    message = f"{tmp_path}/train/cat/0.png is 4x5 and {tmp_path}/train/cat/2.png is 4x6"
    assert message in _refused(tmp_path)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_names_the_file_that_cannot_be_read(tmp_path, keep):
    _tree(tmp_path)
    path = tmp_path / "train/dog/0.png"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} cannot be read as an image" in _refused(tmp_path)


def test_refuses_more_than_8_bits(tmp_path):
    _tree(tmp_path)
    path = tmp_path / "train/dog/0.png"
    Image.fromarray(np.full((5, 4), 40_000, np.uint16)).save(path)
    assert f"must have 8 bits a value, and {path} has more (mode I;16)" in _refused(tmp_path)


def _deep_colour(path):
    """A colour PNG of 16 bits a value, which Pillow cannot write."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 4, 5, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + np.full((4, 3), 40_000, ">u2").tobytes() for _ in range(5))
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def test_refuses_colours_of_16_bits(tmp_path):
    _tree(tmp_path)
    path = tmp_path / "test/dog/0.png"
    _deep_colour(path)
    assert f"must have 8 bits a value, and {path} has more (mode RGB;16B)" in _refused(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    """A camera's image that says how it was held is what a viewer shows, in size and pixels."""
    pixels = _tree(tmp_path)["train/cat/1.png"]
    turn = {
        1: lambda upright: upright,
        2: np.fliplr,
        3: lambda upright: np.rot90(upright, 2),
        6: lambda upright: np.rot90(upright, 1),
        8: lambda upright: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "train/cat/1.png").unlink()
    stored = Image.fromarray(np.ascontiguousarray(turn(pixels)))
    stored.save(tmp_path / f"train/cat/9{suffix}", exif=exif, lossless=True)
    found = load_dataset(f"folder:{tmp_path}").train.images[-1]
    np.testing.assert_array_equal(found, pixels)


def test_an_image_that_lies_on_its_side_is_of_another_size(tmp_path):
    _tree(tmp_path)
    path, exif = tmp_path / "train/cat/1.png", Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    assert f"is 4x5 and {path} is 5x4" in _refused(tmp_path)


def test_folders_called_by_numbers_are_in_the_order_of_the_numbers(tmp_path):
    for i, label in enumerate(("1", "10", "2")):
        for split in ("train", "test"):
            _image(tmp_path / split / label / f"{i}.png", i)
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.classes == ("1", "2", "10")
    np.testing.assert_array_equal(dataset.train.labels, [0, 2, 1])
