"""The data set that was read last is not read again, unless its files changed."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from distill_core import data
from distill_core.config import InputError
from distill_core.data.images import folder


@pytest.fixture
def source(tmp_path):
    """A folder of images."""
    for split in ("train", "test"):
        for label in "ab":
            place = tmp_path / split / label
            place.mkdir(parents=True)
            Image.fromarray(np.full((4, 4), ord(label), np.uint8)).save(place / "0.png")
    return tmp_path


def test_the_second_call_reads_nothing(source, monkeypatch):
    first = data.load_dataset(f"folder:{source}")
    monkeypatch.setattr(folder, "load", None)
    assert data.load_dataset(f"folder:{source}") is first


def blacken(file):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(file, "png")


def _in_place(file):
    """Changes the content, but neither the size nor the time of modification."""
    status = file.stat()
    Image.fromarray(np.full((4, 4), ord("c"), np.uint8)).save(file)
    assert file.stat().st_size == status.st_size
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda train: blacken(train / "a" / "1.png"),
        lambda train: _in_place(train / "a" / "0.png"),
        lambda train: shutil.rmtree(train.parent / "test" / "b"),
    ],
    ids=["a new file", "another content", "a file less"],
)
def test_changed_files_are_read_again(source, change):
    before = data.load_dataset(f"folder:{source}")
    change(source / "train")
    assert data.load_dataset(f"folder:{source}").fingerprint() != before.fingerprint()


def test_another_data_set_takes_its_place_and_both_stay_right(source, tmp_path):
    first = data.load_dataset(f"folder:{source}")
    other = tmp_path / "other"
    for split in ("train", "test"):
        shutil.copytree(source / split, other / split)
    blacken(other / "train" / "a" / "0.png")
    assert data.load_dataset(f"folder:{other}").fingerprint() != first.fingerprint()
    assert data.load_dataset(f"folder:{source}").fingerprint() == first.fingerprint()


def test_what_cannot_be_read_is_refused_every_time(source):
    (source / "train" / "a" / "0.png").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(InputError, match="cannot be read as an image"):
            data.load_dataset(f"folder:{source}")


@pytest.mark.parametrize("linked", ["train", "train/a", "train/a/0.png"])
def test_changes_behind_links_are_seen(source, tmp_path_factory, linked):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.move(source / linked, elsewhere)
    (source / linked).symlink_to(elsewhere)
    before = data.load_dataset(f"folder:{source}")
    blacken((source / "train" / "a" / "0.png").resolve())
    assert data.load_dataset(f"folder:{source}").fingerprint() != before.fingerprint()


def test_a_link_back_to_the_folder_is_followed_once(source):
    (source / "train" / "a" / "up").symlink_to(source)
    (source / "train" / "a" / "gone").symlink_to(source / "nowhere")
    first = data.load_dataset(f"folder:{source}")
    assert data.load_dataset(f"folder:{source}") is first
