"""Tiny-ImageNet in the folders that it is distributed in, written here in miniature."""

import numpy as np
import pytest
from PIL import Image

from distill_core.config import InputError
from distill_core.data import load_dataset

GOLDFISH, CRANE, BUILDING_CRANE = "n01443537", "n02012849", "n03126707"
BOX = "\t0\t1\t6\t7"
ANNOTATIONS = (("val_0.JPEG", CRANE), ("val_1.JPEG", GOLDFISH), ("val_2.JPEG", CRANE))


def _image(path, seed=0, shape=(8, 8, 3)):
    """Writes a JPEG; its pixels as they are read back, [8, 8, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")
    read = np.asarray(Image.open(path))
    return read if read.ndim == 3 else np.repeat(read[..., None], 3, axis=-1)


def _train(wnid, i):
    return f"train/{wnid}/images/{wnid}_{i}.JPEG"


@pytest.fixture
def tiny(tmp_path):
    """Three classes of 2, 1 and 1 train images, 3 for validation and 1 without a label."""
    named = [(GOLDFISH, 0), (GOLDFISH, 1), (CRANE, 0), (BUILDING_CRANE, 0)]
    paths = [*(_train(*each) for each in named), *(f"val/images/val_{i}.JPEG" for i in range(3))]
    grey = {_train(GOLDFISH, 1), "val/images/val_2.JPEG"}
    pixels = {}
    for i, path in enumerate(paths):
        pixels[path] = _image(tmp_path / path, i, (8, 8) if path in grey else (8, 8, 3))
    _image(tmp_path / "test/images/test_0.JPEG")
    for wnid in (GOLDFISH, CRANE, BUILDING_CRANE):
        (tmp_path / f"train/{wnid}/{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG{BOX}\n")
    _annotate(tmp_path, *(f"{file}\t{wnid}{BOX}" for file, wnid in ANNOTATIONS))
    (tmp_path / "wnids.txt").write_text(f"{CRANE}\n{GOLDFISH}\n{BUILDING_CRANE}\n")
    (tmp_path / "words.txt").write_text(
        f"n00001740\tentity\n{GOLDFISH}\tgoldfish, Carassius auratus\n{CRANE}\tcrane\n"
    )
    return tmp_path, pixels


def _annotate(root, *lines):
    (root / "val/val_annotations.txt").write_text("".join(f"{line}\n" for line in lines))


def _refused(root, named):
    with pytest.raises(InputError, match="^dataset: .*" + named.replace("ROOT", str(root))):
        load_dataset(f"folder:{root}")


def test_the_labels_of_the_validation_set_are_those_of_its_annotations(tiny):
    root, pixels = tiny
    dataset = load_dataset(f"folder:{root}")
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 1, 2])
    np.testing.assert_array_equal(dataset.test.labels, [1, 0, 1])
    images = np.stack(list(pixels.values()))
    np.testing.assert_array_equal(dataset.train.images, images[:4])  # grey ones became RGB
    np.testing.assert_array_equal(dataset.test.images, images[4:])
    assert dataset.note == "the validation set stands in for the test split"
    assert dataset.mean == (0.4802, 0.4481, 0.3975)
    assert dataset.std == (0.2302, 0.2265, 0.2262)
    # Neither the order of the annotations nor their line ends matter.
    lines = [f"{file}\t{wnid}{BOX}\r" for file, wnid in reversed(ANNOTATIONS)]
    _annotate(root, *lines, "\r")
    np.testing.assert_array_equal(load_dataset(f"folder:{root}").test.labels, [1, 0, 1])


def test_classes_have_readable_names_that_differ(tiny):
    root, _ = tiny
    assert load_dataset(f"folder:{root}").classes == ("goldfish", "crane", BUILDING_CRANE)
    with (root / "words.txt").open("a") as file:
        file.write(f"{BUILDING_CRANE}\tcrane\n")
    names = ("goldfish", f"crane ({CRANE})", f"crane ({BUILDING_CRANE})")
    assert load_dataset(f"folder:{root}").classes == names
    (root / "words.txt").write_bytes(b"\xff\n")
    _refused(root, "ROOT/words.txt")
    (root / "words.txt").unlink()
    assert load_dataset(f"folder:{root}").classes == (GOLDFISH, CRANE, BUILDING_CRANE)


def test_a_test_folder_may_miss_and_one_with_classes_is_a_users_own(tiny):
    root, _ = tiny
    (root / "test/images/test_0.JPEG").unlink()
    (root / "test/images").rmdir()
    (root / "test").rmdir()
    assert len(load_dataset(f"folder:{root}").test) == 3
    for wnid in (GOLDFISH, CRANE, BUILDING_CRANE):
        _image(root / f"train/{wnid}/0.JPEG")
    tested = _image(root / f"test/{CRANE}/0.JPEG", 9)
    dataset = load_dataset(f"folder:{root}")
    np.testing.assert_array_equal(dataset.test.images, tested[None])
    assert dataset.classes == (GOLDFISH, CRANE, BUILDING_CRANE)
    assert dataset.note == ""


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (f"val_2.JPEG\tn99999999{BOX}", "n99999999"),
        (f"val_3.JPEG\t{CRANE}{BOX}", "val_3.JPEG"),
        (f"val_1.JPEG\t{CRANE}{BOX}", "val_1.JPEG"),
        (f"val_2.JPEG {CRANE} 0 1 6 7", "tabs"),
        (f"val_2.JPEG\t{CRANE}", "tabs"),
        (f"\t{CRANE}{BOX}", "tabs"),
        ("", "''"),
    ],
)
def test_a_wrong_line_is_named(tiny, line, named):
    root, _ = tiny
    good = [f"{file}\t{wnid}{BOX}" for file, wnid in ANNOTATIONS]
    _annotate(root, *good[:2], line, good[2])
    _refused(root, f"line 3 of ROOT/val/val_annotations.txt .*{named}")


def test_a_file_that_is_missing_or_damaged_is_named(tiny):
    root, _ = tiny
    for left in (ANNOTATIONS[:2], ()):
        _annotate(root, *(f"{file}\t{wnid}{BOX}" for file, wnid in left))
        _refused(root, f"ROOT/val/images/val_{len(left)}.JPEG")
    (root / "val/val_annotations.txt").unlink()
    _refused(root, "needs ROOT/val/val_annotations.txt")
    _annotate(root, *(f"{file}\t{wnid}{BOX}" for file, wnid in ANNOTATIONS))
    path = root / _train(CRANE, 0)
    path.write_bytes(path.read_bytes()[:40])
    _refused(root, f"ROOT/{_train(CRANE, 0)}")
    path.unlink()
    _refused(root, f"ROOT/train/{CRANE}/images")
