"""TensorFlow Datasets from a prepared directory, read without TensorFlow."""

import contextlib
import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from distill_core.config import InputError
from distill_core.data.images import memory, pixels
from distill_core.data.images.dataset import Dataset, make_dataset
from distill_core.models import trust
from distill_core.runtime import paths

# (mean, std) of pixels in [0, 1], as used in the literature.
CONSTANTS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
}

# Published numbers of examples, which a directory that lost some does not tell.
PUBLISHED = {
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "mnist": {"train": 60_000, "test": 10_000},
    "fashion_mnist": {"train": 60_000, "test": 10_000},
}

_CHUNK = 1_000
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def load(name: str, data_dir: str | None, room: int | None = None) -> Dataset:
    """Reads `tfds:NAME`, every image decoded once; beyond `room` bytes on disk, see `pixels.room`.

    NAME is `dataset`, `dataset/config` or either with `:version`; without a version, the newest
    prepared one. The data set must have the features `image` (one size, 8 bits) and `label`, and
    the splits `train` and `test`; `validation` stands in for a missing test split, and the note
    says so. The note also says where a split has fewer examples than were published.

    The directory is opened rather than the data set by name (`tfds.data_source`), which would
    import the catalogue's code and go to the network if the directory is missing.
    """
    full = f"tfds:{name}"
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = _prepared(name, data_dir)
    return memory.remembered(full, folder, lambda: _load(name, full, data_dir, folder, room))


def _load(name: str, full: str, data_dir: str, folder: epath.Path, room: int | None) -> Dataset:
    import tensorflow_datasets as tfds

    with _readable(name, data_dir, "the directory"):
        for feature in _features(json.loads((folder / "features.json").read_text())):
            if not feature.startswith("tensorflow_datasets."):  # the reader would import it
                trust.check(
                    "data_dir", data_dir, feature.rpartition(".")[0], asks_for=f"a {feature}"
                )
        builder: Any = tfds.builder_from_directory(folder)
        features = builder.info.features
        sizes: dict[str, int] = {k: v.num_examples for k, v in builder.info.splits.items()}
    if not {"image", "label"} <= set(features or {}) or not hasattr(features["label"], "names"):
        found = ", ".join(sorted(features or {}))
        message = f"must have the features image and label (a class); it has {found}"
        raise InputError("dataset", full, message)
    test = "test" if "test" in sizes else "validation"
    if "train" not in sizes or test not in sizes:
        message = f"must have the splits train and test; it has {', '.join(sizes)}"
        raise InputError("dataset", full, message)

    arrays, notes = [], []
    for which in ("train", test):
        if not sizes[which]:  # its files need not exist
            raise InputError("dataset", full, f"the {which} split must not be empty")
        with _readable(name, data_dir, f"the {which} split"):
            images, labels = _read(full, which, builder.as_data_source(which), room)
        arrays.append((images, labels))
        published = PUBLISHED.get(_base(name), {}).get(which, sizes[which])
        if len(labels) < published:
            notes.append(f"{which} split has {len(labels):,} of {published:,} images")
    if test == "validation":
        notes.append("the validation split stands in for the test split")

    label = features["label"]
    mean, std = CONSTANTS.get(_base(name), (None, None))
    made = make_dataset(
        full,
        *arrays,
        classes=label.names or [str(i) for i in range(label.num_classes)],
        channels_last=isinstance(features["image"], tfds.features.Image),
        mean=mean,
        std=std,
    )
    return dataclasses.replace(made, note="; ".join(notes), named=bool(label.names))


def _features(described: Any) -> Iterator[str]:
    """Qualified names of the features' classes, at any depth of a `features.json`."""
    for name, value in described.items() if isinstance(described, Mapping) else ():
        if name in ("pythonClassName", "type") and isinstance(value, str):
            yield value
        yield from _features(value)


def _base(name: str) -> str:
    """The data set's name without configuration and version."""
    return name.partition(":")[0].partition("/")[0]


def _prepared(name: str, data_dir: str) -> epath.Path:
    """The directory of the wanted version, or of the newest."""
    unversioned, _, version = name.partition(":")
    root = paths.expand("data_dir", data_dir) / unversioned
    versions = [version] if version else _subfolders(root)
    found = [
        root / v
        for v in versions
        if _VERSION.fullmatch(v) and (root / v / "dataset_info.json").exists()
    ]
    if found:
        return max(found, key=lambda path: tuple(int(part) for part in path.name.split(".")))
    configs = [c for c in _subfolders(root) if any(map(_VERSION.fullmatch, _subfolders(root / c)))]
    if configs and not version:
        wanted = ", ".join(f"tfds:{unversioned}/{config}" for config in sorted(configs))
        raise InputError("dataset", f"tfds:{name}", f"needs its configuration: {wanted}")
    raise InputError("data_dir", data_dir, f"has no prepared {name!r}; {_how_to(name, data_dir)}")


def _subfolders(folder: epath.Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _how_to(name: str, data_dir: str) -> str:
    return (
        "to prepare it, run: pip install 'guarded-distillation[prepare]', then: "
        f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
        f"data_dir={data_dir!r}, file_format='array_record').download_and_prepare()\""
    )


@contextlib.contextmanager
def _readable(name: str, data_dir: str, what: str) -> Iterator[None]:
    """Turns any exception of the readers into one line for the user."""
    logger = logging.getLogger("absl")
    logger.addFilter(_not_the_opencv_hint)
    try:
        yield
    except InputError:
        raise
    except NotImplementedError as error:
        message = f"holds {name!r} in another format than array_record; {_how_to(name, data_dir)}"
        raise InputError("data_dir", data_dir, message) from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        message = f"{what} of {name!r} cannot be read ({reason}); {_how_to(name, data_dir)}"
        raise InputError("data_dir", data_dir, message) from error
    finally:
        logger.removeFilter(_not_the_opencv_hint)


def _not_the_opencv_hint(record: logging.LogRecord) -> bool:
    return "OpenCV is not installed" not in record.getMessage()


def _read(
    full: str, which: str, source: Any, room: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [N, H, W, C], int64 [N]) of one split."""
    shape, dtype = source[0]["image"].shape, source[0]["image"].dtype
    if dtype != np.uint8:
        raise InputError("dataset", full, f"images must be uint8, and are {dtype}")
    images = pixels.room((len(source), *shape), room)
    labels = np.empty(len(source), np.int64)
    # Many records per call are twice as fast as one; threads are slower (Python holds the lock).
    for start in range(0, len(source), _CHUNK):
        indices = range(start, min(start + _CHUNK, len(source)))
        for i, example in zip(indices, source.__getitems__(list(indices)), strict=True):
            if example["image"].shape != shape:
                message = (
                    f"all images must have one size: {which} example 0 is {shape} "
                    f"and example {i} is {example['image'].shape}"
                )
                raise InputError("dataset", full, message)
            images[i], labels[i] = example["image"], example["label"]
    return images, labels
