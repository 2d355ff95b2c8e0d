"""Images that are too large for memory lie in a file, and nothing else is different."""

import numpy as np
import pytest
from PIL import Image

from distill_core import data, train
from distill_core.config import InputError
from distill_core.data.images import memory, pixels


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder of 24 images; nothing is remembered of others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(memory, "_last", None)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in "ab":
            place = tmp_path / "images" / split / label
            place.mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{label}{i}.png")
    return f"folder:{tmp_path / 'images'}"


def load(source, monkeypatch, limit):
    monkeypatch.setattr(memory, "_last", None)
    return data.load_dataset(source, memory=limit)


def test_images_on_disk_are_those_in_memory(source, tmp_path, monkeypatch):
    whole, found = (load(source, monkeypatch, limit) for limit in (1, 0))
    assert not isinstance(whole.train.images, np.memmap)
    assert isinstance(found.train.images, np.memmap) and isinstance(found.test.images, np.memmap)
    assert found.fingerprint() == whole.fingerprint()
    rows = np.array([7, 0, 3])
    assert not isinstance(found.train.images[rows], np.memmap), "a batch is in memory"
    monkeypatch.setattr(pixels, "_BLOCK", 2)
    parts = zip(data.hold_out(found.train, 5, 0), data.hold_out(whole.train, 5, 0), strict=True)
    for part, expected in parts:
        assert isinstance(part.images, np.memmap)
        np.testing.assert_array_equal(part.images, expected.images)
        np.testing.assert_array_equal(part.index, expected.index)
    assert list((tmp_path / "cache" / "guarded-distillation").iterdir()) == []


def test_a_run_on_them_is_the_same(source, tmp_path, monkeypatch):
    given = {"dataset": source, "model": "cnn", "model_kwargs": {"widths": (4,), "hidden": 8}}
    given |= {"batch_size": 8, "num_steps": 2, "num_validation": 2, "learning_rate": 0.01}
    results = []
    for limit in (1, 0):
        monkeypatch.setattr(memory, "_last", None)
        workdir = tmp_path / str(limit)
        results.append(train.train_and_evaluate({**given, "image_memory": limit}, workdir))
    first, second = ({k: v for k, v in each.items() if k != "id"} for each in results)
    assert first == second


def test_a_file_that_finds_no_place_is_refused(source, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="^image_memory: got 0; is less than .* no place on disk"):
        load(source, monkeypatch, 0)
