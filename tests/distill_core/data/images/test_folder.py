"""A user's own image files."""

import shutil
import struct
import zlib
from pathlib import Path

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


def test_alpha_is_dropped(tmp_path):
    pixels = _tree(tmp_path, shape=(5, 4, 4))["train/dog/0.png"][..., :3]
    np.testing.assert_array_equal(load_dataset(f"folder:{tmp_path}").train.images[1], pixels)


def test_grey_images_have_one_channel_and_become_rgb_beside_one_colour_image(tmp_path):
    grey = _tree(tmp_path, shape=(5, 4))
    images = load_dataset(f"folder:{tmp_path}").train.images
    np.testing.assert_array_equal(images[0], grey["train/cat/0.png"][..., None])
    colour = _image(tmp_path / "test/dog/0.png", 9)
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.input_shape == (5, 4, 3)
    np.testing.assert_array_equal(dataset.test.images[1], colour)
    expected = np.repeat(grey["train/cat/0.png"][..., None], 3, axis=-1)
    np.testing.assert_array_equal(dataset.train.images[0], expected)


def test_other_files_are_ignored_and_the_test_split_may_lack_a_class(tmp_path):
    _tree(tmp_path)
    for name in ("train/README.md", "train/cat/notes.txt", "train/cat/._0.png", "test/.DS_Store"):
        (tmp_path / name).write_text("x")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    shutil.rmtree(tmp_path / "test/dog")
    dataset = load_dataset(f"folder:{tmp_path}")
    assert len(dataset.train) == 5
    np.testing.assert_array_equal(dataset.test.labels, [0])


def _deep_colour(path):
    """A colour PNG of 16 bits a value, which Pillow cannot write."""

    def chunk(kind, body):
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", 4, 5, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + np.full((4, 3), 40_000, ">u2").tobytes() for _ in range(5))
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def _on_its_side(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


@pytest.mark.parametrize(
    ("damage", "path", "named"),
    [
        (shutil.rmtree, "train", "ROOT/train is"),
        (shutil.rmtree, "test", "ROOT/test is"),
        (lambda path: [shutil.rmtree(path / label) for label in ("cat", "dog")], "test", "test"),
        (Path.mkdir, "train/eel", "ROOT/train/eel"),
        (lambda path: _image(path / "0.png"), "test/eel", "ROOT/test/eel"),
        (lambda root: [shutil.rmtree(root / s / "dog") for s in ("train", "test")], "", "2 class"),
        (lambda path: _image(path, shape=(6, 4, 3)), "train/cat/2.png", "4x5 .*cat/2.png is 4x6"),
        (_on_its_side, "train/cat/1.png", "4x5 .*train/cat/1.png is 5x4"),
        (lambda path: path.write_bytes(b""), "train/dog/0.png", "ROOT/train/dog/0.png"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), "train/dog/0.png", "dog/0.png"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "train/dog/0.png", "dog/0.png"),
        (
            lambda path: Image.fromarray(np.full((5, 4), 40_000, np.uint16)).save(path),
            "train/dog/0.png",
            "8 bits .*ROOT/train/dog/0.png",
        ),
        (_deep_colour, "test/dog/0.png", "8 bits .*ROOT/test/dog/0.png"),
    ],
)
def test_a_folder_of_another_kind_is_refused_by_what_is_wrong_with_it(
    tmp_path, damage, path, named
):
    _tree(tmp_path)
    damage(tmp_path / path)
    with pytest.raises(InputError, match="^dataset: .*" + named.replace("ROOT", str(tmp_path))):
        load_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    """A camera's image that says how it was held is what a viewer shows, in size and pixels."""
    pixels = _tree(tmp_path)["train/cat/1.png"]
    turns = {1: 0, 3: 2, 6: 1, 8: -1}
    stored = np.fliplr(pixels) if orientation == 2 else np.rot90(pixels, turns[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "train/cat/1.png").unlink()
    image = Image.fromarray(np.ascontiguousarray(stored))
    image.save(tmp_path / f"train/cat/9{suffix}", exif=exif, lossless=True)
    found = load_dataset(f"folder:{tmp_path}").train.images[-1]
    np.testing.assert_array_equal(found, pixels)


def test_folders_called_by_numbers_are_in_the_order_of_the_numbers(tmp_path):
    for i, label in enumerate(("1", "10", "2")):
        for split in ("train", "test"):
            _image(tmp_path / split / label / f"{i}.png", i)
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.classes == ("1", "2", "10")
    np.testing.assert_array_equal(dataset.train.labels, [0, 2, 1])
