"""Whose data each record becomes: public, balanced, and deaf to labels, whatever the source."""

import dataclasses
import importlib.util
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill_core import data
from distill_core.config import InputError
from distill_core.training import classification
from dpdfd.ensemble import partitions
from dpdfd.ensemble.partitions import partition

TEACHERS, RECORDS, CLASSES = 4, 36, 3
# Which records change: first, last and some between, so that labels go up and down.
CHANGED = (0, 1, 7, 16, 35)


# -- the deal ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("num", "teachers"), [(1, 1), (9, 9), (1000, 7), (1437, 60), (5, 1)])
def test_partitions_are_disjoint_whole_of_one_size_and_functions_of_the_index_alone(num, teachers):
    members = partitions.members_of(np.arange(num, dtype=np.int32), teachers)
    assert sorted(np.concatenate(members).tolist()) == list(range(num))
    assert {len(rows) for rows in members} <= {num // teachers, -(-num // teachers)}
    index, all_ = np.random.default_rng(0).permutation(num), partition(np.arange(num), teachers)
    for some in (index, index[:3], np.array([num - 1]), index[:0]):
        np.testing.assert_array_equal(partition(some, teachers), all_[some])


@pytest.mark.parametrize("period", [2, 3, 10, 20, 40])
@pytest.mark.parametrize("teachers", [10, 20, 40])
def test_no_rhythm_of_the_file_meets_that_of_the_teachers(period, teachers):
    """Classes that take turns, or come one after another, are spread as by chance."""
    index = np.arange(8000)
    teacher = partition(index, teachers)
    for label in (index % period, index * period // 8000):
        table = np.zeros((teachers, period))
        np.add.at(table, (teacher, label), 1)
        expected = 8000 / teachers / period
        # Six standard deviations of a binomial: of 40 · 40 cells none lies beyond by chance.
        assert np.abs(table - expected).max() < 6 * np.sqrt(expected)


# -- every source ------------------------------------------------------------------------------


@dataclasses.dataclass
class Source:
    """A data set in its own form, written anew with record i's label or image changed."""

    name: str
    write: object
    data_dir: str | None = None


def _arrays():
    """Colourful noise and labels that take turns."""
    images = np.random.default_rng(1).integers(0, 256, (RECORDS, 6, 5, 3)).astype(np.uint8)
    return images, np.arange(RECORDS) % CLASSES


def _change(what, record):
    images, labels = _arrays()
    if what == "label":
        labels[record] = (labels[record] + 1) % CLASSES
    if what == "image":
        images[record] = 255 - images[record]
    return images, labels


def _test_split():
    return np.full((CLASSES, 6, 5, 3), 9, np.uint8), np.arange(CLASSES)


@pytest.fixture
def source(request, tmp_path, monkeypatch):
    return globals()[f"_{request.param}"](tmp_path, monkeypatch)


def _npz(root, _):
    def write(what=None, record=0):
        (x, y), (x_test, y_test) = _change(what, record), _test_split()
        np.savez(root / "data.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)

    return Source(f"npz:{root}/data.npz", write)


def _digits(root, monkeypatch):
    from sklearn import datasets

    real = datasets.load_digits()

    def write(what=None, record=0):
        found = type(real)(images=real.images.copy(), target=real.target.copy())
        if what == "label":
            found.target[record] = (found.target[record] + 1) % 10
        if what == "image":
            found.images[record] = 16 - found.images[record]
        monkeypatch.setattr(datasets, "load_digits", lambda: found)

    return Source("digits", write)


def _folder(root, _):
    # Unlike what the classes take turns at; one name is there in two classes.
    names = [f"{(i * 7) % RECORDS:02}.png" for i in range(RECORDS - 2)] + ["x.png"] * 2
    return _of_files(root, names, "train/{label}", "test/{label}/0.png")


def _tiny_imagenet(root, _):
    names = [f"n{i % CLASSES}_{i}.JPEG" for i in range(RECORDS)]
    return _of_files(root, names, "train/n{label}/images", "val/images/{label}.JPEG")


def _of_files(root, names, train, test):
    def save(path, image):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)

    def write(what=None, record=0):
        for old in root.rglob("*.*"):
            old.unlink()
        for name, image, label in zip(names, *_change(what, record), strict=True):
            save(root / train.format(label=label) / name, image)
        for image, label in zip(*_test_split(), strict=True):
            save(root / test.format(label=label), image)
        if "val" in test:
            lines = [f"{k}.JPEG\tn{k}\t0\t1\t6\t7\n" for k in range(CLASSES)]
            (root / "val/val_annotations.txt").write_text("".join(lines))

    return Source(f"folder:{root}", write)


def _tfds(root, _):
    from array_record.python.array_record_module import ArrayRecordWriter

    path = Path(__file__).parents[2] / "distill_core/data/images/test_tfds_source.py"
    spec = importlib.util.spec_from_file_location("prepared", path)
    prepared = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepared)
    prepared._prepare(root, shape=(6, 5, 3), splits=(("train", RECORDS), ("test", CLASSES)))

    def write(what=None, record=0):
        file = root / "shapes/1.0.0/shapes-train.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for pixels, label in zip(*_change(what, record), strict=True):
            writer.write(prepared._example(pixels, label))
        writer.close()

    return Source("tfds:shapes", write, str(root))


def _seen(source, **settings):
    """All that each teacher reads, by teacher: public places, labels and pixels, in order."""
    given = {"num_validation": 0, **settings}
    hp = types.SimpleNamespace(dataset=source.name, data_dir=source.data_dir, **given)
    _, splits = classification.load_splits(hp)
    train = splits.train
    return [
        (train.index[rows].tobytes(), train.labels[rows].tobytes(), train.images[rows].tobytes())
        for rows in partitions.members_of(train.record, TEACHERS)
    ]


@pytest.mark.parametrize(
    "source", ["npz", "digits", "folder", "tiny_imagenet", "tfds"], indirect=True
)
@pytest.mark.parametrize("what", ["label", "image"])
def test_one_changed_record_changes_what_one_teacher_reads(source, what):
    source.write()
    selections = ({}, {"num_validation": 7}, {"num_validation": 3, "train_share": 0.6})
    before = [_seen(source, **each) for each in selections]
    found = []
    for record in CHANGED:
        source.write(what, record)
        after = [_seen(source, **each) for each in selections]
        pairs = zip(before, after, strict=True)
        found.append([sum(a != b for a, b in zip(*pair, strict=True)) for pair in pairs])
    counts = np.array(found)
    # Digits and selections hold some of the records back: those change nothing.
    assert counts.max() == 1
    assert counts.sum(0).min() >= 1
    if source.name != "digits":
        assert (counts[:, 0] == 1).all()


def test_files_of_one_name_share_a_teacher_and_a_move_between_them_stays_inside(tmp_path):
    """Nothing but the class tells them apart: a rule that did not put them together would."""

    def save(path, value):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((3, 3), value, np.uint8)).save(path)

    for name in "abcde":
        for label in range(2):
            save(f"train/{label}/{name}.png", 10 + 10 * label + ord(name))
    for label in range(4):
        for split in ("train", "test"):
            save(f"{split}/{label}/z.png", 5)
    save("train/2/c.png", 30)
    source = Source(f"folder:{tmp_path}", None)
    before = _seen(source)
    train = data.load_dataset(source.name).train
    assert len(set(train.record.tolist())) == 6
    (tmp_path / "train/2/c.png").rename(tmp_path / "train/3/c.png")
    assert sum(a != b for a, b in zip(before, _seen(source), strict=True)) == 1
    with pytest.raises(InputError, match="must be at most the 6 different names of training files"):
        partitions.members_of(train.record, 7)


