"""Prepared directories of TensorFlow Datasets, written here without TensorFlow."""

import io
import json
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from distill_core.config import InputError
from distill_core.data import load_dataset
from distill_core.data.images import tfds_source

CORE = "tensorflow_datasets.core.features"


def _prepare(
    root,
    name="shapes",
    version="1.0.0",
    *,
    shape=(4, 5, 3),
    splits=(("train", 6), ("test", 3)),
    names=("round", "square", "other"),
    label_key="label",
    file_format="array_record",
):
    """Writes what `download_and_prepare` writes; the pixels [N, H, W, C] and labels of each split.

    `name` may be `dataset/config`.
    """
    base, _, config = name.partition("/")
    folder = root / name / version
    folder.mkdir(parents=True)
    image = {"dtype": "uint8", "encodingFormat": "png"}
    image["shape"] = {"dimensions": [str(d) for d in shape]}
    features = {
        "image": {"pythonClassName": f"{CORE}.image_feature.Image", "image": image},
        label_key: {
            "pythonClassName": f"{CORE}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "3"},
        },
    }
    spec = {"pythonClassName": f"{CORE}.features_dict.FeaturesDict"}
    (folder / "features.json").write_text(
        json.dumps(spec | {"featuresDict": {"features": features}})
    )
    if names:
        (folder / f"{label_key}.labels.txt").write_text("\n".join(names) + "\n")
    info = {"name": base, "version": version, "fileFormat": file_format, "splits": []}
    if config:
        info["configName"] = config
    rng = np.random.default_rng(0)
    data = {}
    for split, num in splits:
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        info["splits"].append(
            {"name": split, "shardLengths": [str(num)], "filepathTemplate": template}
        )
        images = rng.integers(0, 256, (num, *shape)).astype(np.uint8)
        labels = np.arange(num) % 3
        file = folder / f"{base}-{split}.{file_format}-00000-of-00001"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for pixels, label in zip(images, labels, strict=True):
            writer.write(_example(pixels, label, label_key))
        writer.close()
        data[split] = images, labels
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return data


def _example(pixels, label, label_key="label"):
    png = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(png, "PNG")
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(png.getvalue())
    example.features.feature[label_key].int64_list.value.append(int(label))
    return example.SerializeToString()


@pytest.mark.parametrize(
    ("shape", "chunk", "names"),
    [((4, 5, 3), 512, ("round", "square", "other")), ((4, 5, 1), 4, ())],
)
def test_reads_what_was_written(tmp_path, monkeypatch, shape, chunk, names):
    had_tensorflow = "tensorflow" in sys.modules  # another test's doing
    monkeypatch.setattr(tfds_source, "_CHUNK", chunk)
    data = _prepare(tmp_path, shape=shape, names=names)
    dataset = load_dataset("tfds:shapes", data_dir=str(tmp_path))
    for name, (images, labels) in data.items():
        split = getattr(dataset, name)
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
    assert dataset.classes == (names or ("0", "1", "2"))
    assert dataset.mean == dataset.std == (0.5,) * shape[-1]
    assert dataset.note == ""
    assert ("tensorflow" in sys.modules) == had_tensorflow


def test_published_constants_and_counts(tmp_path, monkeypatch):
    _prepare(tmp_path, "cifar10", "3.0.2")
    dataset = load_dataset("tfds:cifar10", data_dir=str(tmp_path))
    assert dataset.mean == (0.4914, 0.4822, 0.4465)
    assert dataset.std == (0.247, 0.243, 0.261)
    notes = ("train split has 6 of 50,000 images", "test split has 3 of 10,000 images")
    assert dataset.note == "; ".join(notes)
    # A complete split needs no note.
    published = {"cifar100": {"train": 6, "test": 4}}
    monkeypatch.setattr(tfds_source, "PUBLISHED", published)
    _prepare(tmp_path, "cifar100", "3.0.2")
    dataset = load_dataset("tfds:cifar100", data_dir=str(tmp_path))
    assert dataset.note == "test split has 3 of 4 images"
    assert dataset.mean == (0.5071, 0.4865, 0.4409)


def test_validation_stands_in_for_test(tmp_path):
    data = _prepare(tmp_path, splits=(("train", 6), ("validation", 3)))
    dataset = load_dataset("tfds:shapes", data_dir=str(tmp_path))
    np.testing.assert_array_equal(dataset.test.images, data["validation"][0])
    assert dataset.note == "the validation split stands in for the test split"