def test_a_shape_that_one_training_record_decides_is_refused(tmp_path):
    """A new class, or the first image in colour, would change every teacher."""
    images, labels = np.zeros((9, 5, 5, 1), np.uint8), np.arange(9) % 3
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:3], "y_test": labels[:3]}
    more = {"y_train": labels + (np.arange(9) == 5)}  # one label is 3
    named = {**more, "classes": ["a", "b", "c", "d"]}

    def check(name):
        partitions.check_public(data.load_dataset(name))

    for name, changes in (("public", {}), ("train_alone", more), ("named", named)):
        np.savez(tmp_path / f"{name}.npz", **{**arrays, **changes})
    check(f"npz:{tmp_path}/public.npz")
    check(f"npz:{tmp_path}/named.npz")
    with pytest.raises(InputError, match="^dataset: .*only training labels"):
        check(f"npz:{tmp_path}/train_alone.npz")

    def draw(path, shape):
        file = tmp_path / f"{path}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        colour = (200, 9, 9) if shape == (4, 4, 3) else 9
        Image.fromarray(np.full(shape, colour, np.uint8)).save(file)

    for path in ("train/a/1", "train/b/2", "test/a/1", "test/b/1"):
        draw(path, (4, 4))
    check(f"folder:{tmp_path}")
    draw("train/b/2", (4, 4, 3))
    with pytest.raises(InputError, match="^dataset: .*only training images"):
        check(f"folder:{tmp_path}")
    draw("test/b/1", (4, 4, 3))
    check(f"folder:{tmp_path}")