def test_newest_version_unless_one_is_given(tmp_path):
    for version, num in (("2.0.0", 3), ("10.0.0", 4), ("9.1.0", 5)):
        _prepare(tmp_path, version=version, splits=(("train", 6), ("test", num)))
    (tmp_path / "shapes" / "incomplete.11.0.0").mkdir()
    (tmp_path / "shapes" / "11.0.0").mkdir()
    assert len(load_dataset("tfds:shapes", data_dir=str(tmp_path)).test) == 4
    assert len(load_dataset("tfds:shapes:9.1.0", data_dir=str(tmp_path)).test) == 5
    with pytest.raises(InputError, match="^data_dir: .*shapes:3.0.0"):
        load_dataset("tfds:shapes:3.0.0", data_dir=str(tmp_path))


def test_configurations(tmp_path):
    _prepare(tmp_path, "shapes/small")
    _prepare(tmp_path, "shapes/large")
    assert len(load_dataset("tfds:shapes/small", data_dir=str(tmp_path)).test) == 3
    with pytest.raises(InputError, match="^dataset: .*tfds:shapes/large, tfds:shapes/small"):
        load_dataset("tfds:shapes", data_dir=str(tmp_path))


def test_default_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "a"))
    _prepare(tmp_path / "a")
    assert len(load_dataset("tfds:shapes").train) == 6
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match="^data_dir: got '~/tensorflow_datasets'"):
        load_dataset("tfds:shapes")
    _prepare(tmp_path / "tensorflow_datasets")
    assert len(load_dataset("tfds:shapes").train) == 6


@pytest.mark.parametrize("make", [True, False])
def test_refuses_what_is_not_prepared_with_the_command_that_prepares_it(tmp_path, make):
    if make:
        (tmp_path / "mnist").mkdir()
    command = rf"tfds.builder\('mnist', data_dir='{tmp_path}', file_format='array_record'\)"
    with pytest.raises(InputError, match=f"^data_dir: .*{command}.download_and_prepare"):
        load_dataset("tfds:mnist", data_dir=str(tmp_path))


def _rewrite(root, name, change):
    [file] = root.rglob(name)
    file.write_text(change(file.read_text()))


def _test_file(root):
    [file] = root.rglob("shapes-test.*")
    return file


def _of_several_sizes(root):
    _rewrite(root, "features.json", lambda text: text.replace('["4", "5",', '["-1", "-1",'))
    writer = ArrayRecordWriter(str(_test_file(root)), "group_size:1")
    for height in (4, 4, 5):
        writer.write(_example(np.zeros((height, 5, 3), np.uint8), 0))
    writer.close()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda root: _test_file(root).unlink(), "data_dir: .*test split"),
        (lambda root: _test_file(root).write_bytes(b"no records"), "data_dir: .*test split"),
        (
            lambda root: _rewrite(root, "dataset_info.json", lambda t: t.replace('["3"]', '["5"]')),
            "data_dir: .*test split",
        ),
        (lambda root: _rewrite(root, "dataset_info.json", lambda t: "{"), "data_dir: .*shapes"),
        (_of_several_sizes, r"dataset: .*example 0 is \(4, 5, 3\) and example 2 is \(5, 5, 3\)"),
    ],
)
def test_refuses_damaged_directories(tmp_path, damage, named):
    _prepare(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=f"^{named}"):
        load_dataset("tfds:shapes", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"file_format": "tfrecord"}, "data_dir: .*array_record"),
        ({"label_key": "shape"}, "dataset: .*it has image, shape"),
        ({"splits": (("train", 3),)}, "dataset: .*it has train"),
        ({"splits": (("test", 3),)}, "dataset: .*it has test"),
        ({"splits": (("train", 3), ("extra", 3))}, "dataset: .*it has train, extra"),
        ({"splits": (("train", 6), ("test", 0))}, "dataset: .*test split"),
    ],
)
def test_refuses_data_of_another_kind(tmp_path, settings, named):
    _prepare(tmp_path, **settings)
    with pytest.raises(InputError, match=f"^{named}"):
        load_dataset("tfds:shapes", data_dir=str(tmp_path))


@pytest.mark.parametrize("key", ["pythonClassName", "type"])
def test_a_directory_is_data_and_its_features_name_no_code(tmp_path, key, monkeypatch):
    _prepare(tmp_path / "data")
    [described] = (tmp_path / "data").rglob("features.json")
    features = json.loads(described.read_text())
    features["featuresDict"]["features"]["image"][key] = "stranger.Image"
    described.write_text(json.dumps(features))
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="^data_dir: .*stranger.Image"):
        load_dataset("tfds:shapes", data_dir=str(tmp_path / "data"))
    assert not (tmp_path / "ran").exists()
